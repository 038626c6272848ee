"""From stage times to changes of slowdown, with a detector whose every answer is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from odin.monitor.watch import SlowdownChange, StageWatch

BASELINE_S = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]])


class Scripted:
    """A detector that remembers its samples and says what it is told to say."""

    def __init__(self, streams=2):
        self.samples = []
        self.rebased = 0
        self.changed = np.zeros(streams, dtype=bool)
        self.disturbed = np.zeros(streams, dtype=bool)
        self.level = np.zeros(streams)
        self.age = np.ones(streams, dtype=np.int64)
        self.noise = np.full(streams, 0.1)
        self.script = {}

    def update(self, x):
        self.samples.append(np.array(x))
        self.changed = np.zeros_like(self.changed)
        for name, value in self.script.get(len(self.samples), {}).items():
            setattr(self, name, np.array(value))

    def rebase(self):
        self.rebased += 1


def times(cuts, slowdown):
    layer_s = np.zeros(4)
    stage_s = np.zeros(2)
    for stage, (first, last) in enumerate(pairwise(cuts)):
        layer_s[first:last] = BASELINE_S[stage, first:last] * slowdown[stage]
        stage_s[stage] = layer_s[first:last].sum()
    return cuts, stage_s, layer_s


def test_samples_are_logarithms_of_the_slowdown_whatever_the_plan():
    detector = Scripted()
    watch = StageWatch(BASELINE_S, detector)
    for cuts in ([0, 2, 4], [0, 3, 4], [0, 1, 4]):
        watch.update(*times(cuts, [1.0, 2.0]))
    assert np.allclose(detector.samples, np.log([[1.0, 2.0]] * 3))
    assert detector.rebased == 2


def test_an_empty_stage_has_no_sample():
    detector = Scripted()
    StageWatch(BASELINE_S, detector).update(*times([0, 4, 4], [1.5, 1.0]))
    assert detector.samples[0][0] == pytest.approx(np.log(1.5))
    assert np.isnan(detector.samples[0][1])


def test_changes_are_told_with_their_state():
    detector = Scripted()
    detector.script = {
        2: {"changed": [False, True], "disturbed": [False, True], "level": [0.0, np.log(2)], "age": [2, 1]},
        4: {"changed": [False, True], "level": [0.0, np.log(4)], "age": [4, 2]},
        6: {"changed": [False, True], "disturbed": [False, False], "level": [0.0, 0.0], "age": [6, 3]},
    }
    watch = StageWatch(BASELINE_S, detector)
    told = [watch.update(*times([0, 2, 4], [1.0, 1.0])) for _ in range(6)]
    assert [len(changes) for changes in told] == [0, 1, 0, 1, 0, 1]
    assert told[1] == [SlowdownChange(1, "onset", pytest.approx(2.0), 1)]
    assert told[3] == [SlowdownChange(1, "change", pytest.approx(4.0), 2)]
    assert told[5] == [SlowdownChange(1, "end", pytest.approx(1.0), 3)]


def test_small_slowdowns_are_for_the_policy_only():
    detector = Scripted()
    detector.script = {
        2: {"changed": [False, True], "disturbed": [False, True], "level": [0.0, np.log(1.2)], "age": [2, 1]},
        3: {"level": [0.0, np.log(1.35)], "age": [3, 2]},  # no further alarm: the level has only become clearer
        4: {"level": [0.0, np.log(1.2)], "age": [4, 3]},
        5: {"level": [0.0, np.log(1.1)], "age": [5, 4]},
    }
    watch = StageWatch(BASELINE_S, detector, notable=1.3)
    told = [watch.update(*times([0, 2, 4], [1.0, 1.0])) for _ in range(6)]
    assert [[change.state for change in changes] for changes in told] == [[], [], ["onset"], [], ["end"], []]
    assert told[2][0].age == 2
    with pytest.raises(ValueError, match="notable is 1"):
        StageWatch(BASELINE_S, detector, notable=1.0)


def test_a_change_between_undisturbed_levels_is_not_told():
    detector = Scripted()
    detector.script = {1: {"changed": [True, False]}}
    assert StageWatch(BASELINE_S, detector).update(*times([0, 2, 4], [0.8, 1.0])) == []


def test_wrong_baselines_are_learned_so_that_a_move_is_no_jump():
    detector = Scripted()
    watch = StageWatch(BASELINE_S, detector)
    truth = np.array([1.0, 3.0, 3.0, 4.0])  # layer 1 takes half as much again as its baseline says

    def update(cuts):
        factor = np.repeat([1.0, 2.0], np.diff(cuts))
        layer_s = truth * factor
        stage_s = np.array([layer_s[: cuts[1]].sum(), layer_s[cuts[1] :].sum()])
        watch.update(cuts, stage_s, layer_s)
        return detector.samples[-1]

    naive = StageWatch(BASELINE_S, Scripted())
    for _ in range(400):
        update([0, 2, 4])
    settled, moved = update([0, 2, 4]), update([0, 1, 4])
    naive.update([0, 1, 4], np.array([1.0, 20.0]), truth * np.array([1.0, 2.0, 2.0, 2.0]))
    jump_naive = abs(naive.detector.samples[-1] - np.log([4 / 3, 1.0])).max()
    jump = abs(moved - settled).max()
    assert jump < 0.5 * jump_naive


def test_layers_of_disturbed_stages_teach_nothing():
    detector = Scripted()
    detector.disturbed = np.array([False, True])
    watch = StageWatch(BASELINE_S, detector)
    cuts, stage_s, layer_s = times([0, 2, 4], [1.0, 2.0])
    layer_s[3] *= 2
    stage_s[1] += 8.0 * 2
    for _ in range(100):
        watch.update(cuts, stage_s, layer_s)
    assert watch.reference_s.tolist() == [3.0, 14.0]


def test_layers_that_were_not_measured_teach_nothing():
    watch = StageWatch(BASELINE_S, Scripted())
    cuts, stage_s, _ = times([0, 2, 4], [1.0, 2.0])
    for _ in range(40):
        watch.update(cuts, stage_s, np.full(4, np.nan))
    assert watch.reference_s.tolist() == [3.0, 14.0]


def test_a_stage_that_is_faster_than_its_baseline_for_long_is_told():
    watch = StageWatch(BASELINE_S, Scripted())
    for slowdown, faster in ((0.9, [False, False]), (0.6, [False, True])):
        for _ in range(3):  # three blocks of requests are not enough
            for _ in range(16):
                watch.update(*times([0, 2, 4], [1.0, slowdown]))
        assert np.isnan(watch.faster).all()
        for _ in range(16):
            watch.update(*times([0, 2, 4], [1.0, slowdown]))
        assert (watch.faster > 0).tolist() == faster
    assert watch.faster[1] == pytest.approx(0.6, rel=0.05)


def test_an_empty_stage_is_not_fast():
    watch = StageWatch(BASELINE_S, Scripted())
    for _ in range(100):
        watch.update(*times([0, 4, 4], [1.0, 1.0]))
    assert np.isnan(watch.faster).all()


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0, -1.0]], [[float("nan")]]])
def test_baselines_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="baseline_s"):
        StageWatch(bad, Scripted(1))


def test_layers_that_take_no_time_are_fine():
    detector = Scripted(1)
    watch = StageWatch([[0.0, 1.0]], detector)
    watch.update([0, 2], np.array([1.0]), np.array([0.0, 1.0]))
    assert abs(detector.samples[0][0]) < 1e-6


@pytest.mark.parametrize("begin", [0, 20])
def test_a_load_from_the_start_is_told(begin):
    """The first 16 requests were not looked at, and the next 8 were what is undisturbed: "quiet, 1.0x"."""
    watch = StageWatch(BASELINE_S)
    told = []
    for request in range(200):
        slowdown = 2.0 if begin <= request < 100 else 1.0
        told += [(request, change) for change in watch.update(*times([0, 2, 4], [1.0, slowdown]))]
    assert [(change.stage, change.state) for _, change in told] == [(1, "onset"), (1, "end")]
    assert begin <= told[0][0] <= begin + 5
    assert told[0][1].slowdown == pytest.approx(2.0, rel=0.1)
    assert told[0][1].age == told[0][0] - begin + 1
    assert 100 <= told[1][0] <= 105
