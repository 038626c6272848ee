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

    def serve(self, tuner: Tuner, latency_s: float, requests: int, samples: int = 0) -> None:
        """One after the other; the tuner has seen each before the next one is sent."""
        for number in range(requests):
            begin_s, self.now_s = self.now_s, self.now_s + latency_s
            for follower in self.followers:
                follower(RequestTimeline(number, 0, begin_s, self.now_s, (), samples=samples))
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


def test_a_batch_that_nobody_fills_does_not_grow():
    """Few requests are quick whatever the batch: that says nothing of many."""
    pipe = FakePipeline(batch=16)
    pipe.largest_batch = 4
    with tuned(pipe) as tuner:
        pipe.serve(tuner, 0.01, 20, samples=1)
        assert tuner.value == 4
        pipe.serve(tuner, 0.01, 5, samples=4)
        assert tuner.value == 10
        pipe.serve(tuner, 0.2, 1, samples=1)  # what breaks the limit counts in any case
        assert tuner.value < 10


def test_it_goes_on_from_what_somebody_else_has_set():
    pipe = FakePipeline(stages=4)
    with tuned(pipe) as tuner:
        pipe.instances = 2
        pipe.serve(tuner, 0.2, 2)
        assert tuner.value == 1
        assert turns(pipe) == [(4, 4), (4, 2), (2, 1)]


def test_the_same_failure_is_logged_once(caplog):
    pipe = FakePipeline(stages=2)
    with tuned(pipe) as tuner:
        pipe.refusal = ValueError("instances=1 means nothing under policy 'static'")
        pipe.serve(tuner, 0.2, 4)
        assert caplog.text.count("means nothing") == 1
        pipe.refusal = None
        pipe.serve(tuner, 0.2, 1)
        assert tuner.value == 1


def test_a_pipeline_has_one_tuner_at_a_time():
    pipe = FakePipeline(stages=2)
    first, second = tuned(pipe), tuned(pipe)
    with first, pytest.raises(ValueError, match="instances is turned by another tuner; close that one first"):
        second.start()
    with second:
        pass
    with pytest.raises(RuntimeError, match="started before; make another one"):
        first.start()


def test_one_that_cannot_begin_leaves_the_pipeline_to_others():
    pipe = FakePipeline(stages=2)
    tuner = tuned(pipe)
    pipe.refusal = PipelineClosedError("closed")
    with pytest.raises(PipelineClosedError):
        tuner.start()
    pipe.refusal = None
    with tuner:
        pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"latency_s": "1"}, "a latency limit of '1' s is no positive number"),
        ({"latency_s": None}, "a latency limit of None s"),
        ({"latency_s": True}, "a latency limit of True s"),
        ({"requests": "4"}, "requests='4': give a whole number"),
        ({"requests": 2.5}, r"requests=2\.5: give a whole number"),
        ({"seconds": "4"}, "a period of '4' s is no number of seconds"),
        ({"seconds": None}, "a period of None s"),
        ({"policy": 3}, "policy=3 has no update"),
        ({"policy": None}, "policy=None has no update"),
        ({"on_period": "x"}, "on_period='x' cannot be called"),
    ],
)
def test_what_is_no_option_is_named_with_its_remedy(options, told):
    with pytest.raises(ValueError, match=told):
        tuned(FakePipeline(stages=2), **options)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"None is no pipeline \(it has no batch\); give an odin.Pipeline"):
        Tuner(None, latency_s=1.0)  # type: ignore[arg-type]
