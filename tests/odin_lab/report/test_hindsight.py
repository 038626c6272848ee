"""What moves came to, in hindsight."""

import math

import pytest

from odin.monitor.events import PlanChanged
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline, StageTiming
from odin_lab.report.hindsight import gains_in_hindsight

BASELINE_S = [[0.01] * 6, [0.01] * 6]


def moved(epoch, before, after):
    return PlanChanged(1.0, 10, epoch, before, after, "move", "", math.nan, 0.0)


def ran(epoch, plan, slowdowns):
    """A request under a plan, its stages so many times as slow as their baselines."""
    stages, first = [], 0
    for stage, (count, slowdown) in enumerate(zip(plan, slowdowns, strict=True)):
        timing = (0.01 * slowdown,) * count
        stages.append(StageTiming(stage, first, first + count, 0.0, sum(timing), 0.0, 0.0, 0.0, timing))
        first += count
    return RequestTimeline(1, epoch, 0.0, 1.0, tuple(stages))


def test_a_move_while_a_stage_is_slow_was_worth_it():
    move = moved(1, (3, 3), (4, 2))
    assert gains_in_hindsight(BASELINE_S, [move], 5 * [ran(1, (4, 2), [1.0, 2.0])]) == pytest.approx([0.5])


def test_a_move_that_came_too_late_was_in_vain():
    move = moved(1, (3, 3), (4, 2))
    assert gains_in_hindsight(BASELINE_S, [move], 5 * [ran(1, (4, 2), [1.0, 1.0])]) == pytest.approx([-0.25])


def test_each_move_is_judged_by_the_requests_that_ran_under_it():
    moves = [moved(1, (3, 3), (4, 2)), moved(2, (4, 2), (3, 3)), moved(3, (3, 3), (2, 4))]
    requests = [ran(1, (4, 2), [1.0, 2.0]), ran(2, (3, 3), [1.0, 1.0]), ran(7, (3, 3), [9.0, 1.0])]
    there, back, never = gains_in_hindsight(BASELINE_S, moves, requests)
    assert there == pytest.approx(0.5)
    assert back == pytest.approx(1 / 3)
    assert math.isnan(never)


def test_transfers_were_left_out():
    """A move that pays for its balance with a far larger activation on the way was counted as a gain."""
    move = moved(1, (3, 3), (4, 2))
    send_s = receive_s = [0.0, 0.0, 0.0, 0.001, 0.02, 0.0, 0.0]  # cheap at cut 3, dear at cut 4
    requests = 5 * [ran(1, (4, 2), [1.0, 2.0])]
    assert gains_in_hindsight(BASELINE_S, [move], requests) == pytest.approx([0.06 / 0.04 - 1])
    told = gains_in_hindsight(BASELINE_S, [move], requests, send_s=send_s, receive_s=receive_s)
    assert told == pytest.approx([(0.06 + 0.001) / (0.04 + 0.02) - 1])
    dear = gains_in_hindsight(BASELINE_S, [move], requests, send_s=[0.0] * 4 + [0.03, 0.0, 0.0])
    assert dear == pytest.approx([0.06 / 0.07 - 1])  # in vain


def test_a_stage_without_layers_tells_nothing():
    move = moved(1, (3, 3), (6, 0))
    assert math.isnan(gains_in_hindsight(BASELINE_S, [move], [ran(1, (6, 0), [1.0, 1.0])])[0])


def test_small_micro_batches_count_as_full_ones():
    """One sample takes a third of a full micro-batch: it looked like stages that had become faster."""
    times = SampleTimes(BASELINE_S, [[0.01 / 3] * 6] * 2, batch=8)
    send_s = [0.0, 0.0, 0.0, 0.001, 0.02, 0.0, 0.0]
    move = moved(1, (3, 3), (4, 2))
    full = gains_in_hindsight(BASELINE_S, [move], [ran(1, (4, 2), [1.0, 2.0])], send_s=send_s)
    small = [ran(1, (4, 2), [1 / 3, 2 / 3])._replace(samples=1)]
    assert gains_in_hindsight(BASELINE_S, [move], small, send_s=send_s, times=times) == pytest.approx(full)
    assert gains_in_hindsight(BASELINE_S, [move], small, send_s=send_s) != pytest.approx(full)
