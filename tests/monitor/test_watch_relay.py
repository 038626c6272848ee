"""The watch of a relay, made up: each request changes hands at cuts of its own, nearer to a stage that is slower."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from odin.monitor.watch import SlowdownChange, StageWatch

LAYERS = 18


class Relay:
    """Requests whose cuts are drawn around where stages of these speeds would take turns.

    Layers of very different lengths, baselines with errors, noise of each layer and of each stage.
    """

    def __init__(self, stages, *, seed, spread=2.0, error=0.1, layer_cv=0.1, stage_cv=0.05):
        self.random = np.random.default_rng(seed)
        self.spread, self.layer_cv, self.stage_cv = spread, layer_cv, stage_cv
        self.true_s = 0.005 * np.exp(self.random.normal(0.0, 0.5, LAYERS))
        self.baseline_s = np.tile(self.true_s * np.exp(self.random.normal(0.0, error, LAYERS)), (stages, 1))
        self.slowdown = np.ones(stages)
        self.passed_by = np.zeros(stages, dtype=bool)

    def request(self):
        """Cuts, stage_s and layer_s of one more."""
        speed = np.where(self.passed_by, 0.0, 1.0 / self.slowdown)
        shares = np.cumsum(speed / speed.sum())[:-1]
        chain = np.concatenate(([0.0], np.cumsum(self.true_s))) / self.true_s.sum()
        cuts = [0]
        for stage, share in enumerate(shares):
            cut = round(int(np.abs(chain - share).argmin()) + self.random.normal(0.0, self.spread))
            cuts.append(cuts[-1] if self.passed_by[stage] else int(np.clip(cut, cuts[-1], LAYERS)))
        if self.passed_by[-1]:
            cuts[-1] = LAYERS
        cuts.append(LAYERS)
        owner = np.repeat(np.arange(len(speed)), np.diff(cuts))
        usual = np.exp(self.random.normal(0.0, self.stage_cv, len(speed)))
        noise = np.exp(self.random.normal(0.0, self.layer_cv, LAYERS))
        layer_s = self.true_s * noise * (usual * self.slowdown)[owner]
        return cuts, np.bincount(owner, layer_s, minlength=len(speed)), layer_s


def serve(watch, relay, requests, *, first=0):
    """Changes that are told, with their request's number."""
    told = []
    for number in range(first, first + requests):
        told += [(number, change) for change in watch.update(*relay.request(), plan_key=0)]
    return told


class Recorder:
    """A detector that keeps its samples."""

    def __init__(self, streams):
        self.samples, self.rebased = [], 0
        self.changed = self.disturbed = np.zeros(streams, dtype=bool)
        self.level, self.noise, self.age = np.zeros(streams), np.ones(streams), np.ones(streams, dtype=np.int64)

    def update(self, x):
        self.samples.append(np.array(x))

    def rebase(self):
        self.rebased += 1


BASELINE_S = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]])


def times(cuts, slowdown):
    owner = np.repeat([0, 1], np.diff(cuts))
    layer_s = BASELINE_S[owner, np.arange(4)] * np.array(slowdown)[owner]
    return cuts, np.bincount(owner, layer_s, minlength=2), layer_s


def test_other_cuts_are_no_move_but_another_plan_is():
    detector = Recorder(2)
    watch = StageWatch(BASELINE_S, detector)
    for key, cuts in ((0, [0, 2, 4]), (0, [0, 3, 4]), (1, [0, 1, 4]), (1, [0, 2, 4])):
        watch.update(*times(cuts, [1.5, 2.0]), plan_key=key)
    assert np.allclose(np.exp(detector.samples), [[1.5, 2.0]] * 4)
    assert detector.rebased == 1


def test_without_a_key_other_cuts_are_another_plan():
    detector = Recorder(2)
    watch = StageWatch(BASELINE_S, detector)
    for cuts in ([0, 2, 4], [0, 3, 4], [0, 3, 4]):
        watch.update(*times(cuts, [1.0, 1.0]))
    assert detector.rebased == 1


def test_a_stage_that_is_passed_by_has_no_sample():
    detector = Recorder(2)
    watch = StageWatch(BASELINE_S, detector)
    for cuts in ([0, 2, 4], [0, 4, 4], [0, 0, 4]):
        watch.update(*times(cuts, [1.0, 1.0]), plan_key=0)
    assert np.isnan(detector.samples).tolist() == [[False, False], [False, True], [True, False]]


def test_a_sample_takes_half_of_the_usual_work():
    """A stage that ran one short layer would be an outlier now and then."""
    detector = Recorder(2)
    watch = StageWatch(BASELINE_S, detector)
    watch.update(*times([0, 2, 4], [1.0, 1.0]), plan_key=0)
    watch.update(*times([0, 3, 4], [1.0, 1.0]), plan_key=0)
    watch.update(*times([0, 1, 4], [1.0, 1.0]), plan_key=0)  # 1 s of the usual 6
    watch.update(*times([0, 1, 4], [3.0, 1.0]), plan_key=0)
    watch.update(*times([0, 1, 4], [2.0, 1.0]), plan_key=0)
    assert np.isnan(detector.samples)[:, 0].tolist() == [False, False, True, True, False]
    assert np.exp(detector.samples[-1]).tolist() == pytest.approx([2.0, 1.0])


def test_layers_are_learned_by_whichever_stage_runs_them():
    """Layer 1 takes half as much again as its baseline says, and changes hands with every request."""
    detector = Recorder(2)
    watch = StageWatch(BASELINE_S, detector)
    for request in range(800):
        cuts = [[0, 1, 4], [0, 2, 4], [0, 3, 4]][request % 3]
        _, _, layer_s = times(cuts, [1.0, 1.0])
        layer_s[1] *= 1.5
        stage_s = np.array([layer_s[first:last].sum() for first, last in pairwise(cuts)])
        watch.update(cuts, stage_s, layer_s, plan_key=0)
    spread = [np.nanstd(np.array(part), axis=0).max() for part in (detector.samples[:48], detector.samples[-48:])]
    assert spread[1] < 0.25 * spread[0]


@pytest.mark.parametrize(("stages", "spread"), [(2, 1.0), (2, 4.0), (4, 2.0), (6, 1.0)])
def test_no_false_onsets(stages, spread):
    relay = Relay(stages, seed=1, spread=spread)
    assert serve(StageWatch(relay.baseline_s), relay, 4000) == []


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("slowdown", [1.5, 2.0, 4.0])
def test_a_slowdown_and_its_end(stages, slowdown):
    relay = Relay(stages, seed=5)
    watch = StageWatch(relay.baseline_s)
    assert serve(watch, relay, 500) == []
    relay.slowdown[1] = slowdown
    [(number, onset)] = serve(watch, relay, 100, first=500)[:1]
    assert onset.stage == 1
    assert onset.state == "onset"
    assert number <= 506
    assert onset.slowdown == pytest.approx(slowdown, rel=0.2)
    assert abs(number - onset.age + 1 - 500) <= 2
    assert np.exp(watch.detector.level[1]) == pytest.approx(slowdown, rel=0.1)
    relay.slowdown[1] = 1.0
    told = serve(watch, relay, 200, first=600)
    assert [change.state for _, change in told if change.state != "change"] == ["end"]
    assert told[-1][0] <= 606


def test_a_stage_that_is_passed_by_for_long():
    """One of four becomes so slow that it gets nothing for 600 requests; then it has recovered."""
    relay = Relay(4, seed=3)
    watch = StageWatch(relay.baseline_s)
    assert serve(watch, relay, 400) == []
    relay.slowdown[2] = 6.0
    told = serve(watch, relay, 20, first=400)
    assert [(change.stage, change.state) for _, change in told[:1]] == [(2, "onset")]
    relay.passed_by[2] = True
    assert serve(watch, relay, 600, first=420) == []
    assert watch.detector.disturbed.tolist() == [False, False, True, False]
    relay.passed_by[2], relay.slowdown[2] = False, 1.0
    told = serve(watch, relay, 100, first=1020)
    assert {change.stage for _, change in told} == {2}
    assert told[-1][1].state == "end"
    assert told[-1][0] <= 1026


def test_a_stage_that_was_never_given_anything():
    relay = Relay(4, seed=4)
    watch = StageWatch(relay.baseline_s)
    relay.passed_by[3] = True
    assert serve(watch, relay, 500) == []
    relay.passed_by[3] = False
    assert serve(watch, relay, 500, first=500) == []
    relay.slowdown[3] = 2.0
    told = serve(watch, relay, 20, first=1000)
    assert [(change.stage, change.state) for _, change in told[:1]] == [(3, "onset")]


def test_the_age_of_a_change_is_in_requests():
    """The stage has a sample with every third request only."""
    relay = Relay(2, seed=6, spread=0.0)
    watch = StageWatch(relay.baseline_s)
    told = []
    for number in range(400):
        relay.passed_by[1] = number % 3 != 0
        relay.slowdown[1] = 1.25 if number >= 300 else 1.0
        told += [(number, change) for change in watch.update(*relay.request(), plan_key=0)]
    samples = int(watch.detector.age[1])
    assert watch.detector.disturbed[1]
    assert isinstance(watch._requests(1, samples), int)
    assert watch._requests(1, samples) == pytest.approx(100, abs=9)
    assert all(isinstance(change, SlowdownChange) for _, change in told)
