"""The benchmark of kills: what counts as lost, given twice or changed, and when a pipeline is back."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.checked_load import CheckedLoad, Completions, Counts, SeenEvents, expected_outputs, small_model
from benchmarks.kills import Turn, grown, spread, stages_of, window_ratio
from benchmarks.stage_losses import StageTaker, stages_at_work
from odin.monitor.events import Fault, RequestDone, StageLost
from odin.monitor.timing import RequestTimeline

INPUTS = [torch.full((1, 2), float(k)) for k in range(8)]
EXPECTED = [x + 1 for x in INPUTS]


def done(value: object) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def run(submit: Callable[[int, torch.Tensor], Future[Any]], count: int, **options: Any) -> CheckedLoad:
    """Feed ``count`` requests one after the other, or until the load ends by itself."""
    number = 0

    def numbered(x: torch.Tensor) -> Future[Any]:
        nonlocal number
        index, number = number, number + 1
        if number == count:
            load.stop()
        return submit(index, x)

    load = CheckedLoad(numbered, INPUTS, EXPECTED, in_flight=1, **options)
    with load:
        load._thread.join(60.0)
    assert not load.alive
    return load


def test_right_answers_are_counted_and_nothing_else() -> None:
    load = run(lambda index, x: done(x + 1), 20)
    assert load.counts() == Counts(20, 20, 0, 0, 0, 0)
    assert load.counts().well
    assert load.ended == ""


def test_a_failure_is_a_loss_and_a_bit_a_change() -> None:
    def submit(index: int, x: torch.Tensor) -> Future[Any]:
        if index == 3:
            return done(RuntimeError("gone"))
        return done(torch.nextafter(x + 1, torch.tensor(1e9)) if index == 5 else x + 1)

    load = run(submit, 20)

    assert load.counts() == Counts(20, 19, 1, 0, 1, 0)
    assert not load.counts().well
    assert load.errors == {"RuntimeError: gone": 1}


def test_an_answer_that_comes_twice_is_counted() -> None:
    class Twice(Future[Any]):
        def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
            super().add_done_callback(fn)
            super().add_done_callback(fn)

    def submit(index: int, x: torch.Tensor) -> Future[Any]:
        future = Twice() if index == 2 else Future()
        future.set_result(x + 1)
        return future

    assert run(submit, 10).counts().duplicated == 1


def test_what_cannot_be_submitted_is_counted_and_ends_the_load() -> None:
    def submit(index: int, x: torch.Tensor) -> Future[Any]:
        raise RuntimeError("closed")

    load = run(submit, 100, failures=2)

    assert load.counts() == Counts(2, 0, 0, 0, 0, 2)
    assert "failures in a row, the last: RuntimeError: closed" in load.ended


def test_mixed_up_answers_could_not_be_told_with_too_few_inputs() -> None:
    with pytest.raises(ValueError, match="give more inputs"):
        CheckedLoad(lambda x: done(x), INPUTS, EXPECTED, in_flight=8)


def test_the_first_answer_is_to_a_request_that_was_submitted_after_the_loss() -> None:
    now_s = 0.0
    load = CheckedLoad(lambda x: done(x + 1), INPUTS, EXPECTED, in_flight=1, clock=lambda: now_s)
    load.arm(5.0)
    now_s = 6.0
    load._done(0, 4.9, done(EXPECTED[0]))
    assert load.first_s is None
    load._done(1, 5.1, done(INPUTS[1]))  # not the right answer
    assert load.first_s is None
    load._done(2, 5.2, done(EXPECTED[2]))
    now_s = 7.0
    load._done(3, 5.3, done(EXPECTED[3]))
    assert load.first_s == 6.0


def test_completions_by_time() -> None:
    completions = Completions(100.0)
    for number in range(100):  # 10 per second for 10 s, and none from 4 to 6
        if not 40 <= number < 60:
            completions.add(100.0 + number / 10 + 0.05)

    assert completions.rate_hz(100.0, 104.0) == pytest.approx(10.0)
    assert completions.rate_hz(104.0, 106.0) == 0.0
    assert completions.rate_hz(108.0, 112.0) == pytest.approx(5.0)  # nothing has come since
    assert completions.rate_hz(104.0, 104.05) == 0.0
    assert completions.back_s(104.0, 110.0, 8.0) == pytest.approx(2.4)
    assert completions.back_s(104.0, 110.0, 11.0) is None
    assert completions.back_s(104.0, 106.0, 8.0) is None


def test_events_tell_of_answers_given_twice_and_of_requests_sent_again() -> None:
    seen = SeenEvents()
    for number in (1, 2, 2, 3):
        seen(RequestDone(1.0, RequestTimeline(number, 0, 0.0, 1.0, ())))
    seen(Fault(2.0, "x", "y"))
    for requests in (2, 3):
        seen(StageLost(3.0, 0, "it is gone", False, requests))

    assert seen.twice == 1
    assert seen.sent_again == 5
    assert seen.counts == {"RequestDone": 4, "Fault": 1, "StageLost": 2}
    assert len(seen.of("Fault")) == 1
    assert seen.of("Fault", since_s=3.0) == seen.of("StageBack") == []


def stage(index: int, *, state: str = "quiet", pid: int = 0) -> SimpleNamespace:
    return SimpleNamespace(stage=index, pid=pid or 100 + index, state=state)


def test_a_stage_is_at_work_if_both_the_pipeline_and_the_kernel_say_so() -> None:
    stages = (stage(0), stage(1, state="lost"), stage(2), stage(3, state="disturbed"), stage(4, state="hung"))
    assert [one.stage for one in stages_at_work(stages, alive=lambda pid: pid != 102)] == [0, 3]


class Pipe:
    def __init__(self, *stages: SimpleNamespace) -> None:
        self.stages = stages

    def view(self) -> SimpleNamespace:
        return SimpleNamespace(stages=self.stages)


def taker(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[int, int]]) -> StageTaker:
    monkeypatch.setattr(
        "benchmarks.stage_losses.stages_at_work", lambda stages: [s for s in stages if s.state != "lost"]
    )
    monkeypatch.setattr("benchmarks.stage_losses.os.kill", lambda pid, sign: sent.append((pid, sign)))
    return StageTaker(pipe, SeenEvents(), random.Random(0))  # type: ignore[arg-type]


def test_the_last_stage_at_work_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    pipe = Pipe(stage(0), stage(1))
    one = taker(pipe, monkeypatch, sent)

    loss = one.take(signal.SIGKILL)

    assert loss is not None
    assert sent == [(loss.pid, signal.SIGKILL)]
    assert one.take(signal.SIGKILL) is None  # the view may not know of the first yet
    assert len(sent) == 1
    assert one.wait_full(loss, timeout_s=0.0, alive=lambda: True) is None

    pipe.stages = tuple(sorted((stage(1 - loss.stage), stage(loss.stage, pid=200)), key=lambda s: s.stage))
    assert one.wait_full(loss, timeout_s=60.0, alive=lambda: True) is not None
    assert one.pids == {100, 101, 200}


def test_when_a_stage_was_back_is_what_its_event_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class StageBack(SimpleNamespace):
        pass

    one = taker(Pipe(stage(0), stage(1)), monkeypatch, [])
    loss = one.take(signal.SIGSTOP)
    assert loss is not None
    one._seen(StageBack(at_s=loss.at_s - 1.0, stage=loss.stage))  # type: ignore[arg-type]  # of an earlier loss
    one._seen(StageBack(at_s=loss.at_s + 2.5, stage=loss.stage))  # type: ignore[arg-type]
    assert one.wait_full(loss, timeout_s=60.0, alive=lambda: True) == pytest.approx(2.5)


def test_waiting_ends_with_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    one = taker(Pipe(stage(0), stage(1)), monkeypatch, [])
    loss = one.take(signal.SIGKILL)
    assert loss is not None
    assert one.wait_full(loss, timeout_s=60.0, alive=lambda: False) is None


def test_rows_tell_what_never_came() -> None:
    assert spread([0.1, None, 0.3]) == "0.200 / 0.298 / 0.300; 1 never"
    assert spread([None]) == "-; 1 never"
    turns = [Turn(0, 0.1, 0.2, 5.0, 1.0, 8.0, 10.0), Turn(1, None, None, 0.0, None, 5.0, 10.0), Turn(0, *[0.0] * 6)]
    ratio = window_ratio(turns)
    assert ratio is not None
    assert (ratio.median, ratio.repeats) == (pytest.approx(0.65), 2)
    assert window_ratio([]) is None


def test_descriptors_that_are_left_are_named() -> None:
    assert grown({"socket": 3}, {"socket": 3, "pipe": 2}) == ["pipe +2"]
    assert grown({"socket": 3}, {"socket": 1}) == []


def test_stages_take_turns_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kills.usable_cores", lambda: (2, 5, 7))
    assert stages_of(4) == ["cpu:2", "cpu:5", "cpu:2", "cpu:5"]


def test_inputs_are_all_different_and_so_are_their_outputs() -> None:
    with torch.inference_mode():
        inputs, expected = expected_outputs(small_model(), 3, seed=0)
    for values in (inputs, expected):
        assert not any(torch.equal(a, b) for k, a in enumerate(values) for b in values[:k])
