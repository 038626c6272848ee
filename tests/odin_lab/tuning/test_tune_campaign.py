"""Probes, choice, sweep and serving on a device that is none: requests are answered at once, by a clock of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from odin.monitor.events import KnobTurned, LoadChanged
from odin.monitor.timing import RequestTimeline
from odin.tuning.choice import Probe
from odin_lab.tuning import campaign
from odin_lab.tuning.campaign import best_of_sweep, find
from odin_lab.tuning.measure import Effort, probe
from odin_lab.tuning.modes import Mode
from odin_lab.tuning.serving import serve

BATCH = Mode("batch", ("cpu:0-1",), 16)
INSTANCES = Mode("instances", ("cpu:0", "cpu:1"), 2)


def known(mode: Mode, value: int) -> Probe:
    """A batch takes 10 ms and 5 ms a sample; instances 16 ms, and 18 ms when there are two."""
    latency_s = 0.010 + 0.005 * value if mode.knob == "batch" else 0.014 + 0.002 * value
    return Probe(mode.knob, value, latency_s, latency_s, value / latency_s, 60)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which values were measured, in order."""
    values: list[tuple[str, int]] = []

    def fake(mode: Mode, value: int, submit: object, **options: object) -> Probe:
        values.append((mode.knob, value))
        return known(mode, value)

    monkeypatch.setattr(campaign, "probe", fake)
    return values


class Idle:
    value = 0

    def submit(self, samples: int) -> Future[None]:
        raise AssertionError("nothing is sent here")


@contextlib.contextmanager
def opened(mode: Mode) -> Iterator[Idle]:
    yield Idle()


def test_two_values_are_probed_and_the_largest_that_they_predict_to_keep_the_limit(measured):
    findings = find((BATCH, INSTANCES), opened, limit_s=0.070, effort=Effort())
    assert measured == [("batch", 1), ("batch", 8), ("batch", 12), ("instances", 1), ("instances", 2)]
    assert findings.choice[:3] == ("batch", 12, True)
    assert (findings.mode, findings.swept) == (BATCH, ())


def test_under_a_tight_limit_instances_gain_more(measured):
    assert find((BATCH, INSTANCES), opened, limit_s=0.019, effort=Effort()).choice[:2] == ("instances", 2)


def test_a_sweep_measures_each_value_once_and_ends_where_larger_ones_break_the_limit(measured):
    findings = find((BATCH, INSTANCES), opened, limit_s=0.070, effort=Effort(), sweep=True)
    assert measured == [
        *[("batch", value) for value in (1, 8, 12, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14)],
        *[("instances", value) for value in (1, 2)],
    ]
    best, part = best_of_sweep(findings, 11, limit_s=0.070)
    assert (best.knob, best.value) == ("batch", 12)
    assert part == pytest.approx((11 / 0.065) / (12 / 0.070))
    assert best_of_sweep(findings, 16, limit_s=0.070) is None


@pytest.mark.parametrize(("of_four", "start", "largest"), [(0.9, 2, 2), (1.1, 4, 4)])
def test_more_instances_than_have_the_most_throughput_are_not_gone_to(
    monkeypatch: pytest.MonkeyPatch, of_four: float, start: int, largest: int
):
    rates_hz = {1: 50.0, 2: 100.0, 4: 100.0 * of_four}
    monkeypatch.setattr(
        campaign,
        "probe",
        lambda mode, value, *rest, **options: Probe(mode.knob, value, 0.02, 0.02, rates_hz[value], 60),
    )
    shared = Mode("instances", ("cpu:0", "cpu:1") * 2, 4)
    findings = find((shared,), opened, limit_s=0.1, effort=Effort())
    assert [one.value for one in findings.probes] == [1, 2, 4]
    assert (findings.choice.start, findings.largest) == (start, largest)


def test_a_batch_may_grow_beyond_what_was_chosen(measured):
    assert find((BATCH,), opened, limit_s=0.070, effort=Effort()).largest == 16


def answered(samples: int) -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def test_a_probe_counts_samples_after_the_first_answers():
    ticks = iter(range(10_000))
    found = probe(BATCH, 4, answered, effort=Effort(requests=10, warm=2, limit_s=1e9), clock=lambda: float(next(ticks)))
    assert (found.knob, found.value, found.requests) == ("batch", 4, 10)
    assert found.p95_s == found.mean_s > 0
    assert found.throughput_hz > 0


def test_a_failure_ends_a_probe():
    def fail(samples: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(RuntimeError("a layer failed"))
        return future

    with pytest.raises(RuntimeError, match="a layer failed"):
        probe(INSTANCES, 2, fail, effort=Effort())


def test_a_probe_that_is_ended_has_no_figure():
    for answers in (0, 5):
        count = iter(range(1000))
        found = probe(
            BATCH,
            4,
            answered,
            effort=Effort(requests=10),
            stop=lambda count=count, answers=answers: next(count) >= answers,
        )
        assert found is None


@pytest.mark.parametrize(
    ("after", "known_then"),
    [(0, []), (2, [("batch", 1), ("batch", 8)]), (4, [*(("batch", value) for value in (1, 8, 12)), ("instances", 1)])],
)
def test_what_is_known_when_the_user_wants_no_more_is_kept(monkeypatch, after, known_then):
    count = iter(range(after))

    def fake(mode: Mode, value: int, submit: object, **options: object) -> Probe | None:
        return None if next(count, None) is None else known(mode, value)

    monkeypatch.setattr(campaign, "probe", fake)
    findings = find((BATCH, INSTANCES), opened, limit_s=0.070, effort=Effort())
    assert (findings.choice, findings.mode, findings.ended) == (None, None, True)
    assert [(one.knob, one.value) for one in findings.probes] == known_then
    assert best_of_sweep(findings, 1, limit_s=0.070) is None


def test_a_sweep_that_is_ended_keeps_what_it_has(monkeypatch):
    count = iter(range(5))
    monkeypatch.setattr(
        campaign, "probe", lambda mode, value, submit, **_: None if next(count, None) is None else known(mode, value)
    )
    findings = find((BATCH, INSTANCES), opened, limit_s=0.070, effort=Effort(), sweep=True)
    assert (findings.choice, findings.ended) == (None, True)
    assert [one.value for one in findings.swept] == [1, 2, 3, 8, 12]


class Instant:
    """Instances that answer at once, with the latency that a test says, on the clock of the tuner's timelines."""

    def __init__(self, latency_s: Callable[[int], float]) -> None:
        self.mode, self.batch, self.devices = INSTANCES, 1, INSTANCES.stages
        self._latency_s = latency_s
        self.dynamic_batching = False
        self.instances = self.largest_batch = 2
        self.followers: list[Callable[[RequestTimeline], None]] = []
        self.turns: list[tuple[int, int]] = []
        self.stop = threading.Event()

    @property
    def value(self) -> int:
        return self.instances

    @value.setter
    def value(self, value: int) -> None:
        self.instances = value

    def submit(self, samples: int) -> Future[None]:
        now_s = time.perf_counter()
        for follower in self.followers:
            follower(RequestTimeline(0, 0, now_s, now_s + self._latency_s(self.instances), ()))
        return answered(samples)

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        self.followers.append(on_result)
        return lambda: self.followers.remove(on_result)

    def note_turn(self, event: KnobTurned) -> None:
        self.turns.append((event.before, event.after))
        if len(self.turns) == 2:
            self.stop.set()

    def note_load(self, event: LoadChanged) -> None:
        raise AssertionError("there is no load")


@pytest.mark.parametrize(("latency_s", "start", "turns"), [(0.5, 2, [(2, 2), (2, 1)]), (0.001, 1, [(1, 1), (1, 2)])])
def test_serving_turns_the_knob(latency_s, start, turns):
    served = Instant(lambda count: latency_s)
    found = serve(served, start=start, limit_s=0.1, seconds=120.0, requests=5, stop=served.stop.is_set)
    assert served.turns[:2] == turns
    assert (found.knob, found.start, found.spells) == ("instances", start, ())
    assert found.periods[0].after == turns[1][1]
    assert len(found.done) >= 1
    assert found.throughput_hz > 0
