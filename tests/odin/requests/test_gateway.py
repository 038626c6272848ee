"""The gateway: each result to its own future, a bound on what is under way, and no caller left waiting."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from channels import KINDS, numbers, open_pair
from gateways import OnePartGateway
from patience import PROMPT_S

from odin.errors import DeadlineExceededError, LayerFailedError, PipelineClosedError, StageLostError
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin.requests.gateway import GatewayCounts
from odin.stages.channel import shm, tcp
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.link import ChannelClosedError, Message, Receiver, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import Failure, Header, Kind
from odin.stages.loop import DEADLINE

BLOCKED_S = 0.2


class Stage(NamedTuple):
    """The whole pipeline behind a gateway, played by the test."""

    gateway: OnePartGateway
    receiver: Receiver
    sender: Sender
    timelines: list[RequestTimeline]
    gone: list[int]

    def take(self) -> Message:
        while (message := self.receiver.receive()).header.kind is Kind.REQUEST and not message.wanted:
            message.release()  # as a stage does
        header = message.header
        if header.kind is Kind.REQUEST and self.receiver.within_machine:  # as a stage says that it has begun
            self.receiver.memory.set_holder(header.home, header.request, header.attempt, 0)
        return message

    def answer(self, message: Message, *values: torch.Tensor, timings: bytes = b"") -> None:
        self.sender.send(message.header._replace(tensors=(), timings=timings), values or message.tensors)
        message.release()

    def fail(self, message: Message, kind: str = "ValueError", *, timings: bytes = b"") -> None:
        failure = Failure("layer conv1", kind, "broken", "Traceback ...")
        self.sender.send(message.header._replace(kind=Kind.ERROR, tensors=(), failure=failure, timings=timings))
        message.release()

    def answer_until_closed(self) -> list[Header]:
        headers = []
        while (message := self.take()).header.kind is Kind.REQUEST:
            headers.append(message.header)
            self.answer(message)
        self.receiver.close()
        self.sender.close()
        return headers


@contextlib.contextmanager
def gateway_and_stage(*, max_in_flight: int = 2, kind: str = "shm", clock=None) -> Iterator[Stage]:
    pool = SlotPool(max_in_flight, 1024)
    gateway_out, stage_in = open_pair(kind, slots=max_in_flight, credits=False, pool=pool, receiver=0)
    stage_out, gateway_in = open_pair(kind, slots=2, sender=0)
    timelines: list[RequestTimeline] = []
    gone: list[int] = []
    options = {"clock": clock} if clock else {}
    gateway = OnePartGateway(
        Inlet(pool, {0: gateway_out}),
        Inbox([gateway_in]),
        plan=Plan((1,)),
        on_result=timelines.append,
        on_gone=gone.append,
        **options,
    )
    try:
        yield Stage(gateway, stage_in, stage_out, timelines, gone)
    finally:
        stage_in.close()
        stage_out.close(graceful=False)
        gateway.close(drain=False)
        assert not gateway._thread.is_alive()


def settled(future: Future) -> BaseException | None:
    return future.exception(PROMPT_S)


def check_every_permit_is_back(stage: Stage, max_in_flight: int) -> None:
    """As many requests as ever go in without waiting, and all come back."""
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(lambda: [stage.gateway.submit((numbers(n),)) for n in range(max_in_flight)])
        futures = submitting.result(PROMPT_S)
    assert stage.gateway.counts().in_flight == max_in_flight
    for _ in futures:
        stage.answer(stage.take())
    assert [settled(future) for future in futures] == [None] * max_in_flight
    assert stage.gateway._under_way.free == max_in_flight


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_results_reach_their_own_futures_in_order_of_submission(kind: str):
    with gateway_and_stage(max_in_flight=4, kind=kind) as stage, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(stage.answer_until_closed)
        futures = []
        for number in range(50):
            futures.append(stage.gateway.submit((numbers(number),)))
        for number, future in enumerate(futures):
            assert torch.equal(future.result(PROMPT_S)[0], numbers(number))
        stage.gateway.close()
        assert [header.request for header in serving.result(PROMPT_S)] == list(range(50))
        assert [timeline.request for timeline in stage.timelines] == list(range(50))
        assert stage.gateway.counts() == GatewayCounts(completed=50, failed=0, in_flight=0)


def test_results_are_copies_and_inputs_may_be_changed_after_submit():
    with gateway_and_stage() as stage:
        image = numbers(1)
        future = stage.gateway.submit((image,))
        image.zero_()
        message = stage.take()
        stage.answer(message)
        (result,) = future.result(PROMPT_S)
        for number in range(5):  # through every slot
            later = stage.gateway.submit((numbers(number),))
            stage.answer(stage.take())
            later.result(PROMPT_S)
        assert torch.equal(result, numbers(1))


def test_a_finished_request_has_a_timeline_before_its_future_is_done():
    times = itertools.count(10.0, 0.5)
    timings = (
        StageTiming(0, 0, 1, 0.1, 0.2, 0.3, 0.0, 0.0, (0.25,)),
        StageTiming(1, 1, 1, 0.0, 0.0, 0.0, 0.0, 0.0, ()),
    )
    with gateway_and_stage(clock=lambda: next(times)) as stage:
        stage.gateway.switch(3, Plan((1, 0)))
        future = stage.gateway.submit((numbers(0),))
        stage.answer(stage.take(), timings=b"".join(timing.pack() for timing in timings))
        future.result(PROMPT_S)
        expected = RequestTimeline(0, 3, 10.0, 10.5, timings, samples=100)
        assert stage.timelines == [expected]
        assert stage.gateway.window.timelines() == (expected,)


def test_requests_carry_the_newest_epoch():
    with gateway_and_stage(max_in_flight=3) as stage:
        stage.gateway.submit((numbers(0),))
        stage.gateway.switch(1, Plan((1, 0)))
        stage.gateway.submit((numbers(1),))
        assert [stage.take().header.epoch for _ in range(2)] == [0, 1]
        assert (stage.gateway.in_force.epoch, stage.gateway.plan) == (1, Plan((1, 0)))


def test_an_input_stays_in_its_slot_until_the_result_is_there():
    with gateway_and_stage(max_in_flight=2) as stage:
        for number in range(2):
            stage.gateway.submit((numbers(number),))
        first, second = stage.take(), stage.take()
        first.release()
        stage.answer(second)
        stage.gateway.submit((numbers(2),))  # into the second's slot
        third = stage.take()
        assert third.header.slot == second.header.slot
        assert torch.equal(first.tensors[0], numbers(0))


# -- failures ---------------------------------------------------------------------------------------------------------


def test_failures_reach_exactly_the_right_futures():
    with gateway_and_stage(max_in_flight=4) as stage:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(4)]
        messages = [stage.take() for _ in range(4)]
        stage.answer(messages[0])
        stage.fail(messages[1])
        stage.fail(messages[2], DEADLINE)
        stage.answer(messages[3])
        errors = [settled(future) for future in futures]
        assert [type(error) for error in errors] == [type(None), LayerFailedError, DeadlineExceededError, type(None)]
        assert str(errors[1]) == "layer conv1 raised ValueError: broken"
        assert (errors[1].where, errors[1].kind, errors[1].remote_traceback) == (
            "layer conv1",
            "ValueError",
            "Traceback ...",
        )
        assert stage.gateway.counts() == GatewayCounts(completed=2, failed=2, in_flight=0)
        assert [timeline.request for timeline in stage.timelines] == [0, 3]
        check_every_permit_is_back(stage, 4)


@pytest.mark.parametrize("kind", ["ValueError", DEADLINE])
def test_a_failure_tells_of_the_stages_that_had_the_request_before(kind: str):
    before = StageTiming(0, 0, 1, 0.25, 0.5, 0.5, 0.0, 0.0, (0.5,))
    with gateway_and_stage() as stage:
        future, other = stage.gateway.submit((numbers(1),)), stage.gateway.submit((numbers(2),))
        stage.fail(stage.take(), kind, timings=before.pack())
        stage.fail(stage.take(), kind)
        assert settled(future) is not None
        assert settled(other) is not None
        assert future.timeline.stages == (before,)
        assert other.timeline is None
        assert stage.timelines == []  # not among those that were answered


def test_what_fails_for_good_fails_everything_under_way_and_to_come():
    with gateway_and_stage(max_in_flight=2) as stage, ThreadPoolExecutor(1) as pool:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(2)]
        waiting = pool.submit(stage.gateway.submit, (numbers(2),))
        while not stage.gateway._waiting.line:
            assert not waiting.done()
        stage.gateway.fail(StageLostError("all stages are lost"))
        for future in (*futures, waiting):
            assert isinstance(settled(future), StageLostError)
        for refuse in (lambda: stage.gateway.submit((numbers(3),)), stage.gateway.check_open):
            with pytest.raises(StageLostError, match="all stages are lost"):
                refuse()
        with pytest.raises(StageLostError):
            stage.gateway.enqueue((numbers(3),))
        assert stage.gateway.counts() == GatewayCounts(completed=0, failed=2, in_flight=0)


def test_what_does_not_fit_is_refused_and_costs_no_permit():
    with gateway_and_stage(max_in_flight=2) as stage:
        for _ in range(5):
            with pytest.raises(ValueError, match="do not fit a slot"):
                stage.gateway.submit((torch.zeros(10_000),))
            with pytest.raises(ValueError, match="do not fit a slot"):
                stage.gateway.enqueue((torch.zeros(10_000),))
        assert stage.gateway.counts() == GatewayCounts(0, 0, 0)
        check_every_permit_is_back(stage, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_timings_that_cannot_be_read_leave_no_caller_waiting():
    # The request was no longer among the pending when this failed, and its future was forgotten.
    with gateway_and_stage() as stage:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(2)]
        stage.answer(stage.take(), timings=b"garbage")
        assert torch.equal(futures[0].result(PROMPT_S)[0], numbers(0))
        assert "the gateway failed: ValueError('timing records end early" in str(settled(futures[1]))


# -- backpressure -----------------------------------------------------------------------------------------------------


def test_no_more_than_max_in_flight_are_under_way():
    with gateway_and_stage(max_in_flight=3) as stage, ThreadPoolExecutor(1) as pool:
        for number in range(3):
            stage.gateway.submit((numbers(number),))
        waiting = threading.Event()
        fourth = pool.submit(lambda: (stage.gateway.submit((numbers(3),)), waiting.set())[0])
        assert not waiting.wait(BLOCKED_S)
        assert stage.gateway.counts().in_flight == 3
        stage.answer(stage.take())
        assert waiting.wait(PROMPT_S)
        for _ in range(3):
            stage.answer(stage.take())
        assert torch.equal(fourth.result().result(PROMPT_S)[0], numbers(3))


def test_waiting_callers_are_served_in_order():
    with gateway_and_stage(max_in_flight=1) as stage:
        futures = [stage.gateway.enqueue((numbers(number),)) for number in range(6)]
        assert len(stage.gateway._waiting.line) == 5
        for number in range(6):
            message = stage.take()
            assert torch.equal(message.tensors[0], numbers(number))
            stage.answer(message)
        assert [torch.equal(future.result(PROMPT_S)[0], numbers(n)) for n, future in enumerate(futures)] == [True] * 6
        check_every_permit_is_back(stage, 1)


def test_who_does_not_fit_is_told_when_its_turn_comes_and_costs_no_place():
    with gateway_and_stage(max_in_flight=1) as stage, ThreadPoolExecutor(1) as pool:
        stage.gateway.submit((numbers(0),))
        waiting = pool.submit(stage.gateway.submit, (torch.zeros(10_000),))
        while not stage.gateway._waiting.line:
            assert not waiting.done()
        later = [stage.gateway.enqueue((torch.zeros(10_000),)), stage.gateway.enqueue((numbers(1),))]
        stage.answer(stage.take())
        for future in (waiting, later[0]):
            assert "do not fit a slot" in str(settled(future))
        stage.answer(stage.take())
        assert settled(later[1]) is None
        check_every_permit_is_back(stage, 1)


def test_a_cancelled_future_costs_nothing_and_is_not_resolved():
    with gateway_and_stage(max_in_flight=2) as stage:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(2)]
        assert futures[0].cancel()
        stage.answer(stage.take())  # the other one's
        assert settled(futures[1]) is None
        assert futures[0].cancelled()
        check_every_permit_is_back(stage, 2)


def test_who_stops_waiting_leaves_the_line_and_is_not_sent():
    with gateway_and_stage(max_in_flight=1) as stage:
        first = stage.gateway.submit((numbers(9),))
        waiting = [stage.gateway.enqueue((numbers(number),)) for number in range(4)]
        assert [future.cancel() for future in waiting[:3]] == [True] * 3
        assert len(stage.gateway._waiting.line) == 1
        stage.answer(stage.take())
        assert settled(first) is None
        message = stage.take()
        assert torch.equal(message.tensors[0], numbers(3))
        stage.answer(message)
        assert settled(waiting[3]) is None
        check_every_permit_is_back(stage, 1)


def test_an_interrupt_while_waiting_costs_no_place(monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        taken = False

        def acquire(self, blocking=True):
            if self.taken and blocking:
                raise KeyboardInterrupt
            free, self.taken = not self.taken, True
            return free

        def release(self):
            self.taken = False

    with gateway_and_stage(max_in_flight=2) as stage:
        for number in range(2):
            stage.gateway.submit((numbers(number),))
        with monkeypatch.context() as patch:
            patch.setattr("odin.requests.gateway.threading.Lock", Interrupted)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    stage.gateway.submit((numbers(5),))
        assert not stage.gateway._waiting.line
        for _ in range(2):
            stage.answer(stage.take())
        stage_is_idle(stage)
        check_every_permit_is_back(stage, 2)


def stage_is_idle(stage: Stage) -> None:
    with stage.gateway._lock:
        assert stage.gateway._idle.wait_for(lambda: not stage.gateway._under_way.requests, PROMPT_S)


# -- closing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_close_lets_requests_finish_and_refuses_new_ones(kind: str, monkeypatch: pytest.MonkeyPatch):
    for module in (shm, tcp):
        monkeypatch.setattr(module, "_GOODBYE_TIMEOUT_S", 600.0)
    with gateway_and_stage(max_in_flight=2, kind=kind) as stage, ThreadPoolExecutor(3) as pool:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(2)]
        waiting = pool.submit(stage.gateway.submit, (numbers(2),))
        while not stage.gateway._waiting.line:
            assert not waiting.done()
        closing = pool.submit(stage.gateway.close)
        assert isinstance(settled(waiting), PipelineClosedError)
        with pytest.raises(PipelineClosedError, match="the pipeline is closed; start a new one"):
            stage.gateway.submit((numbers(3),))
        assert not closing.done()
        assert len(stage.answer_until_closed()) == 2
        closing.result(PROMPT_S)
        assert [torch.equal(future.result(0)[0], numbers(number)) for number, future in enumerate(futures)] == [
            True
        ] * 2
        stage.gateway.close()
        assert stage.gateway.counts() == GatewayCounts(completed=2, failed=0, in_flight=0)
        assert stage.gone == []


def test_close_without_drain_fails_what_is_under_way():
    with gateway_and_stage(max_in_flight=2) as stage:
        futures = [stage.gateway.submit((numbers(number),)) for number in range(2)]
        stage.gateway.close(drain=False)
        assert [type(settled(future)) for future in futures] == [PipelineClosedError] * 2
        assert stage.gone == []
        for _ in range(2):
            stage.take()
        with pytest.raises(ChannelClosedError):
            stage.take()


def test_all_stages_lost_while_draining_is_the_reason_that_callers_see():
    with gateway_and_stage(max_in_flight=1) as stage, ThreadPoolExecutor(1) as pool:
        future = stage.gateway.submit((numbers(0),))
        closing = pool.submit(stage.gateway.close)
        while not stage.gateway._draining:
            assert not closing.done()
        stage.gateway.fail(StageLostError("all stages are lost"))
        assert isinstance(settled(future), StageLostError)
        stage.receiver.close()
        closing.result(PROMPT_S)
        with pytest.raises(PipelineClosedError):
            stage.gateway.submit((numbers(1),))


def test_close_may_be_called_from_a_futures_callback():
    with gateway_and_stage(max_in_flight=1) as stage:
        closed = threading.Event()

        def close(_: Future) -> None:
            stage.gateway.close()
            closed.set()

        future = stage.gateway.submit((numbers(0),))
        future.add_done_callback(close)
        stage.answer(stage.take())
        assert stage.take().header.kind is Kind.CLOSE
        stage.receiver.close()
        stage.sender.close()
        assert closed.wait(PROMPT_S)
        stage.gateway._thread.join(PROMPT_S)
        with pytest.raises(PipelineClosedError):
            stage.gateway.check_open()
