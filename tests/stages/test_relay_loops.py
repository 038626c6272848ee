"""Two stage loops in one process, with made-up layers, that hand over by readiness: one hangs, and recovers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import KINDS, post, request
from layers import FakeLayer
from patience import PROMPT_S

from odin.monitor.timing import unpack_timings
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import Receiver, Sender
from odin.stages.channel.opening import Listener, connect
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.hand_over import HandOver
from odin.stages.loop import StageLoop

LAYERS, REQUESTS = 6, 40


def executor(function: Callable[[torch.Tensor], torch.Tensor]) -> CpuExecutor:
    return CpuExecutor([FakeLayer(f"layer {number}", function) for number in range(LAYERS)], {})


def open_channel(
    kind: str, readiness: Readiness, sender: int, slots: int = 2, *, inlet: SlotPool | None = None
) -> tuple[Sender, Receiver]:
    listener = Listener("" if kind == "shm" else "127.0.0.1", readiness)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        opened = connect(
            listener.address, slots=slots, slot_nbytes=1024, credits=sender != GATEWAY, sender=sender, pool=inlet
        )
        return opened, accepting.result()


def make_loop(
    index: int, run: CpuExecutor, incoming: Sequence[Receiver], later: dict[int, Sender], readiness: Readiness
) -> StageLoop:
    hand_over = HandOver(
        index,
        baseline_s=[[0.001] * LAYERS] * 2,
        cost_s=[0.0] * (LAYERS + 1),
        cut_nbytes=[64] * (LAYERS + 1),
        readiness=readiness,
        later={stage: sender for stage, sender in later.items() if stage != GATEWAY},
    )
    return StageLoop(
        index,
        run,
        Inbox(incoming),
        later,
        readiness=readiness,
        hand_over=hand_over,
        epoch=0,
        windows=Windows.whole(stage_count=2, layer_count=LAYERS),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_that_hangs_keeps_what_it_has_and_the_other_does_the_rest(kind: str):
    hangs, goes_on, none = threading.Event(), threading.Event(), Readiness()

    def hang(value: torch.Tensor) -> torch.Tensor:
        hangs.set()
        assert goes_on.wait(PROMPT_S)
        return value + 1

    def add(value: torch.Tensor) -> torch.Tensor:
        if not hangs.is_set():  # until the other one has a request, this one is slow
            hangs.wait(0.002)
        return value + 1

    words = [Readiness(), Readiness()]
    inlet = SlotPool(2 * REQUESTS, 1024)  # one memory for all stages, where they note who has a request
    to_first, at_first = open_channel("shm", words[0], GATEWAY, 2 * REQUESTS, inlet=inlet)
    to_second, at_second = open_channel(kind, words[1], 0)
    goodbye, gateway_at_second = open_channel("shm", words[1], GATEWAY, 2 * REQUESTS, inlet=inlet)
    first_out, first_answers = open_channel("shm", none, 0)
    second_out, second_answers = open_channel("shm", none, 1)
    answers = Inbox([first_answers, second_answers])
    loops = [
        make_loop(0, executor(add), [at_first], {1: to_second, GATEWAY: first_out}, words[0]),
        make_loop(1, executor(hang), [at_second, gateway_at_second], {GATEWAY: second_out}, words[1]),
    ]
    results: dict[int, tuple[float, Header]] = {}

    def take(count: int) -> None:
        while len(results) < count:
            message = answers.receive()
            number = message.header.request
            assert message.header.kind is Kind.REQUEST, message.header.failure
            results[number] = (float(message.tensors[0][0]), message.header)
            message.release()

    def send(number: int) -> None:
        post(inlet, to_first, request(number), (torch.full((16,), float(number)),))

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(loop.run) for loop in loops]
        for number in range(REQUESTS):
            send(number)
        try:
            pool.submit(take, REQUESTS - 6).result(PROMPT_S)  # the other has one, one waits, few are on the way at most
            assert hangs.is_set()
        finally:
            goes_on.set()
        pool.submit(take, REQUESTS).result(PROMPT_S)
        closing = pool.submit(lambda: [end.close() for end in (to_first, goodbye)])
        assert answers.receive().header.kind is Kind.CLOSE
        answers.close()
        for ending in (closing, *running):
            ending.result(PROMPT_S)
    assert {number: value for number, (value, _) in results.items()} == {n: float(n + LAYERS) for n in range(REQUESTS)}
    for _, header in results.values():
        ranges = [(timing.first, timing.last) for timing in unpack_timings(header.timings)]
        assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
        assert ranges[-1][1] == LAYERS
    stages = [len(unpack_timings(header.timings)) for _, header in results.values()]
    assert 2 in stages
    assert 1 in stages
