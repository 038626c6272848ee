"""The gateway refuses what would be late, sends by deadline, bounds its line, and tells what was expected."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from channels import numbers, open_pair
from gateways import OnePartGateway
from patience import PROMPT_S

from odin.errors import DeadlineExceededError, QueueFullError
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin.requests.admission import Admission
from odin.requests.conditions import Conditions
from odin.requests.foresight import Foresight
from odin.requests.gateway import GatewayCounts
from odin.requests.margin import Margin
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.link import Message, Receiver, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import Failure, Kind
from odin.stages.loop import DEADLINE

HOUR_S = 3600.0
"""Of one request on the stage, so that no deadline of a test passes while it runs."""


class Stage(NamedTuple):
    gateway: OnePartGateway
    receiver: Receiver
    sender: Sender
    timelines: list[RequestTimeline]
    failures: list[int]
    refusals: list[int]

    def take(self) -> Message:
        while not (message := self.receiver.receive()).wanted:
            message.release()  # as a stage does
        header = message.header
        self.receiver.memory.set_holder(header.home, header.request, header.attempt, 0)  # it has begun
        return message

    def answer(self, message: Message) -> None:
        timing = StageTiming(0, 0, 1, 0.0, HOUR_S, 0.0, 0.0, 0.0, (HOUR_S,))
        self.sender.send(message.header._replace(tensors=(), timings=timing.pack()), message.tensors)
        message.release()

    @property
    def margin(self) -> Margin:
        return self.gateway._foresight.admission.margin

    def become_slower(self) -> None:
        conditions = self.gateway._foresight.conditions
        conditions._slowdown[0], conditions._seen_s[0] = 3.0, time.perf_counter()

    def pass_all(self, count: int) -> list[int]:
        order = []
        for _ in range(count):
            message = self.take()
            order.append(message.header.request)
            self.answer(message)
        return order


def in_hours(hours: float) -> float:
    return time.perf_counter() + hours * HOUR_S


@contextlib.contextmanager
def gateway_and_stage(
    *, refuses: bool = True, max_in_flight: int = 1, max_waiting: int | None = None
) -> Iterator[Stage]:
    """A stage that takes an hour for a request, as far as predictions are concerned, which have always been right."""
    pool = SlotPool(max_in_flight, 1024)
    gateway_out, stage_in = open_pair("shm", slots=max_in_flight, credits=False, pool=pool, receiver=0)
    stage_out, gateway_in = open_pair("shm", slots=2, sender=0)
    admission = Admission(refuses=refuses)
    admission.margin.factor = 1.0
    told: tuple[list[RequestTimeline], list[int], list[int]] = ([], [], [])
    gateway = OnePartGateway(
        Inlet(pool, {0: gateway_out}),
        Inbox([gateway_in]),
        plan=Plan((1,)),
        on_result=told[0].append,
        on_failure=lambda number, error: told[1].append(number),
        on_refusal=told[2].append,
        foresight=Foresight(Conditions([[HOUR_S]]), admission),
        max_waiting=max_waiting,
    )
    try:
        yield Stage(gateway, stage_in, stage_out, *told)
    finally:
        stage_in.close()
        stage_out.close(graceful=False)
        gateway.close(drain=False)


def refusal_of(future: object) -> DeadlineExceededError:
    assert future.done()
    error = future.exception()
    assert isinstance(error, DeadlineExceededError)
    return error


def test_what_would_be_late_is_refused_at_once_with_the_reason():
    with gateway_and_stage() as stage:
        first = stage.gateway.submit((numbers(0),), deadline_s=in_hours(1.5))
        error = refusal_of(stage.gateway.submit((numbers(1),), deadline_s=in_hours(1.5)))
        assert error.refused
        assert error.predicted_s == pytest.approx(2 * HOUR_S, rel=1e-3)
        assert str(error).startswith("refused: it would be done in 7")
        assert "its deadline is in 5" in str(error)
        assert "with 1 request ahead of it" in str(error)
        assert stage.gateway.counts() == GatewayCounts(completed=0, failed=0, in_flight=1, refused=1)
        assert (stage.failures, stage.refusals) == ([], [1])
        assert stage.pass_all(1) == [0]
        assert first.exception(PROMPT_S) is None


def test_it_is_refused_before_there_is_an_input_to_copy():
    with gateway_and_stage() as stage:
        assert stage.gateway.refuse_if_late(1, in_hours(1.1)) is None
        error = refusal_of(stage.gateway.refuse_if_late(2, in_hours(1.9)))
        assert error.refused
        assert stage.refusals == [2]
        assert stage.gateway.refuse_if_late(9, math.inf) is None
        error = refusal_of(stage.gateway.refuse_if_late(1, time.perf_counter() - 1.0))
        assert "its deadline passed 1000." in str(error)


def test_without_admission_all_are_taken_and_predicted():
    with gateway_and_stage(refuses=False) as stage:
        future = stage.gateway.submit((numbers(0),), deadline_s=in_hours(0.5))
        stage.pass_all(1)
        assert future.exception(PROMPT_S) is None
        (timeline,) = stage.timelines
        assert timeline.in_time
        assert timeline.expected_s - timeline.submitted_s == pytest.approx(HOUR_S, rel=1e-3)


def test_the_earliest_deadline_is_sent_first_and_who_has_none_in_order():
    with gateway_and_stage() as stage:
        deadlines = (math.inf, in_hours(9), math.inf, in_hours(5), in_hours(7))
        futures = [stage.gateway.enqueue((numbers(number),), deadline_s=at_s) for number, at_s in enumerate(deadlines)]
        assert stage.pass_all(5) == [0, 3, 4, 1, 2]
        assert [future.exception(PROMPT_S) for future in futures] == [None] * 5


def test_who_would_make_an_accepted_one_late_is_refused():
    with gateway_and_stage() as stage:
        stage.gateway.enqueue((numbers(0),))
        stage.gateway.enqueue((numbers(1),), deadline_s=in_hours(2.5))
        error = refusal_of(stage.gateway.enqueue((numbers(2),), deadline_s=in_hours(2.2)))
        assert "an accepted one behind it would be late" in str(error)
        roomy = stage.gateway.enqueue((numbers(3),), deadline_s=in_hours(3.2))
        assert not roomy.done()


def test_what_is_expected_is_kept_up_when_others_go_first():
    with gateway_and_stage() as stage:
        begin_s = time.perf_counter()
        deadlines = (math.inf, in_hours(9), in_hours(8), in_hours(7))
        futures = [stage.gateway.enqueue((numbers(number),), deadline_s=at_s) for number, at_s in enumerate(deadlines)]
        stage.pass_all(4)
        for future in futures:
            assert future.exception(PROMPT_S) is None
        expected = {line.request: (line.expected_s - begin_s) / HOUR_S for line in stage.timelines}
        assert [expected[number] for number in range(4)] == pytest.approx([1.0, 4.0, 3.0, 2.0], rel=1e-2)


def test_a_large_request_is_taken_as_a_whole_or_not_at_all():
    with gateway_and_stage() as stage, ThreadPoolExecutor(1) as pool:
        parts = [(numbers(number),) for number in range(3)]
        replies = stage.gateway.submit_all(parts, deadline_s=in_hours(2.9))
        assert [refusal_of(reply).refused for reply in replies] == [True] * 3
        assert stage.gateway.counts().in_flight == 0
        submitting = pool.submit(stage.gateway.submit_all, parts, deadline_s=in_hours(3.1))
        assert stage.pass_all(3) == [0, 1, 2]
        assert [reply.exception(PROMPT_S) for reply in submitting.result(PROMPT_S)] == [None] * 3


def test_an_accepted_one_that_would_be_late_by_now_is_dropped_before_it_is_sent():
    with gateway_and_stage() as stage:
        stage.gateway.enqueue((numbers(0),))
        accepted = stage.gateway.enqueue((numbers(1),), deadline_s=in_hours(2.2))
        follows = stage.gateway.enqueue((numbers(2),), deadline_s=in_hours(20))
        stage.margin.factor = 1.01
        stage.become_slower()
        assert stage.pass_all(2) == [0, 2]
        error = accepted.exception(PROMPT_S)
        assert isinstance(error, DeadlineExceededError)
        assert not error.refused
        assert "dropped in line" in str(error)
        assert stage.margin.factor == pytest.approx(1.01 + 0.2 * 0.01)
        assert follows.exception(PROMPT_S) is None
        assert stage.failures == [1]


def test_whether_promises_were_kept_is_learned():
    with gateway_and_stage() as stage:
        stage.margin.factor = 1.2
        kept = stage.gateway.submit((numbers(0),), deadline_s=in_hours(1.5))
        stage.pass_all(1)
        assert kept.exception(PROMPT_S) is None
        once = 1.2 - 0.0002 * 0.2
        assert stage.margin.factor == pytest.approx(once)
        late = stage.gateway.submit((numbers(1),), deadline_s=in_hours(1.5))
        message = stage.take()
        stage.gateway._expire(stage.gateway._under_way.requests[1])  # as when an hour and a half has passed
        stage.answer(message)
        assert isinstance(late.exception(PROMPT_S), DeadlineExceededError)
        follows = stage.gateway.submit((numbers(2),))  # so that the late answer has been seen as well
        stage.pass_all(1)
        assert follows.exception(PROMPT_S) is None
        assert stage.margin.factor == pytest.approx(once + 0.2 * (once - 1.0))


def test_so_is_that_a_stage_gave_one_up():
    with gateway_and_stage() as stage:
        late = stage.gateway.submit((numbers(0),), deadline_s=in_hours(1.5))
        stage.margin.factor = 1.5
        message = stage.take()
        failure = Failure("stage 0", DEADLINE, "its deadline passed before this stage's turn", "")
        stage.sender.send(message.header._replace(kind=Kind.ERROR, tensors=(), failure=failure), ())
        message.release()
        assert isinstance(late.exception(PROMPT_S), DeadlineExceededError)
        assert stage.margin.factor == pytest.approx(1.6)


def test_who_waits_in_submit_for_one_that_is_dropped_gets_its_future():
    with gateway_and_stage() as stage, ThreadPoolExecutor(1) as pool:
        stage.gateway.submit((numbers(0),))
        submitting = pool.submit(stage.gateway.submit, (numbers(1),), deadline_s=in_hours(2.2))
        while not len(stage.gateway._waiting.line):
            time.sleep(0.001)
        stage.become_slower()
        stage.pass_all(1)
        assert isinstance(submitting.result(PROMPT_S).exception(PROMPT_S), DeadlineExceededError)


# -- room -------------------------------------------------------------------------------------------------------------


def test_who_does_not_want_to_wait_is_told_that_there_is_no_room():
    with gateway_and_stage(max_in_flight=2) as stage:
        stage.gateway.submit((numbers(0),), wait=False)
        with pytest.raises(QueueFullError, match="1 requests are under way and 0 wait, and max_in_flight is 2"):
            stage.gateway.submit_all([(numbers(1),), (numbers(2),)], wait=False)
        stage.gateway.submit((numbers(1),), wait=False)
        with pytest.raises(QueueFullError) as caught:
            stage.gateway.enqueue((numbers(2),), wait=False)
        assert (caught.value.in_flight, caught.value.waiting, caught.value.limit) == (2, 0, 2)
        assert stage.pass_all(2) == [0, 1]


def test_the_line_is_bounded_for_those_who_enqueue():
    with gateway_and_stage(max_waiting=2) as stage:
        for number in range(3):
            stage.gateway.enqueue((numbers(number),))
        with pytest.raises(QueueFullError, match="1 requests are under way and 2 wait, and max_waiting is 2"):
            stage.gateway.enqueue((numbers(3),))
        assert stage.pass_all(3) == [0, 1, 2]
        stage.gateway.enqueue((numbers(4),))
        assert stage.pass_all(1) == [3]


def test_what_cannot_go_in_as_a_whole_leaves_nothing_behind():
    with gateway_and_stage(max_in_flight=3) as stage:
        parts = [(numbers(0),), (numbers(1, count=100_000),)]  # the second one does not fit a slot
        with pytest.raises(ValueError, match="bytes do not fit"):
            stage.gateway.enqueue_all(parts)
        assert stage.gateway.counts().in_flight == 0
        kept = stage.gateway.enqueue((numbers(2),))
        assert stage.pass_all(1) == [2]  # and not the first part, which was sent
        assert kept.exception(PROMPT_S) is None
