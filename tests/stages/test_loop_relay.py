"""Three stage loops under windows: any cut, any later stage, and nothing but the place of a layer changes."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from channels import Ring, one_thread_and_no_way_out_by_time_limit, open_ring, received
from layers import SLOT_NBYTES, FakeLayer, images, small_chain
from patience import PROMPT_S

from odin.monitor.timing import StageTiming, unpack_timings
from odin.partitioner.relay import Windows
from odin.stages.channel.readiness import IDLE_SINCE_S, waiting
from odin.stages.channel.wire import Header, Kind
from odin.stages.compute.executor import Executor, Values
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.loop import DEADLINE

LAYERS = 6
WHOLE = "@0-6|@0-6|@6"


@pytest.fixture(autouse=True)
def _one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    with one_thread_and_no_way_out_by_time_limit():
        yield


class Running(NamedTuple):
    ring: Ring
    ends: list[Future[None]]

    def send(self, number: int, *values: torch.Tensor, **fields: Any) -> int:
        return self.ring.send(Header(Kind.REQUEST, number, **fields), values or (torch.zeros(1),))

    def result(self) -> tuple[Header, Values]:
        return received(self.ring.inbox)

    def ranges(self) -> dict[int, tuple[int, int]]:
        """Of the next result: which layers ran where."""
        return {timing.stage: (timing.first, timing.last) for timing in unpack_timings(self.result()[0].timings)}


class Gates:
    """Layers that add one; those that are named wait in a stage until they are let go on."""

    def __init__(self, *held: tuple[int, int]) -> None:
        self.reached = {place: threading.Event() for place in held}
        self.go_on = {place: threading.Event() for place in held}

    def executors(self, count: int = 3) -> list[CpuExecutor]:
        return [
            CpuExecutor([FakeLayer(f"l{layer}", self.layer(stage, layer)) for layer in range(LAYERS)], {})
            for stage in range(count)
        ]

    def layer(self, stage: int, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(values: torch.Tensor) -> torch.Tensor:
            if (stage, layer) in self.reached:
                self.reached[stage, layer].set()
                assert self.go_on[stage, layer].wait(PROMPT_S)
            return values + 1

        return run


@contextlib.contextmanager
def running(executors: Gates | Sequence[Executor], windows: str = WHOLE, **options: Any) -> Iterator[Running]:
    """Stages in threads; on leaving, every loop has to come to its end by itself."""
    gates = executors if isinstance(executors, Gates) else Gates()
    executors = executors.executors() if isinstance(executors, Gates) else executors
    ring = open_ring(executors, Windows.parse(windows), slot_nbytes=SLOT_NBYTES, **options)
    with ThreadPoolExecutor(len(ring.loops)) as pool:
        try:
            yield (run := Running(ring, [pool.submit(loop.run) for loop in ring.loops]))
        finally:
            for gate in gates.go_on.values():
                gate.set()
            ring.close(graceful=False)
            ring.inbox.close()
            for end in run.ends:
                end.exception(PROMPT_S)


def covers(timings: Sequence[StageTiming], layers: int) -> bool:
    """Whether each layer ran once, on later and later stages."""
    stages = [timing.stage for timing in timings]
    cuts = [0, *(timing.last for timing in timings)]
    return stages == sorted(set(stages)) and [timing.first for timing in timings] == cuts[:-1] and cuts[-1] == layers


def test_idle_stages_get_a_request_as_soon_as_they_can_and_the_last_answers():
    with running(Gates()) as run:
        run.send(0)
        header, values = run.result()
        assert values[0].item() == LAYERS
        timings = unpack_timings(header.timings)
        assert [(timing.stage, timing.first) for timing in timings] == [(0, 0), (1, 1), (2, 2)]
        assert covers(timings, LAYERS)


def test_a_stage_that_will_not_be_free_for_long_is_passed_by_and_overtaken():
    gates = Gates((1, 1))
    with running(gates) as run:
        run.send(0)  # one layer here, then held on stage 1
        assert gates.reached[1, 1].wait(PROMPT_S)
        # Stage 1 is busy for longer than anything takes here: it is passed by.
        run.ring.readiness[1].words[0] = float("inf")
        run.send(1)
        header, values = run.result()
        assert (header.request, values[0].item()) == (1, LAYERS)
        assert 1 not in {timing.stage for timing in unpack_timings(header.timings)}
        gates.go_on[1, 1].set()
        assert run.result()[0].request == 0


@pytest.mark.parametrize("kinds", [None, "mixed"])
def test_values_are_the_chains_bit_for_bit_whatever_windows_hold_and_epochs_are_forgotten(kinds: str | None):
    chain, rng = small_chain(), random.Random(0)
    layers, inputs = len(chain.layers), images(150)
    executors = [CpuExecutor(chain.program.layers, chain.state) for _ in range(3)]
    options: dict[str, Any] = {}
    if kinds is not None:
        options["kind"] = lambda sender, receiver: "tcp" if {1, 2} & {sender, receiver} == {1, 2} else "shm"
    with running(executors, f"@0-{layers}|@0-{layers}|@{layers}", **options) as run, ThreadPoolExecutor(1) as pool:
        epochs: list[int] = []
        lock = threading.Lock()
        pending: dict[int, int] = {}

        def send_all() -> None:
            epoch = 0
            for number, image in enumerate(inputs):
                if rng.random() < 0.3:
                    low, high = sorted(rng.choices(range(layers + 1), k=2))
                    other = sorted(rng.choices(range(low, layers + 1), k=2))
                    windows = Windows([(low, high), (max(low, other[0]), max(high, other[1])), (layers, layers)])
                    epoch += 1
                    for loop in run.ring.loops:
                        loop.prepare(epoch, windows)
                epochs.append(epoch)
                with lock:
                    pending[number] = epoch
                    oldest = min(pending.values())
                run.send(number, image, epoch=epoch, oldest=oldest)

        sending = pool.submit(send_all)
        for _ in inputs:
            header, values = run.result()
            with lock:
                del pending[header.request]
            assert (header.kind, header.failure) == (Kind.REQUEST, None)
            assert header.epoch == epochs[header.request]
            assert torch.equal(values[0], chain.run((inputs[header.request],))[0])
            assert covers(unpack_timings(header.timings), layers)
        sending.result(PROMPT_S)
        last = epochs[-1]
        run.send(0, inputs[0], epoch=last, oldest=last)
        run.result()
        assert min(run.ring.loops[0]._under) == last


def test_a_stage_goes_on_by_itself_while_all_later_ones_hang():
    gates = Gates((1, 0), (2, 0), (3, 0))
    faster = [[1e-3] * LAYERS, *[[1e-9] * LAYERS] * 3]  # so that they get all that there is room for
    with running(gates.executors(4), "@0-6|@0-6|@0-6|@6", baseline_s=faster) as run:
        try:
            run.send(0)
            assert gates.reached[1, 0].wait(PROMPT_S)
            run.ring.readiness[1].words[IDLE_SINCE_S] = 0.0  # so that one will wait there, too
            for number in range(1, 12):
                run.send(number)
            with ThreadPoolExecutor(1) as pool:
                answers = pool.submit(lambda: [run.result() for _ in range(12 - 3)])
                try:
                    assert {values[0].item() for _, values in answers.result(PROMPT_S)} == {LAYERS}
                finally:
                    for gate in gates.go_on.values():
                        gate.set()
            assert [run.result()[1][0].item() for _ in range(3)] == [LAYERS] * 3
        finally:
            for gate in gates.go_on.values():
                gate.set()


def test_windows_of_one_cut_are_a_plan():
    with running(Gates(), "@2|@3|@6") as run:
        run.send(0)
        assert run.ranges() == {0: (0, 2), 1: (2, 3), 2: (3, 6)}
    with running(Gates(), "@2|@2|@6") as run:
        run.send(0)
        assert run.ranges() == {0: (0, 2), 2: (2, 6)}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_layer_that_raises_fails_its_request_wherever_it_runs(stage: int):
    def refuse(values: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no")

    executors = Gates().executors()
    executors[stage] = CpuExecutor([FakeLayer(f"l{layer}", refuse) for layer in range(LAYERS)], {})
    with running(executors, "@2|@4|@6") as run:
        run.send(0)
        header, values = run.result()
        assert (header.kind, header.request, values) == (Kind.ERROR, 0, ())
        assert header.failure[:3] == (f"layer l{2 * stage}", "ArithmeticError", "no")
        assert len(unpack_timings(header.timings)) == stage


def test_a_late_request_is_answered_by_the_first_stage():
    with running(Gates()) as run:
        run.send(1, left_s=-1.0)
        assert run.result()[0].failure[:2] == ("stage 0", DEADLINE)
        run.send(2)
        assert run.result()[1][0].item() == LAYERS


def test_a_deadline_that_passes_on_the_way_is_found_by_the_stage_that_gets_the_request():
    gates = Gates((0, 0))
    with running(gates, "@2|@4|@6") as run:
        run.send(0, left_s=0.0)
        run.send(1, left_s=600.0)
        gates.go_on[0, 0].set()
        results = {header.request: header for header, _ in (run.result() for _ in range(2))}
        assert results[0].failure.kind == DEADLINE
        assert results[1].failure is None


def test_a_graceful_end():
    with running(Gates()) as run, ThreadPoolExecutor(1) as pool:
        for number in range(30):
            run.send(number)
        assert sorted(run.result()[0].request for _ in range(30)) == list(range(30))
        closing = pool.submit(run.ring.close)
        assert run.result()[0].kind is Kind.CLOSE
        run.ring.inbox.close()
        closing.result(PROMPT_S)
        for end in run.ends:
            end.result(PROMPT_S)


def test_places_come_back_whatever_becomes_of_requests():
    with running(Gates(), slots=8) as run:
        for number in range(40):
            slot = run.send(number, left_s=-1.0 if number % 3 == 0 else 600.0)
            assert run.result()[0].request == number
            run.ring.pool.free.append(slot)
        for readiness in run.ring.readiness:
            assert waiting(readiness.words) == 0
