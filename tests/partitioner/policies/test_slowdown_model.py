"""The slowdown model: what it makes of exact, noisy, partial and changing samples."""

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation, Setting
from odin.partitioner.policies.plan_arrays import PlanArraysCache
from odin.partitioner.policies.slowdown import SlowdownModel

LAYERS = 12


def make_setting(stages=2, *, baseline_s=None, intensity=None, send_s=0.0, receive_s=0.0):
    if baseline_s is None:
        baseline_s = np.tile(np.linspace(1.0, 2.0, LAYERS), (stages, 1))
    layers = baseline_s.shape[1]
    return Setting(
        plan=Plan([layers // stages] * (stages - 1) + [layers - layers // stages * (stages - 1)]),
        baseline_s=baseline_s,
        send_s=np.full(layers + 1, send_s),
        receive_s=np.full(layers + 1, receive_s),
        intensity=np.full(layers, np.nan) if intensity is None else intensity,
    )


class Feed:
    """Gives a model requests; a change is told with the request at which it begins, unless told otherwise."""

    def __init__(self, setting, *, noise=0.0, seed=0):
        self.model = SlowdownModel(setting)
        self.setting, self.noise = setting, noise
        self.random = np.random.default_rng(seed)
        self.request = 0
        self.age = np.zeros(setting.stage_count, dtype=np.int64)

    def give(self, true_s, plan=None, *, requests=1, changed=(), age=1, measured=True):
        plan = Plan(plan or self.setting.plan)
        stage_of = np.repeat(np.arange(len(plan)), plan)
        for index in range(requests):
            self.request += 1
            self.age += 1
            flags = np.zeros(len(plan), dtype=bool)
            if index == 0:
                flags[list(changed)] = True
                self.age[list(changed)] = age
            layer_s = true_s[stage_of, np.arange(len(stage_of))] * np.exp(
                self.noise * self.random.standard_normal(len(plan))[stage_of]
            )
            stage_s = np.bincount(stage_of, weights=layer_s, minlength=len(plan))
            if measured is not True:
                layer_s = np.where(np.isin(np.arange(len(stage_of)), measured or []), layer_s, np.nan)
            self.model.take(
                Observation(
                    self.request, plan, stage_s, layer_s, 1.0, flags, self.age.copy(), np.full(len(plan), self.noise)
                )
            )
        return self.model.estimate()


def test_undisturbed_times_are_the_baselines():
    setting = make_setting()
    estimate = Feed(setting).give(setting.baseline_s, requests=5)
    assert estimate.times_s == pytest.approx(setting.baseline_s, rel=1e-9)


def test_one_sample_after_a_change_gives_every_layer_of_the_stage():
    setting = make_setting()
    feed = Feed(setting)
    feed.give(setting.baseline_s, requests=20)
    slow = setting.baseline_s * np.array([[1.0], [2.5]])
    estimate = feed.give(slow, changed=[1])
    assert estimate.times_s == pytest.approx(slow, rel=1e-6)
    assert feed.model.segments.samples.tolist() == [21, 1]
    assert feed.model.level_before == pytest.approx([0.0, 0.0], abs=1e-9)  # of stage 0 that of the baselines


def test_age_tells_how_many_samples_belong_to_the_change():
    setting = make_setting()
    feed = Feed(setting)
    slow = setting.baseline_s * np.array([[1.0], [2.0]])
    feed.give(setting.baseline_s, requests=20)
    feed.give(slow, requests=3)  # not detected yet
    estimate = feed.give(slow, changed=[1], age=4)
    assert feed.model.segments.samples[1] == 4
    assert estimate.times_s[1] == pytest.approx(slow[1], rel=1e-6)
    assert feed.model.level_before[1] == pytest.approx(0.0, abs=1e-9)  # the four are not in what was before


def test_samples_under_two_plans_belong_to_the_same_conditions():
    setting = make_setting()
    feed = Feed(setting)
    slow = setting.baseline_s * np.array([[1.0], [2.0]])
    feed.give(setting.baseline_s, requests=10)
    feed.give(slow, changed=[1])
    feed.give(slow, requests=3)  # still under the old plan
    estimate = feed.give(slow, (9, 3), requests=4)
    assert feed.model.segments.samples[1] == 8
    assert estimate.times_s == pytest.approx(slow, rel=1e-6)


def test_layers_are_predicted_by_their_own_times_where_they_were_seen():
    """Baselines are off by a factor per layer that is the same on all stages of a kind."""
    setting = make_setting()
    off = np.random.default_rng(1).uniform(0.75, 1.3, LAYERS)
    true = setting.baseline_s * off
    estimate = Feed(setting).give(true, requests=200)
    assert estimate.times_s[0, :6] == pytest.approx(true[0, :6], rel=0.005)
    assert estimate.times_s[1, 6:] == pytest.approx(true[1, 6:], rel=0.005)
    # Never seen there: nearer to the truth than the baselines are, once each stage's level is allowed for.
    level = np.exp(estimate.level)
    elsewhere = np.abs(np.log(estimate.times_s[0, 6:] / level[0] * level[1] / true[0, 6:]))
    assert elsewhere.max() < 0.1 < np.abs(np.log(off[6:])).max()


def test_stages_of_different_kinds_do_not_learn_from_each_other():
    baseline = np.stack([np.linspace(1.0, 2.0, LAYERS), np.linspace(2.0, 1.0, LAYERS)])
    setting = make_setting(baseline_s=baseline)
    true = baseline.copy()
    true[1, 8] *= 3  # only there, whatever the reason
    estimate = Feed(setting).give(true, requests=200)
    assert estimate.times_s[1, 8] == pytest.approx(true[1, 8], rel=0.01)
    assert estimate.times_s[0, 8] == pytest.approx(baseline[0, 8], rel=1e-6)


def test_what_layers_showed_outlasts_a_change():
    setting = make_setting()
    off = np.random.default_rng(2).uniform(0.75, 1.3, LAYERS)
    true = setting.baseline_s * off
    feed = Feed(setting)
    feed.give(true, requests=100)
    feed.give(true, (9, 3), requests=100)
    feed.give(true, (6, 6), requests=100)
    slow = true * np.array([[1.0], [2.0]])
    estimate = feed.give(slow, (6, 6), changed=[1])
    seen = np.zeros((2, LAYERS), dtype=bool)
    seen[0, :9] = seen[1, 6:] = True
    assert estimate.times_s[seen] == pytest.approx(slow[seen], rel=0.02)


def test_memory_bound_layers_slow_down_more():
    rng = np.random.default_rng(3)
    intensity = np.exp(rng.uniform(0.0, 4.0, LAYERS))
    setting = make_setting(intensity=intensity)
    boundness = -np.log(intensity)
    boundness = (boundness - boundness.mean()) / boundness.std()
    factor = np.exp(0.7 + 0.3 * boundness)
    feed = Feed(setting, noise=0.05)
    feed.give(setting.baseline_s, requests=100)
    slow = setting.baseline_s.copy()
    slow[1] *= factor
    estimate = feed.give(slow, changed=[1], requests=3)
    assert estimate.slope[1] == pytest.approx(0.3, abs=0.05)
    assert estimate.times_s[1, :6] == pytest.approx(slow[1, :6], rel=0.15)  # not held there
    flat = setting.baseline_s[1, :6] * slow[1, 6:].sum() / setting.baseline_s[1, 6:].sum()
    error = np.abs(np.log(estimate.times_s[1, :6] / slow[1, :6])).mean()
    assert error < 0.5 * np.abs(np.log(flat / slow[1, :6])).mean()


def test_no_slope_where_the_intensity_is_unknown():
    feed = Feed(make_setting())
    slow = feed.setting.baseline_s * np.linspace(1.0, 2.0, LAYERS)
    assert feed.give(slow, requests=50).slope.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("measured", [(), (0, 7), True])
def test_stages_add_up_to_what_was_measured_whether_or_not_layers_were(measured):
    feed = Feed(make_setting(), noise=0.2)
    estimate = feed.give(feed.setting.baseline_s * 1.5, requests=40, measured=measured)
    stage_s, samples = feed.model.segments.under_present_plan()
    assert samples.tolist() == [40, 40]
    forecast = estimate.forecast(PlanArraysCache(feed.setting).of(feed.setting.plan))
    assert forecast.stage_s == pytest.approx(stage_s, rel=1e-9)


def test_bursts_count_by_their_arithmetic_mean_and_widen_the_error():
    feed = Feed(make_setting())
    base = feed.setting.baseline_s
    steady = feed.give(base, requests=40)
    burst = base * np.array([[1.0], [4.0]])
    feed.give(burst, changed=[1])
    for _ in range(10):
        feed.give(base)
        feed.give(burst)
    estimate = feed.model.estimate()
    mean = (11 * 4 + 10) / 21
    plan = feed.setting.plan
    assert estimate.forecast(PlanArraysCache(feed.setting).of(plan)).stage_s[1] == pytest.approx(
        base[1, 6:].sum() * mean
    )
    assert estimate.level_error[1] > 10 * steady.level_error[1]


def test_forecast_adds_transfers_and_doubts_only_what_it_has_not_seen():
    setting = make_setting(send_s=0.25, receive_s=0.5)
    feed = Feed(setting, noise=0.1)
    estimate = feed.give(setting.baseline_s, requests=30)
    present = estimate.forecast(PlanArraysCache(setting).of(Plan((6, 6))))
    stage_s, _ = feed.model.segments.under_present_plan()
    assert present.stage_s == pytest.approx(stage_s + 0.75)
    assert present.doubt.tolist() == [0.0, 0.0]
    moved = estimate.forecast(PlanArraysCache(setting).of(Plan((8, 4))))
    assert moved.doubt[0] > 0 == moved.doubt[1]
    empty = estimate.forecast(PlanArraysCache(setting).of(Plan((12, 0))))
    assert empty.stage_s[1] == 0.75
    assert empty.error[1] == 0.0


def test_error_shrinks_with_samples():
    feed = Feed(make_setting(), noise=0.1)
    few = feed.give(feed.setting.baseline_s, requests=4).level_error
    many = feed.give(feed.setting.baseline_s, requests=396).level_error
    assert (many < few / 7).all()
    assert many**2 == pytest.approx([0.01 / 400] * 2, rel=0.3)


def test_a_stage_that_was_empty_for_long_is_judged_by_its_new_samples():
    feed = Feed(make_setting())
    base = feed.setting.baseline_s
    feed.give(base, requests=20)
    feed.give(base * np.array([[1.0], [50.0]]), changed=[1], requests=3)
    feed.give(base, (12, 0), requests=30)
    estimate = feed.give(base, (11, 1))
    assert feed.model.segments.samples[1] == 1
    assert estimate.times_s[1] == pytest.approx(base[1], rel=1e-6)


def test_a_stage_that_never_ran_is_as_much_above_its_baselines_as_the_others():
    feed = Feed(make_setting(3))
    estimate = feed.give(feed.setting.baseline_s * 1.3, (6, 6, 0), requests=100)
    assert estimate.times_s[2] == pytest.approx(feed.setting.baseline_s[2] * 1.3, rel=0.02)


def test_impossible_layers_stay_impossible():
    baseline = np.tile(np.linspace(1.0, 2.0, LAYERS), (2, 1))
    baseline[0, 9:] = np.inf
    feed = Feed(make_setting(baseline_s=baseline))
    estimate = feed.give(np.where(np.isinf(baseline), 1.0, baseline) * 2, requests=5)
    assert np.isinf(estimate.times_s[0, 9:]).all()
    assert np.isfinite(estimate.times_s[1]).all()


def test_a_level_seen_before_is_recognised():
    """Two noisy samples after a recovery: what the stage is like undisturbed is known better than they tell."""
    feed = Feed(make_setting(), noise=0.1, seed=5)
    base = feed.setting.baseline_s
    slow = base * np.array([[1.0], [2.0]])
    feed.give(base, requests=100)
    feed.give(slow, changed=[1], requests=50)
    calm = feed.model.calm_level[1]
    estimate = feed.give(base, changed=[1], requests=2)
    stage_s, _ = feed.model.segments.under_present_plan()
    off = abs(np.log(stage_s[1] / base[1, 6:].sum()))
    assert abs(estimate.level[1] - calm) < off / 3
    assert estimate.level_error[1] ** 2 < 0.1**2 / 2 / 3


def test_an_undetected_change_is_found_in_the_end():
    feed = Feed(make_setting(), noise=0.1)
    base = feed.setting.baseline_s
    feed.give(base, requests=300)
    assert feed.model.restart_shifted(latest=32, errors=6.0) == []
    assert feed.model.segments.samples.tolist() == [300, 300]
    feed.give(base * np.array([[1.0], [1.3]]), requests=32)
    assert feed.model.restart_shifted(latest=32, errors=6.0) == [1]
    assert feed.model.segments.samples.tolist() == [332, 32]


def test_a_large_change_is_found_by_two_requests_and_a_small_one_not():
    feed = Feed(make_setting(), noise=0.02)
    base = feed.setting.baseline_s
    feed.give(base, requests=60)
    feed.give(base * np.array([[1.15], [1.3]]), requests=2)
    assert feed.model.restart_shifted(latest=2, errors=5.0, least=0.2) == [1]
    assert feed.model.segments.samples.tolist() == [62, 2]


def test_slow_drift_is_followed():
    feed = Feed(make_setting(), noise=0.02)
    base = feed.setting.baseline_s
    for factor in np.linspace(1.0, 2.0, 200):
        estimate = feed.give(base * factor, requests=20)
    assert np.exp(estimate.level) == pytest.approx([2.0, 2.0], rel=0.15)


def test_an_average_over_changes():
    feed = Feed(make_setting())
    base = feed.setting.baseline_s
    for _ in range(100):
        feed.give(base * np.array([[1.0], [3.0]]), changed=[1], requests=2)
        estimate = feed.give(base, changed=[1], requests=2)
    average = feed.model.in_the_long_run(estimate)
    assert np.exp(average.level) == pytest.approx([1.0, 2.0], rel=0.05)


def test_no_baseline_is_too_short():
    baseline = np.tile(np.linspace(1.0, 2.0, LAYERS), (2, 1))
    baseline[:, 3] = 0.0
    estimate = Feed(make_setting(baseline_s=baseline)).give(baseline, requests=10)
    assert np.isfinite(estimate.times_s).all()
    assert estimate.times_s[:, 3].max() < 1e-6
