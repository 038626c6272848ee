"""The online tuner on a pipeline that is none: its knobs can be set, and requests finish when a test says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import odin
from odin.errors import PipelineClosedError
from odin.monitor.events import KnobTurned
from odin.monitor.timing import RequestTimeline
from odin.tuning.tuner import Tuner


class FakePipeline:
    """What joins samples, or has instances, as the tuner sees it; its clock is set by hand."""

    def __init__(self, *, batch: int = 1, stages: int = 1) -> None:
        self.batch, self.devices = batch, [f"cpu:{stage}" for stage in range(stages)]
        self.dynamic_batching = batch > 1
        self.largest_batch, self._instances = batch, stages
        self.now_s = 0.0
        self.events: list[KnobTurned] = []
        self.followers: list[Callable[[RequestTimeline], None]] = []
        self.refusal: Exception | None = None

    @property
    def instances(self) -> int:
        return self._instances

    @instances.setter
    def instances(self, count: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self._instances = count

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        self.followers.append(on_result)
        return lambda: self.followers.remove(on_result)

    def note_turn(self, event: KnobTurned) -> None:
        self.events.append(event)

    def serve(self, tuner: Tuner, latency_s: float, requests: int) -> None:
        """One after the other; the tuner has seen each before the next one is sent."""
        for number in range(requests):
            begin_s, self.now_s = self.now_s, self.now_s + latency_s
            for follower in self.followers:
                follower(RequestTimeline(number, 0, begin_s, self.now_s, ()))
            assert tuner._worker.settle()


def tuned(pipe: FakePipeline, **options: object) -> Tuner:
    return Tuner(pipe, **{"latency_s": 0.1, "requests": 5, "clock": lambda: pipe.now_s, **options})  # type: ignore[arg-type]


def turns(pipe: FakePipeline) -> list[tuple[int, int]]:
    return [(event.before, event.after) for event in pipe.events]


def test_it_is_a_public_name():
    assert odin.Tuner is Tuner


def test_a_load_comes_and_leaves():
    pipe = FakePipeline(stages=3)
    with tuned(pipe) as tuner:
        assert tuner.knob == "instances"
        pipe.serve(tuner, 0.09, 10)
        assert tuner.value == 3
        pipe.serve(tuner, 0.2, 2)  # a p95 of five requests cannot be kept after the first late one
        assert tuner.value == 1
        pipe.serve(tuner, 0.04, 10)
        assert tuner.value == 3
    assert turns(pipe) == [(3, 3), (3, 2), (2, 1), (1, 2), (2, 3)]
    first, over = pipe.events[:2]
    assert math.isnan(first.latency_s)
    assert over == KnobTurned(over.at_s, "instances", 3, 2, "p95", over.latency_s, 0.1, 1)
    assert over.latency_s == pytest.approx(0.2)


def test_batches_are_turned_where_samples_are_joined():
    pipe = FakePipeline(batch=16)
    with tuned(pipe) as tuner:
        assert tuner.knob == "batch"
        pipe.serve(tuner, 0.2, 1)
        assert (pipe.largest_batch, pipe.instances) == (5, 1)


def test_the_other_policy_begins_where_the_knob_is():
    pipe = FakePipeline(batch=16)
    pipe.largest_batch = 3
    with tuned(pipe, policy="aimd") as tuner:
        pipe.serve(tuner, 0.01, 5)
        assert pipe.largest_batch == 7


def test_once_left_it_turns_nothing():
    pipe = FakePipeline(stages=2)
    with tuned(pipe) as tuner:
        pass
    assert pipe.followers == []
    pipe.serve(tuner, 0.5, 10)
    assert tuner.value == 2
    tuner.close()


def test_a_turn_that_fails_is_tried_again(caplog):
    pipe = FakePipeline(stages=2)
    with tuned(pipe) as tuner:
        pipe.refusal = odin.StageLostError("a stage was lost while stages prepared")
        pipe.serve(tuner, 0.2, 1)
        assert (tuner.value, turns(pipe)) == (2, [(2, 2)])
        assert "goes on after StageLostError: a stage was lost" in caplog.text
        pipe.refusal = None
        pipe.serve(tuner, 0.2, 1)
        assert (tuner.value, turns(pipe)) == (1, [(2, 2), (2, 1)])


def test_a_pipeline_that_is_closed_is_no_failure(caplog):
    pipe = FakePipeline(stages=2)
    with tuned(pipe) as tuner:
        pipe.refusal = PipelineClosedError("the pipeline is closed")
        pipe.serve(tuner, 0.2, 3)
    assert caplog.text == ""


def test_each_period_is_told():
    pipe, told = FakePipeline(stages=2), []
    with tuned(pipe, on_period=told.append) as tuner:
        pipe.serve(tuner, 0.09, 10)
    assert [(period.before, period.after, period.requests) for period in told] == [(2, 2, 5), (2, 2, 5)]


def test_a_pipeline_that_joins_no_samples_has_no_batch_to_turn():
    pipe = FakePipeline(batch=8, stages=2)
    pipe.dynamic_batching = False
    assert tuned(pipe).knob == "instances"
    with pytest.raises(ValueError, match=r"joins no samples, .* start it with dynamic_batching=True"):
        tuned(pipe, knob="batch")


def test_a_pipeline_whose_knob_cannot_be_turned_is_refused_at_once():
    pipe = FakePipeline(stages=2)
    pipe.refusal = ValueError("instances=2 means nothing under policy 'static'")
    with pytest.raises(ValueError, match="nothing under policy 'static'"), tuned(pipe):
        pass
    assert (pipe.followers, pipe.events) == ([], [])


def test_one_stage_alone_has_nothing_to_turn():
    with pytest.raises(ValueError, match="nothing to turn: the pipeline has one stage"):
        tuned(FakePipeline())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency_s": -1.0}, "limit of -1 s is no positive"),
        ({"knob": "threads"}, "knob 'threads' is unknown"),
        ({"policy": "best"}, "policy 'best' is unknown"),
        ({"statistic": "p50"}, "statistic 'p50' is unknown"),
    ],
)
def test_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        tuned(FakePipeline(stages=2), **options)
