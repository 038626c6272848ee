"""Detectors: exact alarms from seeds, robustness against hiccups, drift and bursts, and what they refuse."""

from __future__ import annotations

import doctest
import math
import sys

import numpy as np
import pytest

from odin.monitor.detectors import CusumDetector, ThresholdDetector, cusum
from odin.monitor.detectors.adwin import AdwinDetector
from odin.monitor.detectors.bank import CusumBank
from odin.monitor.detectors.history import History, samples_since_change
from odin.monitor.detectors.noise import NoiseCalibration
from odin.monitor.detectors.page_hinkley import PageHinkleyDetector
from odin.monitor.detectors.per_stream import PerStreamDetector
from odin.testing import drive_detector as run
from odin.testing import log_slowdowns as quiet

LN2 = math.log(2)
NAN = math.nan


# ---------------------------------------------------------------- CUSUM: onset, end, levels
def test_twice_as_slow_is_seen_at_the_first_sample_and_so_is_its_end():
    samples = quiet(900, 2)
    samples[500:600, 1] += LN2
    detector = CusumDetector(2)
    assert run(detector, samples[:600]) == [(500, 1, True, 1)]
    assert detector.level == pytest.approx([0.0, LN2], abs=0.04)
    assert run(detector, samples[600:], first=600) == [(600, 1, False, 1)]
    assert (detector.level == 0.0).all()
    assert detector.noise == pytest.approx([0.1, 0.1], abs=0.008)


def test_the_age_reaches_back_to_the_onset():
    samples = quiet(700, cv=0.1, seed=3)
    samples[500:] += math.log(1.2)
    (request, _, disturbed, age), *more = run(CusumDetector(1), samples)
    assert (request, disturbed, more) == (503, True, [])
    assert request - age + 1 == 500


def test_age_counts_samples_since_the_change():
    samples = quiet(530)
    samples[500:] += LN2
    detector = CusumDetector(1)
    run(detector, samples)
    assert detector.age.tolist() == [30]


@pytest.mark.parametrize("slowdown", [1.25, 1.5, 2.0, 3.0, 10.0])
def test_levels_between_and_beyond_the_bank_are_estimated(slowdown):
    samples = quiet(600, 8, cv=0.05, seed=1)
    samples[500:] += math.log(slowdown)
    detector = CusumDetector(8)
    run(detector, samples)
    assert detector.disturbed.all()
    assert np.exp(detector.level) == pytest.approx(np.full(8, slowdown), rel=0.03)


def test_a_change_between_disturbed_levels():
    samples = quiet(700, cv=0.05)
    samples[500:600] += math.log(1.5)
    samples[600:] += math.log(3)
    detector = CusumDetector(1)
    assert run(detector, samples) == [(500, 0, True, 1), (600, 0, True, 1)]
    assert np.exp(detector.level) == pytest.approx([3.0], rel=0.02)


def test_false_alarms_are_fewer_than_one_in_ten_thousand():
    for cv in (0.05, 0.2):
        samples = quiet(2500, 200, cv=cv, seed=7)
        detector = CusumDetector(200)
        onsets = 0
        for request, x in enumerate(samples):
            before = detector.disturbed
            detector.update(x)
            onsets += int((detector.changed & ~(before & ~detector.disturbed)).sum()) if request >= 500 else 0
        assert onsets <= 200 * 2000 / 10_000


def test_a_longer_arl_asks_for_more_evidence():
    samples = quiet(600, cv=0.2, seed=2)
    samples[500:] += math.log(1.5)
    requests = []
    for arl in (300, 10_000, 1e8):
        found = run(CusumDetector(1, arl=arl), samples)
        requests.append(next(request for request, _, disturbed, _ in found if disturbed and request >= 500))
    assert requests == [503, 504, 507]


# ---------------------------------------------------------------- CUSUM: what is no interference
def test_one_hiccup_is_nothing_where_hiccups_are_known_but_two_in_a_row_are():
    samples = quiet(1000, cv=0.05)
    samples[50:1000:150] += LN2
    detector = CusumDetector(1)
    assert run(detector, samples) == []
    assert run(detector, quiet(2, cv=0.05) + LN2, first=1000) == [(1001, 0, True, 2)]


def test_a_hiccup_that_was_taken_for_an_onset_ends_and_is_remembered():
    samples = quiet(1600, cv=0.05, seed=5)
    samples[[700, 1100, 1300]] += LN2
    detector = CusumDetector(1)
    found = run(detector, samples)
    assert [(request, disturbed) for request, _, disturbed, _ in found] == [(700, True), (735, False)]
    assert detector.noise == pytest.approx([0.05], abs=0.006)


def test_drift_of_the_whole_machine_is_followed():
    samples = quiet(4000, 20, cv=0.05, seed=1)
    samples += math.log(1.2) * np.sin(np.arange(4000) * 2 * math.pi / 8000)[:, None]
    assert len([found for found in run(CusumDetector(20), samples) if found[2]]) <= 4000 * 20 / 10_000


def test_a_small_step_is_followed_not_reported():
    samples = quiet(1500, cv=0.01)
    samples[500:] += math.log(1.05)
    detector = CusumDetector(1)
    assert run(detector, samples) == []
    samples = quiet(10, cv=0.01, seed=1) + math.log(1.05) + math.log(1.12)
    assert [found[0] for found in run(detector, samples)] == [0]
    assert np.exp(detector.level) == pytest.approx([1.12], abs=0.015)


def test_a_ramp_is_interference_not_drift():
    samples = quiet(800, cv=0.05)
    samples[500:] += (LN2 * np.minimum(np.arange(300) / 150, 1.0))[:, None]
    detector = CusumDetector(1)
    found = run(detector, samples)
    assert found[0][0] < 530
    assert detector.disturbed.all()
    assert np.exp(detector.level) == pytest.approx([2.0], rel=0.1)


def test_bursts_are_one_disturbance_with_the_level_of_mean_times():
    random = np.random.default_rng(4)
    samples = quiet(1000, 4, cv=0.05)
    samples[500:800] += 0.9 * (random.random((300, 4)) < 0.5)
    detector = CusumDetector(4)
    found = run(detector, samples[:800])
    assert sorted(stream for _, stream, _, _ in found) == [0, 1, 2, 3]
    assert np.exp(detector.level) == pytest.approx(np.full(4, (1 + math.exp(0.9)) / 2), rel=0.1)
    ends = run(detector, samples[800:], first=800)
    assert sorted(stream for _, stream, disturbed, _ in ends if not disturbed) == [0, 1, 2, 3]
    assert max(request for request, _, _, _ in ends) < 830


def test_noise_that_lasts_does_not_alarm_more():
    random, persistence = np.random.default_rng(0), 0.6
    shocks = random.normal(0.0, 0.1 * math.sqrt(1 - persistence**2), (3000, 20))
    samples = np.zeros((3000, 20))
    for request in range(1, 3000):
        samples[request] = persistence * samples[request - 1] + shocks[request]
    assert len([found for found in run(CusumDetector(20), samples) if found[2]]) <= 6  # as the ARL says


# ---------------------------------------------------------------- CUSUM: beginnings
def test_serving_may_begin_under_interference():
    samples = quiet(400, cv=0.1)
    samples[:60] += LN2
    samples[200:300] += LN2
    detector = CusumDetector(1)
    assert [found[:3] for found in run(detector, samples[:200])] == [(4, 0, True), (63, 0, False)]
    assert (detector.level == 0.0).all()
    assert [found[:3] for found in run(detector, samples[200:300], first=200)] == [(201, 0, True)]
    assert np.exp(detector.level) == pytest.approx([2.0], rel=0.05)


def undisturbed(offset, *, cv=0.08, persistence=0.6, requests=2000, streams=8, seed=0):
    """Noise that lasts, about a level that is off the baseline."""
    random = np.random.default_rng(seed)
    samples = random.normal(0.0, cv, (requests, streams))
    for index in range(1, requests):
        samples[index] = persistence * samples[index - 1] + math.sqrt(1 - persistence**2) * samples[index]
    return samples + np.log(offset)


def onsets(detector, samples):
    """(request, stream) of each slowdown that is worth telling."""
    found, before = [], np.zeros(samples.shape[1], dtype=bool)
    for request, x in enumerate(samples):
        detector.update(x)
        now = detector.level > math.log(1.3)
        found.extend((request, int(stream)) for stream in np.flatnonzero(now & ~before))
        before = now
    return found


@pytest.mark.parametrize("offset", [0.9, 1.0, 1.1, 1.25, np.linspace(1.0, 1.25, 8), np.linspace(1.0, 1.6, 8) ** 0.5])
def test_a_baseline_that_is_off_is_no_interference(offset):
    assert onsets(CusumDetector(8), undisturbed(offset)) == []


@pytest.mark.parametrize("begin", [0, 3, 5, 20, 40, 100])
@pytest.mark.parametrize("offset", [1.0, 1.2, np.array([1.2, 1.0]), np.array([1.0, 1.2])])
def test_a_load_is_seen_within_a_few_requests_whenever_it_comes(begin, offset):
    for seed in range(5):
        samples = undisturbed(offset, requests=300, streams=2, seed=seed)
        samples[begin:200, 1] += LN2
        detector = CusumDetector(2)
        assert [stream for _, stream in onsets(detector, samples[: begin + 8])] == [1]
        assert detector.age[1] == pytest.approx(8, abs=3)
        run(detector, samples[begin + 8 : 200])
        # Where no undisturbed request was seen: against the profile.
        slowdown = 2.0 if begin else 2.0 * np.broadcast_to(offset, 2)[1]
        assert np.exp(detector.level[1]) == pytest.approx(slowdown, rel=0.2)
        run(detector, samples[200:240])
        assert (detector.level < math.log(1.15)).all()


def test_a_load_on_all_streams_from_the_first_request():
    samples = undisturbed(1.1, requests=300, streams=3)
    samples[:150] += LN2
    detector = CusumDetector(3)
    assert {(stream, disturbed) for _, stream, disturbed, _ in run(detector, samples[:8])} == {
        (0, True),
        (1, True),
        (2, True),
    }
    assert np.exp(detector.level) == pytest.approx([2.2] * 3, rel=0.15)
    run(detector, samples[8:])
    assert (detector.level < math.log(1.15)).all()


def test_a_load_that_creeps_in_is_none_the_less_one():
    samples = undisturbed(1.05, streams=2)
    samples[:, 1] += LN2 * np.minimum(np.arange(2000) / 1500, 1.0)
    detector = CusumDetector(2)
    assert {stream for _, stream in onsets(detector, samples)} == {1}
    assert detector.disturbed.tolist() == [False, True]


def test_a_baseline_measured_beside_a_load():
    samples = undisturbed(0.5, requests=600, streams=2)
    samples[300:400, 0] += LN2  # no slower than the baseline, and a load all the same
    detector = CusumDetector(2)
    assert onsets(detector, samples[:300]) == []
    assert onsets(detector, samples[300:400]) == [(1, 0)]
    assert np.exp(detector.level) == pytest.approx([2.0, 1.0], rel=0.1)
    run(detector, samples[400:])
    assert (detector.level < math.log(1.15)).all()


@pytest.mark.parametrize("cv", [0.03, 0.06])
def test_stages_that_are_faster_while_the_pipeline_fills(cv):
    samples = undisturbed(1.1, cv=cv)
    samples[:8] -= math.log(1.25)
    assert onsets(CusumDetector(8), samples) == []


def test_cold_first_requests_are_no_load():
    samples = undisturbed(1.1, cv=0.05)
    samples[:3] += np.log([[3.0], [2.0], [1.3]])
    assert onsets(CusumDetector(8), samples) == []


def test_a_short_dip_does_not_become_the_undisturbed_level():
    samples = quiet(700, cv=0.05)
    samples[500:515] -= math.log(1.4)
    detector = CusumDetector(1)
    found = run(detector, samples)
    assert [disturbed for _, _, disturbed, _ in found] == [False, False]
    assert not detector.disturbed.any()


def test_a_slow_first_request_is_no_level():
    samples = quiet(300, cv=0.1)
    samples[0] += math.log(20)
    detector = CusumDetector(1)
    assert run(detector, samples) == []
    assert detector.noise == pytest.approx([0.1], abs=0.02)


def test_nothing_is_known_at_first():
    detector = CusumDetector(2)
    assert not detector.changed.any()
    assert not detector.disturbed.any()
    assert detector.level.tolist() == [0.0, 0.0]
    assert detector.age.tolist() == [0, 0]


# ---------------------------------------------------------------- CUSUM: rebase
def test_a_rebase_expects_a_jump():
    samples = quiet(700, 2, cv=0.05)
    samples[500:] += math.log(1.3)
    samples[600:, 0] += LN2
    detector = CusumDetector(2)
    assert run(detector, samples[:500]) == []
    detector.rebase()
    assert run(detector, samples[500:], first=500) == [(600, 0, True, 1)]
    assert np.exp(detector.level) == pytest.approx([2.0, 1.0], rel=0.03)


def test_without_rebase_the_same_jump_is_an_onset():
    samples = quiet(600, cv=0.05)
    samples[500:] += math.log(1.3)
    assert [found[:3] for found in run(CusumDetector(1), samples)] == [(500, 0, True)]


def test_a_rebase_keeps_a_disturbed_stream_disturbed_and_learns_its_level():
    samples = quiet(700, cv=0.05)
    samples[500:600] += LN2
    samples[600:] += math.log(1.6)
    detector = CusumDetector(1)
    run(detector, samples[:600])
    detector.rebase()
    assert run(detector, samples[600:650], first=600) == []
    assert detector.disturbed.all()
    assert np.exp(detector.level) == pytest.approx([1.6], rel=0.03)
    assert [found[:3] for found in run(detector, samples[650:] - math.log(1.6), first=650)] == [(650, 0, False)]


def test_a_huge_jump_after_a_rebase_is_interference_all_the_same():
    samples = quiet(600, cv=0.05)
    samples[500:] += math.log(3)
    detector = CusumDetector(1)
    run(detector, samples[:500])
    detector.rebase()
    assert run(detector, samples[500:], first=500) == [(502, 0, True, 3)]
    assert np.exp(detector.level) == pytest.approx([3.0], rel=0.03)


def test_rebases_in_a_row():
    samples = quiet(560, cv=0.05)
    detector = CusumDetector(1)
    run(detector, samples[:500])
    for first in range(500, 560, 3):
        detector.rebase()
        assert run(detector, samples[first : first + 3]) == []
    assert not detector.disturbed.any()


# ---------------------------------------------------------------- CUSUM: nonsense, missing, infinite
def test_streams_are_independent():
    samples = quiet(800, 3, seed=9)
    samples[500:700, 1] += LN2
    samples[::3, 2] = NAN
    together, alone = CusumDetector(3), CusumDetector(1)
    for x in samples:
        together.update(x)
        alone.update(x[1:2])
        assert (together.changed[1], together.disturbed[1]) == (alone.changed[0], alone.disturbed[0])
        assert together.level[1] == pytest.approx(alone.level[0], abs=1e-12)


def test_a_stream_without_samples_stays_as_it_was():
    samples = quiet(540, 2)
    samples[500:, 0] += LN2
    detector = CusumDetector(2)
    run(detector, samples)
    before = detector.level, detector.age, detector.disturbed
    assert run(detector, np.full((200, 2), NAN)) == []
    after = detector.level, detector.age, detector.disturbed
    assert before[0] == pytest.approx(after[0], abs=1e-3)  # calibration takes in what it had not yet
    assert [before[1].tolist(), before[2].tolist()] == [after[1].tolist(), after[2].tolist()]


def test_a_stream_may_begin_late():
    samples = quiet(700, 2)
    samples[:200, 1] = NAN
    samples[600:, 1] += LN2
    assert [found[:3] for found in run(CusumDetector(2), samples)] == [(600, 1, True)]


def test_a_dead_stage_is_infinitely_slow_and_may_come_back():
    samples = quiet(700)
    samples[500:550] = math.inf
    detector = CusumDetector(1)
    assert run(detector, samples[:550]) == [(500, 0, True, 1)]
    assert np.isfinite(detector.level).all()
    assert (detector.level > 10).all()
    assert [found[:3] for found in run(detector, samples[550:], first=550)] == [(550, 0, False)]


def test_a_time_of_zero_is_no_sample():
    samples = quiet(600)
    samples[520:530] = -math.inf
    detector = CusumDetector(1)
    assert run(detector, samples) == []
    assert detector.age.tolist() == [590]


@pytest.mark.parametrize(("value", "first"), [(0.0, []), (0.2, []), (-3.0, [(4, 0, False, 5)])])
def test_samples_without_any_noise(value, first):
    detector = CusumDetector(1)
    with np.errstate(all="raise"):
        assert run(detector, np.full((3000, 1), value)) == first
        assert run(detector, np.full((40, 1), value + LN2)) == [(0, 0, True, 1)]
    assert np.exp(detector.level) == pytest.approx([2.0], rel=0.01)
    assert 0.001 <= detector.noise[0] < 0.006


def test_what_it_shows_is_not_what_it_works_on():
    detector = CusumDetector(1)
    detector.update([0.0])
    age = detector.age
    detector.changed[...] = True
    detector.disturbed[...] = True
    detector.update([0.0])
    assert age.tolist() == [1]
    assert not detector.changed.any()
    assert not detector.disturbed.any()


@pytest.mark.parametrize("make", [CusumDetector, ThresholdDetector])
@pytest.mark.parametrize("x", [[0.0], [0.0] * 3, 0.0, [[0.0, 0.0]]])
def test_one_sample_per_stream(make, x):
    with pytest.raises(ValueError, match="for 2 streams: give one each"):
        make(2).update(x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"streams": 0}, "streams=0"),
        ({"arl": 10}, "arl=10"),
        ({"arl": NAN}, "arl=nan"),
        ({"shifts": ()}, "shifts="),
        ({"shifts": (1.0, 2.0)}, "ascending"),
        ({"shifts": (2.0, 1.5)}, "ascending"),
        ({"minimum": 0.9}, "minimum=0.9"),
        ({"minimum": 2.0, "surprise": 1.5}, "surprise=1.5"),
        ({"common": 0.9}, "common=0.9"),
        ({"own": NAN}, "own=nan"),
    ],
)
def test_cusum_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        CusumDetector(**{"streams": 2, **options})


# ---------------------------------------------------------------- the parts of it
def test_bank_adds_up_log_likelihood_ratios():
    bank = CusumBank(1, shifts=[1.0, 2.0], arl=10_000)
    bank.calibrate(np.array([1.0]), np.zeros(1), np.array([[100.0], [100.0]]))
    for residual in (1.5, -0.25, 3.0):
        assert not bank.add(np.array([residual]), np.array([1.0]))
    # d (r - d / 2): 1.0, -0.75, 2.5 for d = 1; 1.0, -2.5 (kept at 0), 4.0 for d = 2; downward only -0.25 counts: -0.25
    assert bank.evidence[:, :, 0].tolist() == [[2.75, 4.0], [0.0, 0.0]]
    bank.add(np.array([5.0]), np.array([0.0]))
    assert bank.evidence[0, :, 0].tolist() == [2.75, 4.0]
    assert bank.add(np.array([4.0]), np.array([1.0]))
    assert bank.alarms().tolist() == [0]


def test_noise_that_lasts_counts_for_shifts_that_take_long():
    bank, plain = CusumBank(1, shifts=[0.1, 1.0], arl=10_000), CusumBank(1, shifts=[0.1, 1.0], arl=10_000)
    no_limit = np.array([[100.0], [100.0]])
    plain.calibrate(np.array([0.01]), np.zeros(1), no_limit)
    bank.calibrate(np.array([0.01]), np.array([0.8]), no_limit)
    for one in (bank, plain):
        one.add(np.array([0.6]), np.array([100.0]))
    slow, quick = (plain.evidence / np.maximum(bank.evidence, 1e-9))[0, :, 0]
    assert slow == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.1)  # 9
    assert quick == pytest.approx(1 + 0.8, rel=0.01)  # of two samples


def test_bank_censors_one_sample():
    bank = CusumBank(1, shifts=[1.0, 4.0], arl=10_000)
    bank.calibrate(np.array([1.0]), np.zeros(1), np.array([[5.0], [9.0]]))
    bank.add(np.array([50.0]), np.array([1.0]))
    # d = 4 forgets it with the next usual sample, d = 1 does not: two such samples must not be enough for it.
    assert bank.evidence[0, :, 0] == pytest.approx([0.4 * bank.threshold, 5.0])
    bank.add(np.array([-50.0]), np.array([1.0]))
    assert bank.evidence[1, :, 0] == pytest.approx([9.0, 9.0])  # above the threshold: hiccups are not known there


def test_noise_is_that_of_the_normal_part():
    random = np.random.default_rng(0)
    residuals = random.normal(0.0, 0.1, (4096, 1))
    hiccups = random.random((4096, 1)) < 0.01
    noise = NoiseCalibration(1)
    for first in range(0, 4096, 32):
        noise.learn((residuals + hiccups)[first : first + 32])
    assert np.sqrt(noise.variance) == pytest.approx([0.1], rel=0.05)
    assert noise.persistence == pytest.approx([0.0], abs=0.07)
    above, below = noise.evidence_limit[:, 0]
    assert above == pytest.approx(-math.log(hiccups.sum() / 4096), abs=0.1)
    assert below > 10


def test_noise_that_lasts_is_told():
    random = np.random.default_rng(0)
    residuals = np.zeros((4096, 1))
    for index in range(1, 4096):
        residuals[index] = 0.5 * residuals[index - 1] + random.normal(0.0, 0.1)
    noise = NoiseCalibration(1)
    for first in range(0, 4096, 32):
        noise.learn(residuals[first : first + 32])
    assert noise.persistence == pytest.approx([0.5], abs=0.05)


def test_a_disturbance_is_not_taken_for_noise_however_much_noise_there_is():
    """On a busy machine it was: at its end 40 samples of 3.3 times counted as hiccups, and 3 times passed for noise."""
    samples = quiet(406, cv=0.4)
    samples[300:340] += math.log(3.3)
    samples[346:] += math.log(3.0)
    detector = CusumDetector(1)
    seen = [(at, disturbed) for at, _, disturbed, _ in run(detector, samples)]
    assert seen == [(301, True), (341, False), (348, True)]
    assert detector.disturbed.all()


def test_excused_samples_are_counted_for_their_stream_alone():
    noise = NoiseCalibration(2)
    for _ in range(40):
        noise.learn(quiet(32, 2))
    before = noise.evidence_limit
    noise.excuse(1, np.array([0.0, 2.0, 0.0]))
    after = noise.evidence_limit
    assert after[:, 0] == pytest.approx(before[:, 0])
    assert after[0, 1] < before[0, 1] - 2
    assert after[1, 1] == pytest.approx(before[1, 1], abs=0.01)


def test_history_forgets_in_a_ring():
    history = History(4, 2)
    for value in range(6):
        history.advance()[...] = (value, NAN if value == 4 else -value)
    assert history.of(0).tolist() == [2, 3, 4, 5]
    assert history.of(1).tolist() == [-2, -3, -5]
    history.keep(1, 2)
    assert history.of(1).tolist() == [-3, -5]
    assert history.of(0).tolist() == [2, 3, 4, 5]
    history.drop(0, 2)
    assert history.of(0).tolist() == [2, 3]
    history.clear()
    assert history.of(0).tolist() == []


@pytest.mark.parametrize(
    ("deviations", "count"),
    [([0, 0, 1, 1], 2), ([0, 0, 0, 5], 1), ([1, 1, 1, 1], 4), ([0, 3, 1, 3], 3), ([0, 3, -1, 3], 1), ([-1], 1)],
)
def test_most_likely_time_of_change(deviations, count):
    assert samples_since_change(np.array(deviations, dtype=float)) == count


# ---------------------------------------------------------------- threshold
def test_threshold_is_one_sample_against_the_last_reference():
    detector = ThresholdDetector(1, ratio=0.2)
    times = [1.0, 1.19, 0.9, 1.25, 1.3, 1.6, 1.0, 0.7, 1.0]
    seen = []
    for time in times:
        detector.update([math.log(time)])
        seen.append(
            (bool(detector.changed[0]), bool(detector.disturbed[0]), round(float(np.exp(detector.level[0])), 3))
        )
    assert seen == [
        (False, False, 1.0),
        (False, False, 1.0),
        (False, False, 1.0),
        (True, True, 1.25),
        (False, True, 1.25),
        (True, True, 1.6),
        (True, False, 1.0),
        (True, False, 1.0),  # faster than ever: that is undisturbed now
        (True, True, 1.429),
    ]
    assert detector.age.tolist() == [1]


def test_threshold_begins_at_the_baseline():
    detector = ThresholdDetector(2)
    detector.update([LN2, 0.1])
    assert detector.disturbed.tolist() == [True, False]
    assert detector.level == pytest.approx([LN2, 0.0])


def test_threshold_rebase_and_missing_samples():
    detector = ThresholdDetector(2)
    detector.update([0.0, NAN])
    detector.update([NAN, 0.0])
    detector.rebase()
    detector.update([1.0, NAN])
    assert not detector.changed.any()
    assert not detector.disturbed.any()
    detector.update([1.0, -0.5])
    assert not detector.changed.any()
    detector.update([1.5, NAN])
    assert detector.changed.tolist() == [True, False]
    assert detector.level == pytest.approx([0.5, 0.0])
    assert detector.age.tolist() == [1, 2]
    detector.rebase()
    detector.update([1.7, NAN])
    assert detector.changed.tolist() == [False, False]
    assert detector.disturbed.tolist() == [True, False]
    assert detector.level == pytest.approx([0.7, 0.0])


@pytest.mark.parametrize(("options", "match"), [({"streams": 0}, "streams=0"), ({"streams": 1, "ratio": 0}, "ratio=0")])
def test_threshold_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        ThresholdDetector(**options)


# ---------------------------------------------------------------- adapters
class Scripted:
    """Says that there is a drift at given samples."""

    def __init__(self, at):
        self.at, self.seen, self.drift_detected = at, 0, False

    def update(self, x):
        self.drift_detected = self.seen in self.at
        self.seen += 1


def test_alarms_become_onset_change_and_end():
    detector = PerStreamDetector(1, lambda: Scripted({12, 24, 34}))
    samples = np.concatenate([np.zeros(10), np.full(10, 1.0), np.full(10, 2.0), np.zeros(10)])[:, None]
    assert run(detector, samples) == [(12, 0, True, 3), (24, 0, True, 5), (34, 0, False, 5)]


def test_alarm_of_one_stream_only_and_missing_samples():
    made = iter([Scripted({5}), Scripted({5})])
    detector = PerStreamDetector(2, lambda: next(made))
    samples = np.zeros((8, 2))
    samples[4:, 0] = 1.0
    samples[:4:2, 1] = NAN
    samples[6:, 1] = -1.0
    assert run(detector, samples) == [(5, 0, True, 2), (7, 1, False, 2)]
    assert detector.age.tolist() == [4, 2]
    # Until its alarm, the mean of what came before moves with the new samples.
    assert detector.level == pytest.approx([1 - 1 / 5, 0.0])


@pytest.mark.parametrize("make", [PageHinkleyDetector, AdwinDetector])
def test_adapters_say_what_to_install(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ImportError, match=r"pip install 'odin-pipeline\[compare\]'"):
        make(2)


@pytest.mark.parametrize(("make", "within"), [(PageHinkleyDetector, 4), (AdwinDetector, 16)])
def test_adapters_see_onset_and_end(make, within):
    pytest.importorskip("river")
    samples = quiet(500, 2)
    samples[200:300, 1] += LN2
    onset, end = run(make(2), samples)
    assert (onset[1:3], end[1:3]) == ((1, True), (1, False))
    assert 200 <= onset[0] < 200 + within
    assert 300 <= end[0] < 300 + within


def test_the_example_in_the_docstring_holds():
    tried = doctest.testmod(cusum)
    assert (tried.failed, tried.attempted) == (0, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [CusumDetector, ThresholdDetector])
def test_a_stage_that_is_not_measured_for_long_is_as_it_was(make):
    """A disturbance that sinks to nothing, then no layers on that stage for 200 requests, then quiet ones."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        detector = make(2)
        offsets = [0.0] * int(random.integers(4, 40))
        offsets += random.uniform(0.4, 1.5, random.integers(2, 5)).tolist()
        offsets += [0.03] * int(random.integers(5, 30))
        for offset in offsets:
            detector.update(random.normal(0, 0.05, 2) + np.array([offset, 0.0]))
        if random.random() < 0.5:
            detector.rebase()
        for _ in range(200):
            detector.update([math.nan, random.normal(0, 0.05)])
        for _ in range(30):
            detector.update(random.normal(0, 0.05, 2))
        assert np.isfinite(detector.level).all()
