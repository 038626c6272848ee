"""Stage processes killed at any moment under load: with what the words say, a gateway loses no request.

The gateway here is the least one that can be: it keeps inputs in their slots, sends again what a lost stage had, and
puts another stage in its place.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from channels import SPAWN
from layers import FakeLayer
from patience import PROMPT_S

from odin.partitioner.relay import Windows
from odin.stages.actor import Addresses, Links, StageActor
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Sender
from odin.stages.channel.opening import Listener, connect, open_ends
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor

STAGES, LAYERS, SLOTS, NBYTES = 3, 6, 6, 64 * 2**10
KILLS = int(os.environ.get("ODIN_TEST_KILLS", "5"))
"""Of each kind."""


def add(values: torch.Tensor) -> torch.Tensor:
    for _ in range(20):
        values = values + 0.05
    return values.round()


def serve(pipe: Connection, index: int) -> None:
    """A stage's process: calls of the actor's methods come by a pipe."""
    torch.set_num_threads(1)
    actor = StageActor(index, "cpu:0", "a test", share=True, precision="float32", engine="")
    actor._use_threads = lambda: None  # type: ignore[method-assign]
    actor._executor = CpuExecutor([FakeLayer(f"l{layer}", add) for layer in range(LAYERS)], {})
    while True:
        name, arguments = pipe.recv()
        pipe.send(getattr(actor, name)(*arguments))


class Stage:
    def __init__(self, index: int) -> None:
        self.index = index
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(theirs, index), daemon=True)
        self.process.start()

    def call(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        assert self._pipe.poll(PROMPT_S)
        return self._pipe.recv()


def windows_for(count: int, *, plan: bool) -> Windows:
    if not plan:
        return Windows.whole(stage_count=count, layer_count=LAYERS)
    return Windows([(LAYERS * (row + 1) // count,) * 2 for row in range(count)])


class Gateway:
    def __init__(self, *, plan: bool) -> None:
        self.plan, self.epoch = plan, 0
        self.pool, self.inbox = SlotPool(SLOTS, NBYTES), Inbox()
        self.queue = None if plan else SharedQueue(stages=STAGES)
        self.stages: dict[int, Stage] = {}
        self.ways: dict[int, Sender] = {}
        self.pending: dict[int, Header] = {}
        self.done: dict[int, float] = {}
        self.again = 0

    def start(self, index: int) -> None:
        """Put a stage in its place, which is live from then on."""
        stage = Stage(index)
        live = sorted([*self.stages, index])
        if self.plan or not self.stages:
            self.epoch += 1
        windows = windows_for(STAGES if not self.plan else len(live), plan=self.plan)
        rows = tuple(live) if self.plan else tuple(range(STAGES))
        own: Addresses = stage.call("listen", 1 + sum(one < index for one in live), 0, "")
        later: list[tuple[int, Any]] = []
        for other in live:
            if other != index:
                self.stages[other].call("drop", index)
            if other > index:
                later.append((other, self.stages[other].call("admit", 1, 0, "").here))
        answers = Listener()
        links = Links(
            (*later, (GATEWAY, answers.address)), NBYTES, ((1e-5,) * LAYERS,) * STAGES, (0.0,) * (LAYERS + 1),
            (NBYTES,) * (LAYERS + 1), windows, rows, self.epoch,
        )  # fmt: skip
        with ThreadPoolExecutor(STAGES + 1) as threads:
            starting = threads.submit(stage.call, "start", links)
            connecting = [
                threads.submit(self.stages[one].call, "connect_to", index, own.here) for one in live if one < index
            ]
            options: dict[str, Any] = {"credits": False, "receiver": index, "pool": self.pool, "queue": self.queue}
            (self.ways[index],), (receiver,) = open_ends(
                [(answers, 1)], [lambda: connect(own.here, slots=SLOTS, slot_nbytes=NBYTES, **options)]
            )
            for done in (starting, *connecting):
                done.result(PROMPT_S)
        self.inbox.add(receiver)
        for other in self.stages.values():
            other.call("prepare", self.epoch, windows, rows)
        self.stages[index] = stage

    def send(self, header: Header) -> None:
        header = header._replace(epoch=self.epoch, oldest=self.epoch if not self.pending else 0)
        self.pending[header.request] = header
        self.pool.memory.set_tag(header.slot, header.request, header.attempt)
        with contextlib.suppress(ChannelClosedError):  # its end will be heard
            (self.queue or self.ways[min(self.stages)]).post(header)

    def send_again(self, header: Header) -> None:
        self.again += 1
        self.send(header._replace(attempt=header.attempt + 1))

    def fill(self, number: int) -> int:
        while self.pool.free:
            slot = self.pool.free.pop()
            metas = self.pool.memory.write(slot, (torch.full((1000,), float(number)),))
            self.send(Header(Kind.REQUEST, number, slot=slot, home=slot, tensors=metas))
            number += 1
        return number

    def serve(self) -> None:
        """Take one answer, or learn of one loss."""
        try:
            message = self.inbox.receive()
        except ChannelClosedError as error:
            if error.peer is None:
                raise
            self.lose(error.peer)
            return
        header = message.header
        assert header.failure is None, header.failure
        known = self.pending.get(header.request)
        if known is not None and header.kind is Kind.RETURNED:
            if known.attempt == header.attempt:
                self.send_again(known)
        elif known is not None:
            self.done[header.request] = float(message.tensors[0].unique().item())
            del self.pending[header.request]
            self.pool.memory.clear_tag(known.slot)
            self.pool.free.append(known.slot)
        message.release()
        for way in (*self.ways.values(), *([self.queue] if self.queue else [])):
            way.push()

    def lose(self, index: int) -> None:
        self.stages.pop(index).process.join(PROMPT_S)
        self.ways.pop(index).close(graceful=False)
        first = min(self.stages) if self.plan else None
        if self.queue is not None:
            self.queue.forget(index)
        else:
            self.epoch += 1
            for stage in self.stages.values():
                stage.call("prepare", self.epoch, windows_for(len(self.stages), plan=True), tuple(sorted(self.stages)))
        for header in tuple(self.pending.values()):
            had = self.pool.memory.holders(header.slot, header.request, header.attempt)
            # Without a holder it is in the queue, or its taker has died: or it lies in the first stage's channel.
            if index in had or (not had and (first is None or index < first)):
                self.send_again(header)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [False, True], ids=["queue", "plan"])
def test_no_request_is_lost_or_changed(plan: bool):
    rng, number = random.Random(int(plan)), 0
    gateway = Gateway(plan=plan)
    try:
        for index in range(STAGES):
            gateway.start(index)
        for _ in range(KILLS):
            victim = gateway.stages[rng.randrange(STAGES)]
            end_s = time.perf_counter() + rng.uniform(0.005, 0.05)
            while time.perf_counter() < end_s:
                number = gateway.fill(number)
                gateway.serve()
            assert victim.process.pid is not None
            os.kill(victim.process.pid, signal.SIGKILL)
            while victim.index in gateway.stages:
                number = gateway.fill(number)
                gateway.serve()
            for _ in range(10):  # without it
                number = gateway.fill(number)
                gateway.serve()
            gateway.start(victim.index)
        end_s = time.perf_counter() + PROMPT_S
        while gateway.pending and time.perf_counter() < end_s:
            gateway.serve()
        assert gateway.done == {request: request + float(LAYERS) for request in range(number)}
        print(f"{KILLS} kills, {number} requests, {gateway.again} sent again")
    finally:
        for stage in gateway.stages.values():
            stage.process.kill()
            stage.process.join(PROMPT_S)
        gateway.inbox.close()
