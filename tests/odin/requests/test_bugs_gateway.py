"""Faults that the gateway had: deadlines that did not hold, callbacks that stopped everything, cancels that did not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from channels import KINDS, numbers, open_pair, post
from patience import PROMPT_S
from test_gateway import Stage, check_every_permit_is_back, gateway_and_stage, settled

from odin.errors import DeadlineExceededError, PipelineClosedError, StageLostError
from odin.options import check_timeout
from odin.process.timers import Timers
from odin.requests import replies
from odin.requests.gateway import GatewayCounts
from odin.requests.microbatch import join_outputs
from odin.requests.replies import outcome_of
from odin.stages import loop
from odin.stages.channel import shm
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import Header, Kind


def by_and_by() -> float:
    """A deadline that comes only by :func:`deadlines_pass`, however long the machine keeps a test waiting."""
    return time.perf_counter() + 600.0


def deadlines_pass(stage: Stage) -> None:
    """From now on the gateway's timers find every deadline passed, those to come as well."""
    timers = stage.gateway._timers
    with timers._changed:
        timers._clock = lambda: math.inf
        timers._changed.notify()


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_holds_while_the_stages_hang_and_the_late_answer_is_dropped(kind: str):
    # Only a stage that got to the request looked at its deadline: on one that hung, the future waited for ever.
    with gateway_and_stage(max_in_flight=2, kind=kind) as stage:
        future = stage.gateway.submit((numbers(0),), deadline_s=by_and_by())
        message = stage.take()
        deadlines_pass(stage)
        assert isinstance(settled(future), DeadlineExceededError)
        assert "with the stages" in str(settled(future))
        # its input is still being read: the place is free only with the answer
        assert stage.gateway.counts() == GatewayCounts(completed=0, failed=1, in_flight=1)
        assert stage.gateway._under_way.free == 1
        stage.answer(message)
        other = stage.gateway.submit((numbers(1),))
        stage.answer(stage.take())
        assert torch.equal(other.result(PROMPT_S)[0], numbers(1))
        assert isinstance(settled(future), DeadlineExceededError)
        assert stage.gateway.counts() == GatewayCounts(completed=1, failed=1, in_flight=0)
        assert [timeline.request for timeline in stage.timelines] == [
            0,
            1,
        ]  # what the stages took is known all the same
        check_every_permit_is_back(stage, 2)


def test_a_deadline_holds_while_waiting_for_a_place():
    with gateway_and_stage(max_in_flight=1) as stage:
        first = stage.gateway.submit((numbers(0),))
        deadlines_pass(stage)
        waiting = stage.gateway.submit((numbers(1),), deadline_s=by_and_by())  # returns, failed, though nothing moves
        assert isinstance(settled(waiting), DeadlineExceededError)
        assert "in line for a place" in str(settled(waiting))
        queued = stage.gateway.enqueue((numbers(2),), deadline_s=by_and_by())
        assert isinstance(settled(queued), DeadlineExceededError)
        stage.answer(stage.take())
        assert settled(first) is None
        check_every_permit_is_back(stage, 1)


def test_a_deadline_holds_while_a_callback_blocks():
    with gateway_and_stage(max_in_flight=2) as stage:
        go_on = threading.Event()
        first = stage.gateway.submit((numbers(0),))
        first.add_done_callback(lambda _: go_on.wait(PROMPT_S))
        stage.answer(stage.take())
        second = stage.gateway.submit((numbers(1),), deadline_s=by_and_by())
        deadlines_pass(stage)
        assert isinstance(settled(second), DeadlineExceededError)
        go_on.set()


def test_a_deadline_that_has_passed_fails_the_request_without_sending_it():
    with gateway_and_stage(max_in_flight=1) as stage:
        late = stage.gateway.submit((numbers(0),), deadline_s=time.perf_counter() - 1.0)
        assert isinstance(late.exception(0), DeadlineExceededError)
        ontime = stage.gateway.submit((numbers(1),), deadline_s=time.perf_counter() + 600.0)
        stage.answer(stage.take())
        assert torch.equal(ontime.result(PROMPT_S)[0], numbers(1))
        assert len(stage.gateway._timers) == 0
        check_every_permit_is_back(stage, 1)


def test_parts_of_one_request_share_its_deadline():
    with gateway_and_stage(max_in_flight=2) as stage:
        deadline_s = by_and_by()
        whole = join_outputs([stage.gateway.enqueue((numbers(n),), deadline_s=deadline_s) for n in range(4)], tuple)
        deadlines_pass(stage)
        assert isinstance(settled(whole), DeadlineExceededError)
        check_every_permit_is_back(stage, 2)


def test_close_does_not_wait_for_stages_that_hang_with_nothing_anyone_waits_for():
    with gateway_and_stage(max_in_flight=2) as stage:
        late = stage.gateway.submit((numbers(0),), deadline_s=by_and_by())
        cancelled = stage.gateway.submit((numbers(1),))
        deadlines_pass(stage)
        assert isinstance(settled(late), DeadlineExceededError)
        assert cancelled.cancel()
        stage.gateway.close(timeout_s=600.0)
        assert stage.gateway.counts() == GatewayCounts(completed=0, failed=1, in_flight=0)


def test_close_with_drain_ends_at_its_bound_on_a_stage_that_hangs():
    with gateway_and_stage(max_in_flight=1) as stage:
        future = stage.gateway.submit((numbers(0),))
        stage.gateway.close(timeout_s=0.05)
        assert isinstance(settled(future), PipelineClosedError)


def test_the_time_left_travels_and_not_the_time_of_day():
    # Wall clocks of two machines differ, and jump.
    with gateway_and_stage() as stage:
        before_s = time.perf_counter()
        stage.gateway.submit((numbers(0),), deadline_s=before_s + 500.0)
        header = stage.take().header
        assert before_s + 500.0 - 1e-3 <= header.sent_s + header.left_s <= time.perf_counter() + 500.0
        stage.gateway.submit((numbers(1),))
        assert stage.take().header.left_s == float("inf")
    for module in (loop, shm):
        assert "time.time()" not in Path(module.__file__).read_text()


@pytest.mark.parametrize("value", ["5", b"5", float("nan"), np.nan, True, [1.0], torch.tensor(1.0), 1j, object()])
def test_a_timeout_that_is_no_number_of_seconds_is_named(value: object):
    with pytest.raises(ValueError, match="timeout_s="):
        check_timeout(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, np.inf), (np.inf, np.inf), (-np.inf, -np.inf), (10**400, np.inf), (1e300, 1e300), (2, 2.0),
     (np.float32(0.5), 0.5), (np.int64(3), 3.0), (Fraction(1, 4), 0.25), (-1.0, -1.0)],
)  # fmt: skip
def test_any_number_of_seconds_will_do(value: float, seconds: float):
    assert check_timeout(value) == seconds


@pytest.mark.parametrize("left_s", [1e300, 1e12])
def test_a_deadline_far_away_is_none(left_s: float):
    with gateway_and_stage() as stage:
        future = stage.gateway.submit((numbers(0),), deadline_s=time.perf_counter() + left_s)
        stage.answer(stage.take())
        assert settled(future) is None


def test_timers_call_in_the_order_of_their_times_survive_what_they_call_and_forget_what_is_off():
    now_s, called, done = [0.0], [], threading.Event()
    timers = Timers(clock=lambda: now_s[0])
    many = [timers.add(1e9 + n, lambda: called.append("never")) for n in range(1000)]
    for timer in many:
        timer.cancel()
        timer.cancel()
    assert len(timers) == 0
    assert len(timers._heap) <= 65
    timers.add(3.0, lambda: (called.append(3), done.set()))
    timers.add(2.0, lambda: (called.append(2), (_ for _ in ()).throw(SystemExit)))
    timers.add(1.0, lambda: called.append(1)).cancel()
    now_s[0] = 5.0
    timers.add(4.0, lambda: None)
    timers.add(0.0, lambda: called.append(0))  # wakes the thread
    assert done.wait(PROMPT_S)
    assert called == [0, 2, 3]
    timers.close()
    timers.close()
    timers.add(0.0, lambda: called.append("closed"))
    assert called == [0, 2, 3]


# -- callbacks --------------------------------------------------------------------------------------------------------


def serve(stage: Stage, pool: ThreadPoolExecutor) -> None:
    pool.submit(stage.answer_until_closed)


def from_a_callback(act) -> object:
    """Call ``act(stage)`` in a callback while another caller waits for the only place."""
    with gateway_and_stage(max_in_flight=1) as stage, ThreadPoolExecutor(2) as pool:
        came: concurrent.futures.Future = concurrent.futures.Future()
        first = stage.gateway.submit((numbers(0),))
        waiting = pool.submit(stage.gateway.submit, (numbers(1),))
        while not stage.gateway._waiting.line:
            assert not waiting.done()

        def callback(_: object) -> None:
            try:
                came.set_result(act(stage))
            except BaseException as error:
                came.set_exception(error)

        first.add_done_callback(callback)
        serve(stage, pool)
        outcome = came.result(PROMPT_S)
        assert first.result(0)
        second = waiting.result(PROMPT_S)
        assert settled(second) is None  # answered: never failed
        stage.gateway.close()
        return outcome


def test_a_callback_may_submit_though_it_has_to_wait():
    # The thread that called it was the one that frees places.
    future = from_a_callback(lambda stage: stage.gateway.submit((numbers(7),)))
    assert torch.equal(future.result(PROMPT_S)[0], numbers(7))


def test_a_callback_may_wait_for_a_result():
    def act(stage: Stage) -> torch.Tensor:
        return stage.gateway.submit((numbers(7),)).result(PROMPT_S)[0]

    assert torch.equal(from_a_callback(act), numbers(7))


def test_a_callback_may_use_another_thread_that_submits():
    def act(stage: Stage) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: stage.gateway.submit((numbers(7),)).result(PROMPT_S)[0]).result(PROMPT_S)

    assert torch.equal(from_a_callback(act), numbers(7))


def test_a_callback_may_close_and_nothing_that_was_answered_fails():
    # It waited 60 seconds for requests that only its own thread could have resolved, and then failed them.
    with gateway_and_stage(max_in_flight=3) as stage, ThreadPoolExecutor(1) as pool:
        closed = threading.Event()
        futures = [stage.gateway.submit((numbers(n),)) for n in range(3)]
        futures[0].add_done_callback(lambda _: (stage.gateway.close(), closed.set()))
        told = []
        futures[2].add_done_callback(lambda _: told.append(2))
        serve(stage, pool)
        assert closed.wait(PROMPT_S)
        assert [settled(future) for future in futures] == [None] * 3
        stage.gateway.callbacks._thread.join(PROMPT_S)
        assert told == [2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, BaseException])
def test_a_callback_may_raise_anything(error: type[BaseException]):
    # What is no Exception went through the gateway's thread and ended it.
    def fail(_: object) -> None:
        raise error

    with gateway_and_stage(max_in_flight=1) as stage:
        for number in range(3):
            future = stage.gateway.submit((numbers(number),))
            future.add_done_callback(fail)
            stage.answer(stage.take())
            assert torch.equal(future.result(PROMPT_S)[0], numbers(number))
        told = threading.Event()
        future = stage.gateway.submit((numbers(3),))
        future.add_done_callback(lambda _: told.set())
        stage.answer(stage.take())
        assert told.wait(PROMPT_S)
        assert stage.gateway._thread.is_alive()


def test_closing_calls_the_callbacks_that_are_still_to_be_called():
    with gateway_and_stage(max_in_flight=4) as stage, ThreadPoolExecutor(1) as pool:
        told = []
        serve(stage, pool)
        for number in range(4):
            future = stage.gateway.submit((numbers(number),))
            future.add_done_callback(lambda _, number=number: told.append(number))
        stage.gateway.close()
        assert told == [0, 1, 2, 3]


def test_slow_callbacks_hold_requests_up_and_not_memory_and_not_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies, "_BEHIND", 2)
    monkeypatch.setattr("odin.requests.waiting._TRICKLE_S", 600.0)
    with gateway_and_stage(max_in_flight=4) as stage, ThreadPoolExecutor(1) as pool:
        began, go_on, own = threading.Event(), threading.Event(), concurrent.futures.Future()

        def slow(_: object) -> None:
            began.set()
            go_on.wait(PROMPT_S)
            own.set_result(stage.gateway.submit((numbers(9),)))

        for callback in (slow, repr, repr):
            future = stage.gateway.submit((numbers(0),))
            future.add_done_callback(callback)
            stage.answer(stage.take())
            settled(future)
            assert began.wait(PROMPT_S)
        assert stage.gateway.callbacks.behind
        waiting = pool.submit(stage.gateway.submit, (numbers(3),))
        while not stage.gateway._waiting.line:
            assert not waiting.done()
        assert stage.gateway.counts().in_flight == 0
        go_on.set()
        inputs = [stage.take(), stage.take()]
        assert [message.tensors[0][0].item() for message in inputs] == [9000, 3000]
        for message in inputs:
            stage.answer(message)
        assert settled(waiting.result(PROMPT_S)) is None
        assert settled(own.result(PROMPT_S)) is None


def test_a_callback_that_waits_for_others_while_too_many_wait_is_let_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies, "_BEHIND", 1)
    monkeypatch.setattr("odin.requests.waiting._TRICKLE_S", 0.01)
    with gateway_and_stage(max_in_flight=4) as stage, ThreadPoolExecutor(2) as pool:
        told = threading.Event()

        def callback(_: object) -> None:
            pool.submit(lambda: stage.gateway.submit((numbers(7),)).result(PROMPT_S)).result(PROMPT_S)

        first, second = (stage.gateway.submit((numbers(n),)) for n in range(2))
        first.add_done_callback(callback)
        second.add_done_callback(lambda _: told.set())
        serve(stage, pool)
        assert told.wait(PROMPT_S)
        stage.gateway.close()


# -- cancels ----------------------------------------------------------------------------------------------------------


def test_what_is_cancelled_while_the_first_stage_is_busy_is_recalled_from_it():
    with gateway_and_stage(max_in_flight=4) as stage:
        futures = [stage.gateway.submit((numbers(n),)) for n in range(4)]
        first = stage.take()
        assert [future.cancel() for future in futures[1:]] == [True] * 3
        assert stage.gateway._under_way.free == 3
        unwanted = [stage.receiver.receive() for _ in range(3)]
        assert [message.wanted for message in (first, *unwanted)] == [True, False, False, False]
        stage.answer(first)
        assert settled(futures[0]) is None
        check_every_permit_is_back(stage, 4)  # and all of the next are wanted
        assert stage.gateway.counts() == GatewayCounts(completed=5, failed=0, in_flight=0)


def test_a_cancelled_future_is_done_for_whoever_waits_for_several():
    # Nobody told: concurrent.futures.wait waited for ever.
    with gateway_and_stage(max_in_flight=1) as stage:
        whole = join_outputs([stage.gateway.submit((numbers(0),))], tuple)
        waiting = join_outputs([stage.gateway.enqueue((numbers(n),)) for n in range(2)], tuple)
        assert whole.cancel()
        assert waiting.cancel()
        assert whole.cancel()
        done, _ = concurrent.futures.wait([whole, waiting], PROMPT_S)
        assert done == {whole, waiting}
        assert not stage.gateway._waiting.line
        check_every_permit_is_back(stage, 1)


def test_an_event_loop_that_is_closed_with_requests_pending_keeps_no_place():
    with gateway_and_stage(max_in_flight=1) as stage:

        async def ask(number: int) -> None:
            await outcome_of(join_outputs([stage.gateway.enqueue((numbers(number),))], tuple))

        event_loop = asyncio.new_event_loop()
        tasks = [event_loop.create_task(ask(number)) for number in range(3)]
        event_loop.run_until_complete(asyncio.sleep(0))
        event_loop.close()
        for _ in range(3):  # nobody waits for them, and nobody has cancelled them
            stage.answer(stage.take())
        check_every_permit_is_back(stage, 1)
        for task in tasks:
            task._log_destroy_pending = False


def test_a_task_that_is_cancelled_cancels_all_parts_of_its_request():
    async def scenario(stage: Stage) -> None:
        parts = [stage.gateway.enqueue((numbers(number),)) for number in range(3)]
        task = asyncio.create_task(outcome_of(join_outputs(parts, tuple)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [part.cancelled() for part in parts] == [True] * 3

    with gateway_and_stage(max_in_flight=1) as stage:
        asyncio.run(scenario(stage))
        assert not stage.gateway._waiting.line
        check_every_permit_is_back(stage, 1)


def test_async_callers_get_results_and_errors():
    async def scenario(stage: Stage) -> None:
        futures = [stage.gateway.enqueue((numbers(number),)) for number in range(3)]
        stage.answer(stage.take())
        stage.fail(stage.take())
        stage.answer(stage.take())
        waiting = [outcome_of(future) for future in futures]
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PROMPT_S)
        assert torch.equal(outcomes[0][0], numbers(0))
        assert "ValueError: broken" in str(outcomes[1])
        assert torch.equal(outcomes[2][0], numbers(2))

    with gateway_and_stage(max_in_flight=3) as stage:
        asyncio.run(scenario(stage))


def test_answers_do_not_wait_for_the_garbage_collector():
    with gateway_and_stage(max_in_flight=1) as stage:
        gc.collect()
        gc.disable()
        try:
            whole = join_outputs(
                [stage.gateway.submit((numbers(0),), deadline_s=by_and_by())], lambda values: values[0]
            )
            stage.answer(stage.take())
            result = weakref.ref(whole.result(PROMPT_S))
            later = stage.gateway.submit((numbers(1),))  # until then the gateway's thread may still hold the last
            stage.answer(stage.take())
            settled(later)
            del whole
            assert result() is None
        finally:
            gc.enable()


# -- broken links -----------------------------------------------------------------------------------------------------


def test_an_answer_to_nothing_is_passed_over():
    with gateway_and_stage(max_in_flight=1) as stage:
        future = stage.gateway.submit((numbers(0),))
        message = stage.take()
        stage.sender.send(message.header._replace(request=12345, tensors=()), (numbers(5),))
        stage.answer(message)
        assert torch.equal(future.result(PROMPT_S)[0], numbers(0))
        check_every_permit_is_back(stage, 1)


def test_a_lost_stage_fails_late_and_cancelled_requests_once():
    with gateway_and_stage(max_in_flight=3) as stage:
        late = stage.gateway.submit((numbers(0),), deadline_s=by_and_by())
        cancelled, other = (stage.gateway.submit((numbers(n),)) for n in (1, 2))
        deadlines_pass(stage)
        assert isinstance(settled(late), DeadlineExceededError)
        cancelled.cancel()
        stage.gateway.fail(StageLostError("all stages are lost"))
        assert isinstance(settled(other), StageLostError)
        assert isinstance(settled(late), DeadlineExceededError)
        assert cancelled.cancelled()
        assert stage.gateway.counts() == GatewayCounts(completed=0, failed=2, in_flight=0)


def test_sending_does_not_wait_for_a_stage_that_stands_still_however_many_requests_there_are():
    # Small headers fill a socket's buffer before the slots are used up; the sender then held the gateway's lock.
    own = SlotPool(6000, 64)
    sender, receiver = open_pair("shm", slots=6000, slot_nbytes=64, credits=False, pool=own)
    try:
        with ThreadPoolExecutor(1) as pool:
            filling = pool.submit(
                lambda: [post(own, sender, Header(Kind.REQUEST, n), (torch.tensor([n]),)) for n in range(6000)]
            )
            filling.result(PROMPT_S)
        for number in range(6000):
            message = receiver.receive()
            assert (message.header.request, message.tensors[0].item()) == (number, number)
            sender.push()
    finally:
        receiver.close()
        sender.close(graceful=False)
