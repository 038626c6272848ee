"""Pairs of channel ends, and children at the other end, for tests of channels."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from typing import Any, NamedTuple

import torch
from patience import PROMPT_S

from odin.partitioner.relay import Windows
from odin.stages.channel import shm, tcp
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import Receiver, Sender
from odin.stages.channel.opening import Address, Listener, connect
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.executor import Executor
from odin.stages.hand_over import HandOver
from odin.stages.loop import StageLoop

KINDS = ("shm", "tcp")

# Children that inherit none of our sockets; torch is imported once for all of them.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["torch", "odin.stages.channel.opening", "odin.stages.actor", "layers"])


def listen(kind: str, readiness: Readiness | None = None) -> Listener:
    return Listener("" if kind == "shm" else "127.0.0.1", readiness)


def open_pair(
    kind: str, *, slots: int = 2, slot_nbytes: int = 1024, readiness: Readiness | None = None, **options: Any
) -> tuple[Sender, Receiver]:
    listener = listen(kind, readiness)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        sender = connect(listener.address, slots=slots, slot_nbytes=slot_nbytes, **options)
        return sender, accepting.result()


@contextlib.contextmanager
def pair(kind: str, **options: Any) -> Iterator[tuple[Sender, Receiver]]:
    sender, receiver = open_pair(kind, **options)
    try:
        yield sender, receiver
    finally:
        sender.close(graceful=False)
        receiver.close()


def request(number: int, **fields: Any) -> Header:
    return Header(Kind.REQUEST, number, **fields)


def numbers(number: int, count: int = 100) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32) + 1000 * number


@contextlib.contextmanager
def child(target: Callable[..., None], *args: object) -> Iterator[ForkServerProcess]:
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PROMPT_S)
        process.close()


def open_sender(address: Address, *, slots: int = 2, slot_nbytes: int = 1024) -> Sender:
    return connect(address, slots=slots, slot_nbytes=slot_nbytes)


def post(
    pool: SlotPool,
    way: Sender | SharedQueue,
    header: Header,
    tensors: Sequence[torch.Tensor] = (),
    *,
    tagged: bool = True,
) -> int:
    """Send a request as the gateway does: from a free slot of its pool, which is returned."""
    slot = pool.free.pop()
    metas = pool.memory.write(slot, tensors)
    if tagged:
        pool.memory.set_tag(slot, header.request, header.attempt)
    way.post(header._replace(slot=slot, home=slot, tensors=metas))
    return slot


class Ring(NamedTuple):
    """Stage loops with all their channels, and the gateway's ends."""

    pool: SlotPool
    ways: list[Sender]
    inbox: Inbox
    loops: list[StageLoop]
    readiness: list[Readiness]
    queue: SharedQueue | None = None

    def send(self, header: Header, tensors: Sequence[torch.Tensor] = (), *, stage: int = 0) -> int:
        """Send a request to a stage; returns its slot."""
        return post(self.pool, self.ways[stage], header, tensors)

    def close(self, *, graceful: bool = True) -> None:
        """Say goodbye to all stages, or leave them."""
        if self.queue is not None:
            self.queue.close()
        for way in self.ways:
            way.close(graceful=graceful)
        self.pool.close()


def open_ring(
    executors: Sequence[Executor],
    windows: Windows,
    *,
    kind: Callable[[int, int], str] = lambda sender, receiver: "shm",
    slots: int = 200,
    slot_nbytes: int = 1024,
    baseline_s: Sequence[Sequence[float]] | None = None,
    cost_s: float = 0.0,
    shared: bool = False,
) -> Ring:
    """Connect stages to all later ones and the gateway, as :mod:`odin.cluster.deployment` and the actors do.

    ``kind`` tells the kind of channel from one index to another; ``slots`` are those of the gateway. With ``shared``
    all take new requests from one queue as well.
    """
    count, layers = len(executors), windows.layer_count
    readiness = [Readiness() for _ in executors]
    inlet = SlotPool(slots, slot_nbytes)
    queue = SharedQueue(stages=count) if shared else None
    receivers: dict[int, list[Receiver]] = {stage: [] for stage in range(GATEWAY, count)}
    from_gateway: list[Sender] = []
    for stage in range(count):
        sender, receiver = open_pair(
            kind(GATEWAY, stage),
            slots=slots,
            slot_nbytes=slot_nbytes,
            credits=False,
            readiness=readiness[stage],
            receiver=stage,
            pool=inlet,
            queue=queue,
        )
        from_gateway.append(sender)
        receivers[stage].append(receiver)
    senders: list[dict[int, Sender]] = [{} for _ in executors]
    for stage in range(count):
        targets = (*range(stage + 1, count), GATEWAY)
        here = sum(kind(stage, target) == "shm" for target in targets)
        pool = SlotPool(min(1 + here, 4), slot_nbytes) if here else None
        for target in targets:
            senders[stage][target], receiver = open_pair(
                kind(stage, target),
                slot_nbytes=slot_nbytes,
                sender=stage,
                receiver=target,
                pool=pool if kind(stage, target) == "shm" else None,
                readiness=None if target == GATEWAY else readiness[target],
            )
            receivers[target].append(receiver)
    baseline_s = baseline_s or [[1e-3] * layers] * count
    loops = [
        StageLoop(
            stage,
            executor,
            Inbox(receivers[stage]),
            senders[stage],
            readiness=readiness[stage],
            hand_over=HandOver(
                stage,
                baseline_s=baseline_s,
                cost_s=[cost_s] * (layers + 1),
                cut_nbytes=[slot_nbytes] * (layers + 1),
                readiness=readiness[stage],
                later={target: one for target, one in senders[stage].items() if target != GATEWAY},
            ),
            epoch=0,
            windows=windows,
        )
        for stage, executor in enumerate(executors)
    ]
    return Ring(inlet, from_gateway, Inbox(receivers[GATEWAY]), loops, readiness, queue)


@contextlib.contextmanager
def one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    """Loops in threads of this process: each computes with one thread, and a goodbye that is never said hangs."""
    limits = {module: module._GOODBYE_TIMEOUT_S for module in (shm, tcp)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for module in limits:
            module._GOODBYE_TIMEOUT_S = 600.0
        yield
    finally:
        torch.set_num_threads(threads)
        for module, limit_s in limits.items():
            module._GOODBYE_TIMEOUT_S = limit_s


def received(receiver: Inbox | Receiver) -> tuple[Header, tuple[torch.Tensor, ...]]:
    """The next message's header and copies of its tensors; its slot is given back."""
    message = receiver.receive()
    values = tuple(tensor.clone() for tensor in message.tensors)
    message.release()
    return message.header, values
