"""Windows and the hand-over decision."""

import math

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies import Setting
from odin.partitioner.policies.relay import RelayPolicy
from odin.partitioner.relay import (
    Later,
    Windows,
    free_at,
    hand_over,
    idle_slowdown,
    is_done_sooner,
    is_expected_at,
    is_left_to_others,
    is_much_sooner,
    slowdown_after,
)

IDLE = Later(idle=True, taken=False, free_s=0.0, layer_s=1.0)
TAKEN = Later(idle=False, taken=True, free_s=0.0, layer_s=1.0)


def occupied(free_s, layer_s=1.0):
    return Later(idle=False, taken=False, free_s=free_s, layer_s=layer_s)


def decide(*later, must=False, busy=False, layer_s=1.0, rest_s=100.0, cost_s=0.0, saves_s=0.0):
    return hand_over(10.0, later, must=must, busy=busy, layer_s=layer_s, rest_s=rest_s, cost_s=cost_s, saves_s=saves_s)


@pytest.mark.parametrize("text", ["@7|@18", "@0-18|@0-18|@18", "@3-9|@9-18|@18", "@18", "@0|@5-5|@5"])
def test_windows_parse_back(text):
    windows = Windows.parse(text)

    assert Windows.parse(str(windows)) == windows


def test_windows_of_one_cut_are_a_plan():
    assert Windows.of_plan(Plan((7, 0, 11))).plan == Plan((7, 0, 11))
    assert Windows.whole(stage_count=2, layer_count=18).plan is None
    assert str(Windows.whole(stage_count=1, layer_count=18)) == "@18"


@pytest.mark.parametrize(
    "text", ["", "7|18", "@7", "@7|18", "@-3|@18", "@9-3|@18", "@9|@3-9|@18", "@0-18|@3-18", "@x|@3"]
)
def test_windows_that_make_no_sense(text):
    if text == "@7":
        Windows.parse(text)  # one stage of seven layers
        return
    with pytest.raises(ValueError, match="@18"):
        Windows.parse(text)


def test_windows_fit_a_pipeline():
    with pytest.raises(ValueError, match="2 stages and 18 layers"):
        Windows.parse("@7|@18").check_fits(layer_count=18, stage_count=3)


def test_who_may_take_a_request_at_a_cut():
    windows = Windows.parse("@2-4|@3-8|@8")

    assert [list(windows.takers(0, cut)) for cut in (1, 2, 3, 4, 5)] == [[], [1], [1, 2], [1, 2], []]
    assert list(windows.takers(2, 8)) == []


def test_the_first_idle_stage_gets_it():
    assert decide(IDLE) == 0
    assert decide(occupied(99.0), IDLE, IDLE) == 1
    assert decide(TAKEN, IDLE) == 1
    assert decide() is None


def test_the_cut_nearest_to_the_moment_at_which_the_next_stage_is_free():
    assert decide(occupied(10.4)) == 0
    assert decide(occupied(10.6)) is None
    assert decide(occupied(10.6), cost_s=0.2) == 0


def test_who_has_another_request_hands_over_as_soon_as_there_is_a_place():
    assert decide(occupied(15.0), busy=True) == 0
    assert decide(TAKEN, busy=True) is None


def test_who_would_delay_the_request_is_passed_by():
    assert decide(Later(True, False, 0.0, math.inf), IDLE) == 1
    assert decide(Later(True, False, 0.0, 5.0), rest_s=4.0) is None
    assert decide(occupied(15.0), busy=True, rest_s=4.0) is None
    assert decide(occupied(2.0), busy=True, rest_s=8.5) is None  # eight seconds late: eight more are expected


def test_at_the_end_of_a_window_only_a_place_counts():
    assert decide(occupied(99.0, math.inf), must=True, rest_s=0.0) == 0
    assert decide(TAKEN, must=True) is None


def test_what_is_published():
    assert free_at(2.0, rest_s=3.0, next_free_s=math.inf) == 5.0
    assert free_at(2.0, rest_s=3.0, next_free_s=1.0) == 2.0
    assert free_at(2.0, rest_s=3.0, next_free_s=9.0) == 5.0
    assert is_expected_at(3.0, 5.0) == 7.0


def test_slowdown_follows_layers_and_is_forgotten_when_idle():
    slowdown = 1.0
    for _ in range(30):
        slowdown = slowdown_after(slowdown, 0.6, 0.2)
    assert slowdown == pytest.approx(3.0, abs=1e-3)
    assert slowdown_after(2.0, 1.0, 0.0) == 2.0
    assert idle_slowdown(3.0, idle_s=1.0, chain_s=1.0) == 2.0
    assert idle_slowdown(3.0, idle_s=0.0, chain_s=1.0) == 3.0


@pytest.mark.parametrize(
    ("free", "text"),
    [
        ([True, True, True], "@0-18|@0-18|@0-18|@18"),
        ([True, False, False], "@0-7|@7|@12|@18"),  # the third stage is a GPU
        ([False, True, True], "@4|@4-18|@4-18|@18"),  # the first one is
        ([False, True, False], "@4|@4-12|@12|@18"),  # the first and the last
        ([False, False, False], "@4|@7|@12|@18"),
    ],
)
def test_boundaries_beside_a_gpu_stay_where_the_plan_has_them(free, text):
    plan = Plan((4, 3, 5, 6))
    windows = Windows.around(plan, free=free)
    assert str(windows) == text
    setting = Setting(plan, np.ones((4, 18)), np.zeros(19), np.zeros(19), np.full(18, np.nan), reach=windows)
    assert RelayPolicy().windows(setting) == windows
    for boundary in range(3):
        if not free[boundary]:  # nobody hands over past it before
            cut = (4, 7, 12)[boundary]
            assert windows.range_of(boundary)[1] == windows.range_of(boundary + 1)[0] == cut
            past = [k for stage in range(boundary) for before in range(cut) for k in windows.takers(stage, before)]
            assert max(past, default=0) <= boundary


def test_who_is_very_slow_passes_on_what_another_has_done_in_half_the_time():
    assert is_much_sooner(10.0, True, 0.0, 1.0, 2.0)
    assert not is_much_sooner(10.0, True, 0.0, 1.0, 1.9)
    assert is_much_sooner(10.0, False, 13.0, 1.0, 8.0)
    assert not is_much_sooner(10.0, False, 13.0, 1.0, 7.9)
    assert not is_much_sooner(10.0, False, 8.0, 1.0, 5.9)  # 2 s late: expected 2 s from now


def test_a_busy_stage_waits_for_a_cheaper_cut_if_the_other_is_busy_until_then():
    assert decide(occupied(12.0), busy=True, saves_s=0.1) is None
    assert decide(occupied(12.0), busy=True, saves_s=-0.1) == 0
    assert decide(occupied(10.9), busy=True, saves_s=0.1) == 0  # it would have nothing to do
    assert decide(IDLE, busy=True, saves_s=0.1) == 0


@pytest.mark.parametrize(
    ("text", "all_begin"),
    [
        ("@0-18|@18", True),
        ("@0-9|@0-18|@18", True),
        ("@0|@18", False),  # a plan
        ("@18|@18", False),
        ("@18", False),
        ("@1-18|@18", False),
        ("@0-9|@4-18|@18", False),
        ("@0|@0-18|@18", False),  # the first stage may run nothing
    ],
)
def test_which_windows_let_all_stages_begin_with_a_request(text, all_begin):
    assert Windows.parse(text).all_begin == all_begin


def test_where_all_take_new_requests_only_what_is_sooner_done_elsewhere_is_handed_over():
    def decides(wait_s, its_layer_s, layer_s, *, cost_s=0.0, waiting=False):
        return is_done_sooner(
            10.0, wait_s == 0, 10.0 + wait_s, its_layer_s, 4 * its_layer_s, layer_s, 4 * layer_s, cost_s, waiting
        )

    assert not decides(0.0, 1.0, 1.0)
    assert not decides(0.0, 1.0, 1.3)  # speeds are not known so well
    assert decides(0.0, 1.0, 1.4)
    assert not decides(0.0, 1.0, 1.4, cost_s=0.5)
    assert not decides(0.0, 1.0, 1.9, waiting=True)
    assert decides(0.0, 1.0, 2.0, waiting=True)
    assert decides(1.0, 1.0, 2.0)
    assert not decides(1.1, 1.0, 2.0)  # by then the next cut is reached
    assert not decides(-1.0, 1.0, 1.9)  # late by a second: not expected before another one


def test_who_leaves_new_requests_to_others():
    idle, busy, hangs = (True, 0.0, 1.0), (False, 1.0, 1.0), (False, math.inf, 1.0)
    assert not is_left_to_others(1.9, [idle, busy], waiting=1)
    assert is_left_to_others(2.0, [idle, busy], waiting=1)
    assert not is_left_to_others(2.0, [idle, busy], waiting=2)
    assert not is_left_to_others(19.0, [hangs, busy], waiting=1)
    assert is_left_to_others(20.0, [hangs, busy], waiting=1)
    assert not is_left_to_others(20.0, [idle], waiting=0)  # the queue has ended
