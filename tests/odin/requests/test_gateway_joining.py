"""Requests that wait are joined into one micro-batch, and each has its own outcome all the same."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import pytest
import torch
from channels import open_pair
from gateways import OnePartGateway
from patience import PROMPT_S

from odin.errors import (
    DeadlineExceededError,
    LayerFailedError,
    OdinError,
    PipelineClosedError,
    PoisonRequestError,
    QueueFullError,
)
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin.requests.admission import Admission
from odin.requests.conditions import Conditions
from odin.requests.foresight import Foresight
from odin.requests.joining import Joining
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.link import Message, Receiver, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import WORKING
from odin.stages.channel.wire import Failure, Kind

HOUR_S = 3600.0
"""Of a full micro-batch on the stage; one sample takes half of that."""
BATCH = 4


class Stage(NamedTuple):
    gateway: OnePartGateway
    receiver: Receiver
    sender: Sender
    timelines: list[RequestTimeline]
    failures: list[tuple[int, OdinError]]

    def take(self) -> Message:
        while not (message := self.receiver.receive()).wanted:
            message.release()
        header = message.header
        self.receiver.memory.set_holder(header.home, header.request, header.attempt, 0)
        return message

    def answer(self, message: Message) -> None:
        """Twice its input."""
        timing = StageTiming(0, 0, 1, 0.0, HOUR_S, 0.0, 0.0, 0.0, (HOUR_S,))
        values = tuple(2 * tensor for tensor in message.tensors)
        self.sender.send(message.header._replace(tensors=(), timings=timing.pack()), values)
        message.release()

    def fail(self, message: Message) -> None:
        failure = Failure("layer conv1", "ValueError", "broken", "Traceback ...")
        self.sender.send(message.header._replace(kind=Kind.ERROR, tensors=(), failure=failure))
        message.release()

    def pass_all(self, count: int) -> list[int]:
        """Answer so many micro-batches; how many samples each had."""
        sizes = []
        for _ in range(count):
            message = self.take()
            sizes.append(message.header.samples)
            self.answer(message)
        return sizes

    def enqueue(self, value: float, samples: int = 1, **options: Any) -> Any:
        return self.gateway.enqueue((image(value, samples),), **options)


def image(value: float, samples: int = 1, width: int = 3) -> torch.Tensor:
    return torch.full((samples, 2, width, 3), value).contiguous(memory_format=torch.channels_last)


def in_hours(hours: float) -> float:
    return time.perf_counter() + hours * HOUR_S


@contextlib.contextmanager
def gateway_and_stage(
    *, slots: int = 1, wait_s: float = 0.0, max_waiting: int | None = None, foresees: bool = False
) -> Iterator[Stage]:
    pool = SlotPool(slots, 4096)
    gateway_out, stage_in = open_pair("shm", slots=slots, credits=False, pool=pool, receiver=0)
    stage_out, gateway_in = open_pair("shm", slots=2, sender=0, slot_nbytes=4096)
    timelines: list[RequestTimeline] = []
    failures: list[tuple[int, OdinError]] = []
    admission = Admission()
    admission.margin.factor = 1.0
    conditions = Conditions([[HOUR_S]], single_s=[[HOUR_S / 2]], batch=BATCH)
    gateway = OnePartGateway(
        Inlet(pool, {0: gateway_out}),
        Inbox([gateway_in]),
        plan=Plan((1,)),
        on_result=timelines.append,
        on_failure=lambda number, error: failures.append((number, error)),
        max_waiting=max_waiting,
        joining=Joining(BATCH, joins=True, wait_s=wait_s),
        foresight=Foresight(conditions, admission) if foresees else None,
    )
    try:
        yield Stage(gateway, stage_in, stage_out, timelines, failures)
    finally:
        stage_in.close()
        stage_out.close(graceful=False)
        gateway.close(drain=False)


def check(future: Any, value: float, samples: int = 1) -> None:
    (result,) = future.result(PROMPT_S)
    assert torch.equal(result, image(2 * value, samples))


def test_those_who_wait_go_together_and_each_gets_its_own_rows():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number, samples) for number, samples in enumerate((1, 1, 2, 1, 1))]
        message = stage.take()
        assert message.header.samples == 1  # a place was free: it went at once
        stage.answer(message)
        message = stage.take()
        (joined,) = message.tensors
        assert torch.equal(joined, torch.cat([image(1), image(2, 2), image(3)]))
        assert joined.is_contiguous(memory_format=torch.channels_last)
        stage.answer(message)
        assert stage.pass_all(1) == [1]
        for number, samples in enumerate((1, 1, 2, 1, 1)):
            check(futures[number], number, samples)
        assert stage.gateway.counts()[:3] == (5, 0, 0)


def test_a_result_keeps_no_memory_of_others():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(4)]
        stage.pass_all(2)
        for future in futures:
            (result,) = future.result(PROMPT_S)
            assert result.untyped_storage().nbytes() == result.numel() * result.element_size()


def test_parts_of_a_large_request_are_joined_with_others():
    with gateway_and_stage() as stage:
        first = stage.enqueue(9.0)
        parts = stage.gateway.enqueue_all([(image(1.0, 4),), (image(2.0, 2),)])
        other = stage.enqueue(3.0)
        assert stage.pass_all(3) == [1, 4, 3]
        for future, value, samples in ((first, 9, 1), (parts[0], 1, 4), (parts[1], 2, 2), (other, 3, 1)):
            check(future, value, samples)


def test_other_shapes_and_types_are_not_joined():
    with gateway_and_stage() as stage:
        stage.enqueue(0.0)
        stage.enqueue(1.0)
        wide = stage.gateway.enqueue((image(2.0, width=4),))
        exact = stage.gateway.enqueue((image(3.0).double(),))
        assert stage.pass_all(4) == [1, 1, 1, 1]
        assert wide.result(PROMPT_S)[0].shape == (1, 2, 4, 3)
        assert exact.result(PROMPT_S)[0].dtype == torch.float64


def test_what_does_not_fit_together_goes_one_by_one():
    with gateway_and_stage() as stage:
        stage.enqueue(0.0)
        futures = [stage.gateway.enqueue((image(number, width=60),)) for number in (1.0, 2.0, 3.0)]
        assert stage.pass_all(4) == [1, 1, 1, 1]
        for future in futures:
            assert future.exception(PROMPT_S) is None


def test_the_knob_is_turned_while_requests_flow():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(6)]
        stage.gateway.joining.largest = 2
        stage.answer(stage.take())
        message = stage.take()
        assert message.header.samples == 2
        stage.gateway.joining.largest = 1
        stage.answer(message)
        assert stage.pass_all(3) == [1, 1, 1]
        for number, future in enumerate(futures):
            check(future, number)


# -- deadlines and cancellations --------------------------------------------------------------------------------------


def test_a_cancelled_member_leaves_the_others_alone():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(4)]
        stage.answer(stage.take())
        message = stage.take()
        assert futures[2].cancel()
        assert message.wanted
        stage.answer(message)
        check(futures[1], 1)
        check(futures[3], 3)
        with pytest.raises(CancelledError):
            futures[2].result(PROMPT_S)


def test_a_member_whose_deadline_passes_fails_alone():
    with gateway_and_stage() as stage:
        stage.enqueue(0.0)
        late = stage.enqueue(1.0, deadline_s=in_hours(1.0))
        kept = stage.enqueue(2.0, deadline_s=in_hours(5.0))
        stage.answer(stage.take())
        message = stage.take()
        assert (message.header.samples, message.header.left_s) == (2, pytest.approx(5 * HOUR_S, rel=1e-3))
        (carrier,) = stage.gateway._under_way.requests.values()
        stage.gateway._expire(carrier.members[0])  # as when an hour has passed
        error = late.exception(PROMPT_S)
        assert isinstance(error, DeadlineExceededError)
        assert "with the stages" in str(error)
        stage.answer(message)
        check(kept, 2)
        assert [number for number, _ in stage.failures] == [1]
        assert stage.gateway.counts()[:3] == (2, 1, 0)


def test_what_nobody_waits_for_is_withdrawn():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(4)]
        first = stage.take()
        stage.answer(first)
        check(futures[0], 0)
        while not any(request.members for request in stage.gateway._under_way.requests.values()):
            time.sleep(0.001)
        for future in futures[1:]:
            future.cancel()
        assert stage.gateway.counts().in_flight == 0
        after = stage.enqueue(7.0)
        assert stage.pass_all(1) == [1]  # what was withdrawn is not wanted
        check(after, 7)


def test_the_earliest_deadlines_are_joined_first():
    with gateway_and_stage() as stage:
        deadlines = (math.inf, math.inf, in_hours(90), in_hours(50), in_hours(70), in_hours(80), in_hours(60))
        futures = [stage.enqueue(number, deadline_s=at_s) for number, at_s in enumerate(deadlines)]
        stage.answer(stage.take())
        message = stage.take()
        assert message.tensors[0][:, 0, 0, 0].tolist() == [3, 6, 4, 5]
        stage.answer(message)
        stage.pass_all(1)
        for number, future in enumerate(futures):
            check(future, number)


def test_fewer_are_joined_where_the_first_would_be_late():
    with gateway_and_stage(foresees=True) as stage:  # 0.5 h, 0.67 h, 0.83 h, 1 h for 1 to 4
        stage.enqueue(0.0)
        hurried = stage.enqueue(1.0, deadline_s=in_hours(1.2))
        for number in (2.0, 3.0, 4.0):
            stage.enqueue(number)
        stage.gateway._foresight.conditions._left_s[0] = time.perf_counter()
        first = stage.take()
        (begun,) = stage.gateway._under_way.requests.values()
        hurried_request = stage.gateway._waiting.line.head()
        hurried_request.deadline_s = in_hours(0.7)  # as after half an hour
        begun.submitted_s = time.perf_counter()
        stage.answer(first)
        assert stage.pass_all(1) == [2]
        assert hurried.exception(PROMPT_S) is None


def test_each_request_is_predicted_and_promised_for_itself():
    with gateway_and_stage(foresees=True) as stage:
        first = stage.enqueue(0.0)
        futures = [stage.enqueue(number, deadline_s=in_hours(9)) for number in (1.0, 2.0, 3.0)]
        stage.pass_all(2)
        for future in (first, *futures):
            assert future.exception(PROMPT_S) is None
        alone, together = stage.timelines
        assert (alone.samples, alone.requests, alone.in_time) == (1, 1, False)
        assert (together.samples, together.requests, together.in_time) == (3, 3, 3)
        own = [future.timeline for future in futures]
        assert [line.request for line in own] == [1, 2, 3]
        assert [line.requests for line in own] == [3, 0, 0]
        assert {line.in_time for line in own} == {True}
        assert all(line.stages == together.stages for line in own)
        # behind one that takes half an hour: as large a micro-batch as there is by then
        hours = [(line.expected_s - line.submitted_s) / HOUR_S for line in own]
        assert hours == pytest.approx([1.0, 0.5 + 2 / 3, 0.5 + 5 / 6], abs=0.01)


# -- holding back -----------------------------------------------------------------------------------------------------


def test_one_is_held_back_until_others_fill_the_micro_batch():
    with gateway_and_stage(slots=2, wait_s=HOUR_S) as stage:
        futures = [stage.enqueue(number) for number in range(3)]
        assert stage.gateway.counts().in_flight == 0
        futures.append(stage.enqueue(3))
        assert stage.pass_all(1) == [4]
        for number, future in enumerate(futures):
            check(future, number)


def test_it_is_held_back_no_longer_than_told():
    with gateway_and_stage(wait_s=0.01) as stage:
        future = stage.enqueue(1.0)
        assert stage.pass_all(1) == [1]
        check(future, 1)


@pytest.mark.parametrize("wait", [True, False])
def test_who_is_held_back_does_not_make_its_caller_wait(wait):
    """One thread would wait for itself: it is who comes with the others."""
    with gateway_and_stage(wait_s=HOUR_S) as stage:
        inputs = [image(number) for number in range(BATCH)]
        futures = [stage.gateway.submit((x,), wait=wait) for x in inputs]
        for x in inputs:
            x.zero_()  # the caller may change it at once; the last one was copied as it was sent
        assert stage.pass_all(1) == [BATCH]
        for number, future in enumerate(futures):
            check(future, number)


def test_who_submits_many_has_them_joined_and_does_not_wait():
    with gateway_and_stage() as stage:
        futures = []
        for number in range(1 + BATCH):
            x = image(number)
            futures += stage.gateway.submit_all([(x,)], many=True)
            x.zero_()
        assert stage.pass_all(2) == [1, BATCH]
        for number, future in enumerate(futures):
            check(future, number)


def test_closing_sends_those_who_are_held_back():
    with gateway_and_stage(wait_s=HOUR_S) as stage:
        futures = [stage.enqueue(number) for number in range(3)]
        closing = threading.Thread(target=stage.gateway.close)
        closing.start()
        assert stage.pass_all(1) == [3]
        for number, future in enumerate(futures):
            check(future, number)
        stage.receiver.close()
        stage.sender.close(graceful=False)
        closing.join(PROMPT_S)
        assert not closing.is_alive()


def test_closing_without_drain_fails_those_who_are_held_back():
    with gateway_and_stage(wait_s=HOUR_S) as stage:
        future = stage.enqueue(0)
        stage.gateway.close(drain=False)
        assert isinstance(future.exception(PROMPT_S), PipelineClosedError)


def test_closing_waits_for_those_who_are_sent_again_one_by_one():
    with gateway_and_stage(slots=2) as stage:
        stage.enqueue(9.0)
        gone = stage.enqueue(8.0)  # has a place until it is answered, though nobody waits for it
        futures = [stage.enqueue(number) for number in range(2)]
        first, second = stage.take(), stage.take()
        stage.answer(first)
        joined = stage.take()
        gone.cancel()
        closing = threading.Thread(target=stage.gateway.close)
        closing.start()
        while not stage.gateway._draining:
            time.sleep(0.001)
        stage.fail(joined)  # one has its place, the other waits for that
        assert stage.pass_all(2) == [1, 1]
        for number, future in enumerate(futures):
            check(future, number)
        second.release()
        stage.receiver.close()
        stage.sender.close(graceful=False)
        closing.join(PROMPT_S)
        assert not closing.is_alive()


def test_being_held_back_is_no_error_of_predictions():
    """Else what a stage takes would seem longer by the wait, and requests would be refused that are in time."""
    with gateway_and_stage(wait_s=2 * HOUR_S, foresees=True) as stage:
        futures = [stage.enqueue(number) for number in range(2)]
        (first, second) = stage.gateway._waiting.line
        for one in (first, second):  # as an hour ago
            forecast = one.forecast
            one.forecast = forecast._replace(made_s=forecast.made_s - HOUR_S, expected_s=forecast.expected_s - HOUR_S)
        stage.gateway.joining.largest = 2
        stage.gateway._let_in()
        sent_s = time.perf_counter()
        assert first.forecast.made_s == pytest.approx(sent_s, abs=PROMPT_S)
        assert first.forecast == second.forecast
        assert first.forecast.predicted_s == pytest.approx(2 / 3 * HOUR_S)
        stage.pass_all(1)
        for number, future in enumerate(futures):
            check(future, number)


def test_there_is_room_among_those_who_are_held_back():
    with gateway_and_stage(wait_s=HOUR_S) as stage:
        stage.enqueue(0.0, wait=False)
        stage.enqueue(1.0, 2, wait=False)
        with pytest.raises(QueueFullError):
            stage.enqueue(2.0, 2, wait=False)
        stage.enqueue(3.0, wait=False)
        assert stage.pass_all(1) == [4]


def test_the_line_is_bounded_by_micro_batches():
    with gateway_and_stage(max_waiting=1) as stage:
        futures = [stage.enqueue(number) for number in range(5)]
        with pytest.raises(QueueFullError, match="1 requests are under way and 1 wait, and max_waiting is 1"):
            stage.enqueue(5.0)
        with pytest.raises(QueueFullError):
            stage.enqueue(5.0, wait=False)
        assert stage.pass_all(2) == [1, 4]
        assert futures[4].exception(PROMPT_S) is None


# -- failures and losses ----------------------------------------------------------------------------------------------


def test_a_bad_input_fails_only_who_sent_it():
    with gateway_and_stage() as stage:
        first = stage.enqueue(0.0)
        inputs = [image(number) for number in (1.0, 2.0, 3.0)]
        futures = [stage.gateway.enqueue((one,)) for one in inputs]
        stage.answer(stage.take())
        check(first, 0)
        message = stage.take()
        for one in inputs:
            one.zero_()  # sent: what is sent again is what was in the slot
        stage.fail(message)
        for value in (1.0, 2.0, 3.0):
            message = stage.take()
            assert torch.equal(message.tensors[0], image(value))
            (stage.fail if value == 2.0 else stage.answer)(message)
        check(futures[0], 1)
        check(futures[2], 3)
        assert isinstance(futures[1].exception(PROMPT_S), LayerFailedError)
        assert [number for number, _ in stage.failures] == [2]
        assert stage.gateway.counts()[:3] == (3, 1, 0)


def test_the_last_one_left_of_a_failed_micro_batch_is_tried_as_well():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(3)]
        stage.answer(stage.take())
        message = stage.take()
        futures[1].cancel()
        stage.fail(message)
        assert stage.pass_all(1) == [1]
        check(futures[2], 2)


def test_one_that_ends_stages_fails_alone():
    with gateway_and_stage() as stage:
        gateway, words = stage.gateway, stage.gateway.sender(0).readiness.words
        futures = [stage.enqueue(number) for number in range(3)]
        stage.answer(stage.take())
        message = stage.take()
        words[WORKING] = message.header.request
        message.release()
        assert gateway.lose(0, "stage 0", dead=False) == (1, 0)
        gateway.regain(0, replaced=True)
        message = stage.take()
        assert torch.equal(message.tensors[0], image(1.0))  # one by one
        words[WORKING] = message.header.request
        message.release()
        gateway.lose(0, "stage 0 again", dead=False)
        gateway.regain(0, replaced=True)
        message = stage.take()
        words[WORKING] = message.header.request
        message.release()
        assert gateway.lose(0, "stage 0 once more", dead=False) == (1, 1)
        assert isinstance(futures[1].exception(PROMPT_S), PoisonRequestError)
        words[WORKING] = -1.0
        gateway.regain(0, replaced=True)
        assert stage.pass_all(1) == [1]
        check(futures[2], 2)


def test_a_micro_batch_that_only_waited_at_a_lost_stage_is_sent_again_as_it_was():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(3)]
        stage.answer(stage.take())
        stage.take().release()
        assert stage.gateway.lose(0, "stage 0", dead=False) == (1, 0)
        stage.gateway.regain(0, replaced=True)
        assert stage.pass_all(1) == [2]
        for number, future in enumerate(futures):
            check(future, number)


def test_closing_lets_those_who_were_joined_finish():
    with gateway_and_stage() as stage:
        futures = [stage.enqueue(number) for number in range(4)]
        stage.answer(stage.take())
        message = stage.take()
        stage.answer(message)
        stage.gateway.close(drain=False)
        for future in futures[1:]:
            assert future.done()
