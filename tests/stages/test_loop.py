"""Stage loops, several in one process with real channels: plans change, layers fail, neighbours die."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from channels import Ring, one_thread_and_no_way_out_by_time_limit, open_ring, received
from layers import SLOT_NBYTES, FakeLayer, OverlapExecutor, images, small_chain
from patience import PROMPT_S
from torch import nn

from odin.monitor.timing import unpack_timings
from odin.partitioner.chain import build_chain
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.executor import Result, Values
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.loop import DEADLINE, StageLoop

MIXED = ("shm", "tcp", "shm", "tcp")
both_paths = pytest.mark.parametrize("make", [CpuExecutor, OverlapExecutor])


@pytest.fixture(autouse=True)
def _one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    with one_thread_and_no_way_out_by_time_limit():
        yield


class Running(NamedTuple):
    ring: Ring
    receiver: Inbox
    loops: list[StageLoop]
    ends: list[Future[None]]

    def prepare(self, epoch: int, plan: Plan) -> None:
        for loop in self.loops:
            loop.prepare(epoch, Windows.of_plan(plan))

    def send(self, number: int, *values: torch.Tensor, **fields: Any) -> None:
        self.ring.send(Header(Kind.REQUEST, number, **fields), values)

    def result(self) -> tuple[Header, Values]:
        return received(self.receiver)

    def loss(self) -> int | None:
        """Who is gone, as the gateway finds out."""
        try:
            while True:
                self.receiver.receive().release()
        except ChannelClosedError as error:
            return error.peer


def serve(loop: StageLoop) -> None:
    torch.set_num_threads(1)
    loop.run()


@contextlib.contextmanager
def running(
    executors: Sequence[Any], plan: Plan, *, kinds: Sequence[str] = MIXED, slots: int = 200
) -> Iterator[Running]:
    """Stages in threads; on leaving, every loop has to come to its end by itself."""

    def kind(sender: int, receiver: int) -> str:
        """Between a stage and the next, and a stage and the gateway."""
        if receiver in (sender + 1, GATEWAY):
            return kinds[sender + 1]
        return "tcp"

    ring = open_ring(executors, Windows.of_plan(plan), kind=kind, slots=slots, slot_nbytes=SLOT_NBYTES)
    loops = ring.loops
    with ThreadPoolExecutor(len(loops)) as pool:
        run = Running(ring, ring.inbox, loops, [pool.submit(serve, loop) for loop in loops])
        try:
            yield run
        finally:
            ring.close(graceful=False)
            run.receiver.close()
            for end in run.ends:
                end.exception(PROMPT_S)


def chain_executors(make: type[CpuExecutor], count: int) -> list[CpuExecutor]:
    chain = small_chain()
    return [make(chain.program.layers, chain.state) for _ in range(count)]


def fake_executors(make: type[CpuExecutor], *layers: FakeLayer, count: int = 3) -> list[CpuExecutor]:
    return [make(layers, {}) for _ in range(count)]


def random_plan(rng: random.Random, layers: int, stages: int) -> Plan:
    cuts = sorted(rng.choices(range(layers + 1), k=stages - 1))
    return Plan(last - first for first, last in zip((0, *cuts), (*cuts, layers), strict=True))


@both_paths
@pytest.mark.parametrize("counts", [(1, 1), (2, 0), (0, 2)], ids=str)
def test_nan_that_arises_in_one_stage_is_kept_by_the_stages_after_it(make: type[CpuExecutor], counts):
    """A fused ReLU in the second stage made zeros of it; the header tells that stage to keep NaN from now on."""
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    chain = build_chain(nn.Sequential(*layers).eval(), (torch.rand(1, 3, 8, 8),), minimum_share=0.0)
    packed = chain.program.pack(chain.state)
    good, bad = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    bad[0, 0, 4, 4] = torch.nan
    with running([make(chain.program.layers, packed) for _ in counts], Plan(counts)) as run:
        for number, image in enumerate((good, bad, good)):
            run.send(number, *chain.layout((image,)))
        results = [run.result() for _ in range(3)]
    for (header, values), image in zip(results, (good, bad, good), strict=True):
        (expected,) = chain.run(chain.layout((image,)))
        assert header.keep_nan is (image is bad)
        assert torch.equal(values[0].isnan(), expected.isnan())
        assert torch.equal(values[0].nan_to_num(), expected.nan_to_num())
    assert results[1][1][0].isnan().any()


@both_paths
def test_plans_change_under_load_and_every_output_is_the_chains(make: type[CpuExecutor]):
    chain, rng = small_chain(), random.Random(0)
    inputs, plans = images(120), [random_plan(random.Random(1), len(chain.layers), 3)]
    with running(chain_executors(make, 3), plans[0]) as run, ThreadPoolExecutor(1) as pool:
        epochs: list[int] = []

        def send_all() -> None:
            for number, image in enumerate(inputs):
                if rng.random() < 0.3:
                    plans.append(random_plan(rng, len(chain.layers), 3))
                    run.prepare(len(plans) - 1, plans[-1])  # while earlier requests are under way
                epochs.append(len(plans) - 1)
                run.send(number, image, epoch=epochs[-1])

        sending = pool.submit(send_all)
        numbers = set()
        for _ in inputs:
            header, values = run.result()
            numbers.add(header.request)
            assert (header.kind, header.epoch) == (Kind.REQUEST, epochs[header.request])
            assert torch.equal(values[0], chain.run((inputs[header.request],))[0])
            timings = unpack_timings(header.timings)
            ranges = plans[header.epoch].ranges
            assert {timing.stage: (timing.first, timing.last) for timing in timings}.items() >= {
                (stage, one) for stage, one in enumerate(ranges) if one[0] < one[1]
            }
            assert [timing.stage for timing in timings] == sorted({timing.stage for timing in timings})
            assert all(len(timing.layer_s) == timing.last - timing.first for timing in timings)
            assert all(min(timing[3:8]) >= 0 for timing in timings)
        sending.result()
        assert numbers == set(range(len(inputs)))
        assert len(plans) > 20


@both_paths
def test_a_layer_that_raises_fails_its_request_and_no_other(make: type[CpuExecutor]):
    def refuse_three(values: torch.Tensor) -> torch.Tensor:
        if values[0] == 3:
            raise ArithmeticError("three is too much")
        return values + 10

    layers = (FakeLayer("stem", lambda x: x), FakeLayer("block.1", refuse_three), FakeLayer("head", lambda x: 2 * x))
    with running(fake_executors(make, *layers), Plan((1, 1, 1))) as run:
        for number in range(6):
            run.send(number, torch.full((4,), float(number)))
        for header, values in sorted((run.result() for _ in range(6)), key=lambda result: result[0].request):
            number = header.request
            if number == 3:
                assert header.kind is Kind.ERROR
                assert header.failure[:3] == ("layer block.1", "ArithmeticError", "three is too much")
                assert "refuse_three" in header.failure.traceback
                assert (values, header.tensors) == ((), ())
            else:
                assert (header.kind, header.failure) == (Kind.REQUEST, None)
                assert values[0].tolist() == [2.0 * (number + 10)] * 4


@both_paths
def test_a_passed_deadline_fails_the_request_before_its_layers_run(make: type[CpuExecutor]):
    ran: list[float] = []
    layers = (FakeLayer("a", lambda x: (ran.append(x.item()), x)[1]),)
    with running(fake_executors(make, *layers, count=1), Plan((1,))) as run:
        run.send(0, torch.tensor([5.0]), left_s=-2.0)
        run.send(1, torch.tensor([6.0]), left_s=600.0)
        header, _ = run.result()
        assert (header.kind, header.failure.kind, header.failure.where) == (Kind.ERROR, DEADLINE, "stage 0")
        assert "before this stage's turn" in header.failure.message
        assert run.result()[0].kind is Kind.REQUEST
        assert ran == [6.0]


@both_paths
def test_a_request_that_nobody_waits_for_is_dropped(make: type[CpuExecutor]):
    # Cancelled futures were computed all the same, though the stage had not begun with them.
    ran: list[float] = []
    layers = (FakeLayer("a", lambda x: (ran.append(x.item()), x)[1]),)
    with running(fake_executors(make, *layers, count=1), Plan((1,))) as run:
        pool, way = run.ring.pool, run.ring.ways[0]
        for become_unwanted in (
            pool.memory.clear_tag,
            lambda slot: pool.memory.set_tag(slot, 0, 1),  # it was sent again
            lambda slot: pool.memory.set_tag(slot, 7, 0),  # the slot is another request's
        ):
            slot = pool.free.pop()
            become_unwanted(slot)
            metas = pool.memory.write(slot, (torch.tensor([5.0]),))
            way.post(Header(Kind.REQUEST, 0, slot=slot, home=slot, tensors=metas))
        run.send(1, torch.tensor([6.0]))
        told = [run.result()[0] for _ in range(4)]  # the gateway may wait to hear of each: it had a holder
        assert [(header.kind, header.request) for header in told] == [(Kind.RETURNED, 0)] * 3 + [(Kind.REQUEST, 1)]
        assert ran == [6.0]


@both_paths
def test_a_timeout_inside_a_layer_is_not_a_deadline(make: type[CpuExecutor]):
    def time_out(values: torch.Tensor) -> torch.Tensor:
        raise TimeoutError("the layer's own")

    with running(fake_executors(make, FakeLayer("a", time_out), count=1), Plan((1,))) as run:
        run.send(0, torch.zeros(1))
        assert run.result()[0].failure[:3] == ("layer a", "TimeoutError", "the layer's own")


@both_paths
def test_a_request_of_an_epoch_that_a_stage_does_not_know_goes_back(make: type[CpuExecutor]):
    with running(fake_executors(make, FakeLayer("a", lambda x: x + 1)), Plan((1, 0, 0))) as run:
        run.loops[0].prepare(4, Windows.of_plan(Plan((0, 1, 0))))
        run.send(0, torch.zeros(1), epoch=4, oldest=4, attempt=2)  # stage 1 has never heard of it
        header, _ = run.result()
        assert (header.kind, header.request, header.attempt) == (Kind.RETURNED, 0, 2)
        run.send(1, torch.zeros(1), epoch=0)  # stage 0 has forgotten it
        header, _ = run.result()
        assert (header.kind, header.request, header.attempt) == (Kind.RETURNED, 1, 0)


@both_paths
def test_a_result_too_large_for_the_next_slot_fails_the_request_only(make: type[CpuExecutor]):
    with running(fake_executors(make, FakeLayer("a", lambda x: x.expand(SLOT_NBYTES)), count=1), Plan((1,))) as run:
        run.send(0, torch.zeros(1))
        failure = run.result()[0].failure
        assert failure[:2] == ("stage 0", "ValueError")
        assert f"{4 * SLOT_NBYTES} bytes do not fit a slot of {SLOT_NBYTES}" in failure.message
        run.send(1, torch.ones(1), cut=1)  # none of its layers is left
        assert run.result()[1][0].item() == 1.0


# -- the end ----------------------------------------------------------------------------------------------------------


@both_paths
def test_a_goodbye_follows_the_last_result_and_ends_every_loop(make: type[CpuExecutor]):
    inputs = images(10)
    with running(chain_executors(make, 3), Plan((2, 0, len(small_chain().layers) - 2))) as run:
        for number, image in enumerate(inputs):
            run.send(number, image)
        with ThreadPoolExecutor(1) as pool:
            assert [run.result()[0].request for _ in inputs] == list(range(10))
            closing = pool.submit(run.ring.close)
            assert run.result()[0].kind is Kind.CLOSE
            closing.result(PROMPT_S)
            run.receiver.close()
            for end in run.ends:
                end.result(PROMPT_S)


@both_paths
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_stage_is_named(make: type[CpuExecutor], lost: int):
    layers = [FakeLayer(name, lambda x: x) for name in "abc"]
    with running(fake_executors(make, *layers), Plan((1, 1, 1))) as run:
        run.send(0, torch.zeros(1))
        assert run.result()[0].request == 0
        run.loops[lost].stop()
        assert run.loss() == lost
        run.ends[lost].result(PROMPT_S)


@both_paths
def test_without_a_gateway_all_end(make: type[CpuExecutor]):
    with running(fake_executors(make, FakeLayer("a", lambda x: x)), Plan((1, 0, 0))) as run:
        run.ring.close(graceful=False)
        assert {run.loss() for _ in range(3)} == {0, 1, 2}
        for end in run.ends:
            end.result(PROMPT_S)
        assert all(loop.gateway_gone for loop in run.loops)


@both_paths
def test_when_nobody_takes_results_a_loop_that_has_one_ends(make: type[CpuExecutor]):
    with running(fake_executors(make, FakeLayer("a", lambda x: x)), Plan((1, 0, 0))) as run:
        run.receiver.close()
        with contextlib.suppress(ChannelClosedError):
            for number in range(200):
                run.send(number, torch.zeros(1))
        run.ends[0].result(PROMPT_S)
        assert run.loops[0].gateway_gone


class Defect(BaseException):
    """What no loop expects."""


def raise_defect(values: torch.Tensor) -> torch.Tensor:
    raise Defect


def test_a_loop_that_dies_of_a_defect_looks_lost_and_not_finished():
    with running(fake_executors(CpuExecutor, FakeLayer("a", raise_defect)), Plan((0, 1, 0))) as run:
        run.send(0, torch.zeros(1))
        assert run.loss() == 1
        with pytest.raises(Defect):
            run.ends[1].result(PROMPT_S)


def test_stop_wakes_a_loop_that_waits_for_a_slot():
    with running(
        fake_executors(CpuExecutor, FakeLayer("a", lambda x: x), count=1), Plan((1,)), kinds=("shm", "shm")
    ) as run:
        for number in range(3):  # two fill the ring to us, the third waits
            run.send(number, torch.zeros(1))
        held = [run.receiver.receive() for _ in range(2)]
        assert [message.header.request for message in held] == [0, 1]
        run.loops[0].stop()
        run.ends[0].result(PROMPT_S)


# -- preparing --------------------------------------------------------------------------------------------------------


class NotingExecutor(CpuExecutor):
    """Notes what it is asked, and waits in ``prepare`` and in layers as told."""

    def __init__(self, *layers: FakeLayer) -> None:
        super().__init__(layers, {})
        self.asked: list[tuple[Any, ...]] = []
        self.waits, self.preparing, self.go_on = False, threading.Event(), threading.Event()

    def prepare(self, first: int, last: int) -> None:
        self.asked.append(("prepare", first, last))
        if self.waits:
            self.preparing.set()
            assert self.go_on.wait(PROMPT_S)

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.asked.append(("retain", *ranges))


def test_an_epoch_is_forgotten_when_a_request_says_that_none_of_it_is_under_way():
    executor = NotingExecutor(*(FakeLayer(name, lambda x: x + 1) for name in "abc"))
    with running([executor], Plan((3,))) as run:
        for epoch in (1, 2, 3):
            run.prepare(epoch, Plan((3,)))
        for number, (epoch, oldest) in enumerate(((0, 0), (2, 0), (0, 0), (2, 2), (3, 2), (3, 3))):
            run.send(number, torch.zeros(1), epoch=epoch, oldest=oldest)
        assert [run.result()[1][0].item() for _ in range(6)] == [3] * 6
        run.send(6, torch.zeros(1), epoch=2, oldest=2)
        assert run.result()[0].kind is Kind.RETURNED
    assert executor.asked == [*[("prepare", 0, 3)] * 4, ("retain", (0, 3), (0, 3)), ("retain", (0, 3))]


def test_requests_flow_while_a_stage_prepares_and_nothing_is_freed_meanwhile():
    executor = NotingExecutor(FakeLayer("a", lambda x: x + 1))
    with running([executor], Plan((1,))) as run, ThreadPoolExecutor(1) as pool:
        run.prepare(1, Plan((1,)))
        executor.waits = True
        preparing = pool.submit(run.prepare, 2, Plan((1,)))
        assert executor.preparing.wait(PROMPT_S)
        for number, epoch in enumerate((0, 1, 1)):
            run.send(number, torch.zeros(1), epoch=epoch, oldest=epoch)
        assert [run.result()[1][0].item() for _ in range(3)] == [1, 1, 1]
        assert not preparing.done()
        executor.go_on.set()
        preparing.result(PROMPT_S)
        run.send(3, torch.zeros(1), epoch=2, oldest=1)
        assert run.result()[1][0].item() == 1
    assert executor.asked == [*[("prepare", 0, 1)] * 3, ("retain", (0, 1), (0, 1))]


def test_preparing_does_not_wait_for_the_request_under_way():
    inside, go_on = threading.Event(), threading.Event()

    def wait(values: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert go_on.wait(PROMPT_S)
        return values

    with running([CpuExecutor([FakeLayer("a", wait)], {})], Plan((1,))) as run:
        run.send(0, torch.zeros(1))
        assert inside.wait(PROMPT_S)
        run.prepare(1, Plan((1,)))
        go_on.set()
        run.send(1, torch.zeros(1), epoch=1)
        assert [run.result()[0].epoch for _ in range(2)] == [0, 1]


# -- overlap ----------------------------------------------------------------------------------------------------------


def test_the_next_request_is_launched_while_one_is_finishing():
    launched: list[float] = []
    second = threading.Event()

    class Overlap(CpuExecutor):
        overlaps = True

        def launch(self, first: int, last: int, values: Values) -> Result:
            launched.append(values[0].item())
            if len(launched) == 2:
                second.set()
            return super().launch(first, last, values)

        def finish(self, ticket: Result) -> Result:
            assert second.wait(PROMPT_S)  # the first waits here until the second has been launched
            return ticket

    with running([Overlap([FakeLayer("a", lambda x: x + 1)], {})], Plan((1,))) as run:
        for number in range(4):
            run.send(number, torch.tensor([float(number)]))
        assert [run.result()[1][0].item() for _ in range(4)] == [1, 2, 3, 4]
        assert launched == [0, 1, 2, 3]
