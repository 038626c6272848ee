"""The kind of interference from stage timings, made up from the parts that real loads were measured to add."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odin.monitor.attribution.kind import classify
from odin.monitor.timing import StageTiming

LAYER_S = (0.010, 0.010, 0.010, 0.010)
INTENSITY = (200.0, 150.0, 20.0, 1.0)


def timing(wall_s, cpu_s, delay_s=0.0, *, first=0, last=4, layer_s=None, stage=1):
    layers = layer_s if layer_s is not None else (wall_s / (last - first),) * (last - first)
    return StageTiming(stage, first, last, 0.001, wall_s, cpu_s, delay_s, 0.0, tuple(layers))


QUIET = [timing(0.070, 0.069)] * 8


def layered(factors, count, *, noise=0.01, seed=3, delay_s=0.0):
    """Requests whose layers take ``factors`` times LAYER_S, with noise of each layer and of the whole machine."""
    draw = np.random.default_rng(seed)
    timings = []
    for _ in range(count):
        layers = np.array(LAYER_S) * factors * np.exp(noise * draw.standard_normal(4)) * draw.uniform(0.9, 1.1)
        cpu_s = float(layers.sum())
        timings.append(timing(cpu_s + delay_s, cpu_s, delay_s, layer_s=layers * (cpu_s + delay_s) / cpu_s))
    return timings


def skewed(count, seed, *, hit=0.0, factor=2.0):
    """Requests with a tail of slow ones, of which a share ``hit`` is also preempted: ``factor`` times as slow."""
    draw = np.random.default_rng(seed)
    timings = []
    for _ in range(count):
        cpu_s = 0.070 * float(np.exp(0.05 * draw.standard_normal())) + (0.050 if draw.random() < 0.2 else 0.0)
        delay_s = (factor - 1) * 0.070 if draw.random() < hit else 0.0
        timings.append(timing(cpu_s + delay_s, cpu_s, delay_s))
    return timings


def test_with_nothing_added_nothing_is_told_of_skewed_times():
    """The undisturbed side was a median, the other one a mean: of skewed times that alone was an interference."""
    told = [classify(skewed(64, seed), skewed(64, 1000 + seed)) for seed in range(50)]
    assert np.mean([found.slowdown for found in told]) == pytest.approx(1.0, abs=0.02)
    assert sum(found.slowdown >= 1.05 for found in told) <= 10
    # as it was: the mean of one over the median of the other
    walls = [[t.wall_s for t in skewed(64, seed)] for seed in range(50)]
    assert np.mean([np.mean(w) / np.median(w) for w in walls]) > 1.1


@pytest.mark.parametrize("hit", [0.2, 0.33, 0.5, 1.0])
def test_a_load_that_comes_in_bursts_is_told_though_the_median_stays(hit):
    found = classify(skewed(64, 1), skewed(64, 2, hit=hit))
    assert found.kind == "CPU share"
    assert found.slowdown > 1.1


@pytest.mark.parametrize("count", [8, 16, 64])
def test_one_hiccup_tells_nothing_on_either_side(count):
    hiccup = [timing(0.700, 0.069, 0.630)]
    quiet, slow = [timing(0.070, 0.069)] * (count - 1), [timing(0.105, 0.069, 0.035)] * (count - 1)
    assert classify(quiet + hiccup, slow).kind == "CPU share"
    assert classify(quiet + hiccup, slow).slowdown == pytest.approx(1.5)
    assert classify(quiet, quiet + hiccup).kind == "unknown"
    assert classify(quiet, quiet + 2 * hiccup).kind == "CPU share"  # two are no accident


def test_a_cpu_stressor_on_the_core():
    # Figures of a real one: wall time doubles, CPU time hardly grows.
    found = classify([timing(0.069, 0.069)] * 8, [timing(0.153, 0.077, 0.076)] * 4)
    assert str(found) == "CPU share"
    assert found.slowdown == pytest.approx(153 / 69)
    assert [name for name, _ in found.parts] == ["CPU share", "memory or core speed"]
    assert found.shares == "CPU share 90%, memory or core speed 10%"
    assert found.note == ""


def test_only_cpu_time_rises():
    found = classify(QUIET, [timing(0.105, 0.104)] * 4)
    assert found.kind == "memory or core speed"
    assert found.parts == (("memory or core speed", pytest.approx(1.0)),)


def test_memory_bound_layers_suffer_more():
    before, now = layered((1, 1, 1, 1), 10), layered((1.1, 1.1, 1.6, 1.6), 8, seed=4)
    assert classify(before, now, intensity=INTENSITY).kind == "memory"


def test_compute_bound_layers_suffer_more():
    before, now = layered((1, 1, 1, 1), 10), layered((1.5, 1.5, 1.1, 1.1), 8, seed=4)
    assert classify(before, now, intensity=INTENSITY).kind == "core speed"


@pytest.mark.parametrize("seed", range(20))
def test_all_layers_suffer_alike_so_it_cannot_be_told(seed):
    before, now = layered((1, 1, 1, 1), 10, seed=seed), layered((1.4, 1.4, 1.4, 1.4), 8, seed=seed + 100)
    assert classify(before, now, intensity=INTENSITY).kind == "memory or core speed"


def test_a_difference_between_layers_that_noise_explains_is_none():
    before = layered((1, 1, 1, 1), 10, noise=0.5)
    now = layered((1.3, 1.3, 1.5, 1.5), 8, noise=0.5, seed=4)
    assert classify(before, now, intensity=INTENSITY).kind == "memory or core speed"


@pytest.mark.parametrize(
    ("intensity", "count"),
    [(None, 8), ((math.nan,) * 4, 8), ((50.0,) * 4, 8), (INTENSITY, 4), ((200.0, math.nan, math.nan, math.nan), 8)],
)
def test_layers_tell_nothing_without_intensities_or_with_few_requests(intensity, count):
    before, now = layered((1, 1, 1, 1), 10), layered((1.0, 1.0, 2.0, 2.0), count, seed=4)
    assert classify(before, now, intensity=intensity).kind == "memory or core speed"


def test_a_memory_stressor_on_the_same_core_does_both():
    before = layered((1, 1, 1, 1), 10)
    now = layered((1.1, 1.1, 1.8, 1.8), 8, seed=4, delay_s=0.04)
    found = classify(before, now, intensity=INTENSITY)
    assert found.kind == "CPU share + memory"
    assert [name for name, _ in found.parts] == ["CPU share", "memory"]
    assert sum(part for _, part in found.parts) == pytest.approx(1.0)


def test_a_lesser_part_is_named_only_if_it_is_beyond_the_machines_drift():
    # A third of the added time, but only a tenth of the undisturbed time.
    found = classify([timing(0.100, 0.100)] * 5, [timing(0.130, 0.110, 0.020)] * 5)
    assert found.kind == "CPU share"
    assert found.shares == "CPU share 67%, memory or core speed 33%"


def test_a_small_part_is_not_named_however_long_it_is():
    # Half of the undisturbed time, but a tenth of the added time.
    assert classify([timing(0.100, 0.100)] * 5, [timing(0.600, 0.150, 0.450)] * 5).kind == "CPU share"


def test_run_queue_delay_that_was_there_before_is_no_interference():
    # Something ran on the core all along; what is new is more CPU time.
    found = classify([timing(0.150, 0.100, 0.050)] * 5, [timing(0.200, 0.150, 0.050)] * 5)
    assert found.parts == (("memory or core speed", pytest.approx(1.0)),)


def test_bursts_count_by_their_sum():
    # Three requests of four were not hit at all; the median would say that nothing happened.
    found = classify(QUIET, [timing(0.070, 0.069)] * 3 + [timing(0.190, 0.069, 0.120)])
    assert found.kind == "CPU share"
    assert found.slowdown == pytest.approx(100 / 70)


def test_an_outlier_among_the_undisturbed_does_not_count():
    assert classify([*QUIET, timing(9.0, 0.1, 8.9)], [timing(0.140, 0.069, 0.070)] * 2).kind == "CPU share"


def test_a_quota_that_stops_the_stage_is_no_other_program():
    # Measured: throttled time shows up as run-queue delay, nearly all of it.
    now = [timing(0.472, 0.100, 0.354)] * 2
    before = [timing(0.101, 0.100)] * 5
    found = classify(before, now, throttled_share=0.74)
    assert found.kind == "throttling"
    assert "quota" in found.note
    assert classify(before, now, throttled_share=0.0).kind == "CPU share"
    assert classify(before, now, throttled_share=None).kind == "CPU share"
    assert classify(before, now, throttled_share=0.37).kind == "CPU share + throttling"


def test_delay_that_nobody_elses_use_of_the_core_explains_is_the_quotas():
    # The other stages of the group were idle, so that the kernel's sum over cores says little of this one.
    before, now = [timing(0.101, 0.100)] * 5, [timing(0.472, 0.100, 0.354)] * 2
    found = classify(before, now, throttled_share=0.37, others_share=0.02)
    assert found.kind == "throttling"
    assert dict(found.parts)["throttling"] > 0.9
    # Somebody had the core for half of the time, which may be the other half of the delay.
    assert classify(before, now, throttled_share=0.37, others_share=0.5).kind == "CPU share + throttling"
    # Nobody was seen on the core, but no quota was used up either: whoever it was could not be seen.
    assert classify(before, now, throttled_share=0.0, others_share=0.02).kind == "CPU share"


def test_throttled_time_of_others_in_the_group_is_not_more_than_the_delay():
    found = classify(QUIET, [timing(0.105, 0.104, 0.0)] * 4, throttled_share=2.0)
    assert found.kind == "memory or core speed"


def test_off_the_core_without_queueing_is_unknown():
    found = classify(QUIET, [timing(0.140, 0.069)] * 4)
    assert found.kind == "unknown"
    assert "virtual machine's host" in found.note


@pytest.mark.parametrize(
    ("factor", "note"),
    [(0.5, "no slower than before"), (1.0, "no slower than before"), (1.04, "+4% time is too little")],
)
def test_too_little_added_time_says_nothing(factor, note):
    found = classify(QUIET, [timing(0.070 * factor, 0.069 * factor)] * 4)
    assert found.kind == "unknown"
    assert found.parts == ()
    assert note in found.note


def test_nothing_to_compare():
    for before, now in (([], []), ([], QUIET), (QUIET, [])):
        found = classify(before, now)
        assert (found.kind, found.parts, math.isnan(found.slowdown)) == ("unknown", (), True)
    assert classify([], QUIET).note == "no request is known of these layers undisturbed"
    assert classify(QUIET, []).note == "no request is known disturbed"
    # A stage without layers, and times that are none.
    assert classify(QUIET, [timing(0.0, 0.0, first=3, last=3, layer_s=())]).kind == "unknown"
    assert classify(QUIET, [timing(math.nan, 0.1), timing(0.1, math.inf)]).kind == "unknown"


def test_timings_of_other_plans_do_not_count_without_baselines():
    longer = [timing(0.140, 0.138, first=0, last=8)] * 9
    assert classify(longer, [timing(0.100, 0.099)] * 3).kind == "unknown"
    found = classify([*longer, *QUIET], [*longer, timing(0.105, 0.104)])
    assert found.slowdown == pytest.approx(1.5)


def test_baselines_make_plans_comparable():
    before = [timing(0.040, 0.040)] * 5
    now = [timing(0.040, 0.020, 0.020, first=2, last=4)] * 5
    found = classify(before, now, baseline_s=LAYER_S)
    assert found.kind == "CPU share"
    assert found.slowdown == pytest.approx(2.0)
    assert found.parts == (("CPU share", pytest.approx(1.0)),)
    # A request with three times the work counts three times.
    unequal = [timing(0.010, 0.010, first=3), timing(0.060, 0.060, first=1)]
    assert classify(before, unequal, baseline_s=LAYER_S).slowdown == pytest.approx(70 / 40)
    # Layers that take no time that a clock can see are no measure of anything.
    assert classify(before, now, baseline_s=(0.01, 0.01, 0.0, 0.0)).note == "no request is known disturbed"


def test_several_threads_of_which_one_shares_its_core():
    # Four threads of 50 ms; one gets half a core, the others spin at the barrier until it is there.
    spinning = classify([timing(0.050, 0.200)] * 5, [timing(0.100, 0.350)] * 5, threads=4)
    # The same, but they sleep.
    sleeping = classify([timing(0.050, 0.200)] * 5, [timing(0.100, 0.200)] * 5, threads=4)
    assert (spinning.kind, sleeping.kind) == ("CPU share", "CPU share")
    assert spinning.parts == sleeping.parts == (("CPU share", pytest.approx(1.0)),)


def test_several_threads_that_all_compute_slower():
    # A part of the work runs on one thread only, so they are off their cores for a while even undisturbed.
    found = classify([timing(0.050, 0.160)] * 5, [timing(0.075, 0.240)] * 5, threads=4)
    assert found.parts == (("memory or core speed", pytest.approx(1.0)),)


def test_gpu():
    before, now = [timing(0.012, 0.010)] * 5, [timing(0.023, 0.020)] * 5
    assert str(classify(before, now, on_gpu=True, gpu_share=0.6)) == "GPU"
    assert classify(before, now, on_gpu=True, gpu_share=0.6).note == ""
    unknown_use = classify(before, now, on_gpu=True, gpu_share=math.nan)
    assert (unknown_use.kind, unknown_use.note != "") == ("GPU", True)
    alone = classify(before, now, on_gpu=True, gpu_share=None)
    assert (alone.kind, "no other process" in alone.note) == ("unknown", True)
    assert classify(before, now, on_gpu=True, gpu_share=0.01).kind == "unknown"
    copies = classify(before, [timing(0.023, 0.010)] * 5, on_gpu=True, gpu_share=0.6)
    assert copies.kind == "GPU"  # it waits for its turn before its first kernel
    on_the_way = classify(before, [timing(0.023, 0.010)] * 5, on_gpu=True, gpu_share=None)
    assert (on_the_way.kind, "on the way" in on_the_way.note) == ("unknown", True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"threads": 0}, "0 threads"),
        ({"intensity": (1.0,)}, "intensity has 1 values and a timing has layer 3"),
        ({"baseline_s": (1.0, 1.0)}, "baseline_s has 2 values"),
        ({"baseline_s": (1.0, 1.0, -1.0, 1.0)}, "give seconds"),
        ({"baseline_s": (1.0, 1.0, math.nan, 1.0)}, "give seconds"),
    ],
)
def test_nonsense_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        classify(QUIET, QUIET, **options)


RELAY_S = (0.004, 0.012, 0.006, 0.010, 0.008, 0.012, 0.005, 0.009)
RELAY_INTENSITY = (200.0, 10.0, 150.0, 5.0, 180.0, 20.0, 160.0, 2.0)


def relayed(count, firsts, factors, *, seed, lasts=(8,), delay=0.0):
    """Requests that stage 1 took over and handed on at cuts of their own; ``delay``: run-queue delay / CPU time."""
    draw = np.random.default_rng(seed)
    timings = []
    for first, last in zip(draw.choice(firsts, count), draw.choice(lasts, count), strict=True):
        layers = (np.array(RELAY_S) * factors * np.exp(0.02 * draw.standard_normal(8)))[first:last]
        cpu_s = float(layers.sum())
        timings.append(
            timing(cpu_s * (1 + delay), cpu_s, cpu_s * delay, first=first, last=last, layer_s=layers * (1 + delay))
        )
    return timings


BYPASSED = StageTiming(1, 8, 8, 0.0, 0.0, 0.0, 0.0, 0.0, ())


def test_fewer_layers_are_no_less_interference():
    """A slowed stage runs half of the layers that it ran before, other ones each time; some requests pass it by."""
    before = relayed(64, (2, 3, 4), 1.0, seed=1)
    now = [*relayed(12, (5, 6, 7), 1.0, seed=2, delay=1.2), BYPASSED, BYPASSED]
    assert np.mean([t.wall_s for t in now]) < np.mean([t.wall_s for t in before])
    found = classify(before, now, baseline_s=RELAY_S, intensity=RELAY_INTENSITY)
    assert found.kind == "CPU share"
    assert found.slowdown == pytest.approx(2.2, rel=0.03)
    calm = classify(before, relayed(12, (4, 5, 6), 1.0, seed=3), baseline_s=RELAY_S, intensity=RELAY_INTENSITY)
    assert calm.kind == "unknown"
    assert calm.slowdown == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_layers_are_compared_though_no_two_requests_ran_the_same(seed):
    """Only requests that ran all of the layers counted: of eight there were too few."""
    memory_bound = np.where(np.array(RELAY_INTENSITY) < 100, 1.8, 1.1)
    before = relayed(64, (0, 1, 2), 1.0, seed=seed, lasts=(6, 7, 8))
    now = relayed(8, (0, 1, 2), memory_bound, seed=100 + seed, lasts=(6, 7, 8))
    found = classify(before, now, baseline_s=RELAY_S, intensity=RELAY_INTENSITY)
    assert found.kind == "memory"
    opposite = relayed(8, (0, 1, 2), 1.9 - (memory_bound - 1), seed=200 + seed, lasts=(6, 7, 8))
    assert classify(before, opposite, baseline_s=RELAY_S, intensity=RELAY_INTENSITY).kind == "core speed"
    alike = relayed(8, (0, 1, 2), 1.5, seed=300 + seed, lasts=(6, 7, 8))
    assert classify(before, alike, baseline_s=RELAY_S, intensity=RELAY_INTENSITY).kind == "memory or core speed"
