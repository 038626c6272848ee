"""Policies of a knob: exact values, period by period."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable

import pytest

from odin.tuning.aimd import Aimd
from odin.tuning.batch_search import BatchSearch
from odin.tuning.instance_steps import InstanceSteps
from odin.tuning.policy import KnobPolicy, make_knob_policy

MODULES = (
    "aimd",
    "batch_search",
    "choice",
    "dead_band",
    "instance_steps",
    "oscillation",
    "periods",
    "policy",
    "statistic",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"odin.tuning.{module}"))
    assert (found.failed, found.attempted > 0) == (0, True)


def turns(policy: KnobPolicy, latency_s: Callable[[int], float], periods: int) -> list[int]:
    return [policy.update(latency_s(policy.value)) for _ in range(periods)]


def per_sample(seconds: float) -> Callable[[int], float]:
    return lambda value: seconds * value


class TestBatchSearch:
    def test_halves_the_range_until_it_is_near_enough(self):
        search = BatchSearch(limit_s=0.1, largest=127)
        assert turns(search, per_sample(0.003), 6) == [64, 17, 26, 30, 30, 30]

    def test_stays_within_the_dead_band(self):
        search = BatchSearch(limit_s=0.1, largest=127, start=30)
        assert [search.update(latency_s) for latency_s in (0.085, 0.1, 0.09)] == [30, 30, 30]
        assert search.update(0.1001) != 30

    def test_the_range_opens_above_when_there_is_room_at_its_end(self):
        search = BatchSearch(limit_s=0.1, largest=64)
        assert turns(search, per_sample(0.01), 4) == [33, 6, 9, 9]
        assert turns(search, per_sample(0.002), 4) == [10, 11, 38, 51]

    def test_the_largest_is_not_passed(self):
        assert turns(BatchSearch(limit_s=1.0, largest=8), per_sample(0.001), 6) == [5, 7, 8, 8, 8, 8]

    def test_one_alone_breaks_the_limit(self):
        assert turns(BatchSearch(limit_s=0.01, largest=8), per_sample(0.02), 3) == [1, 1, 1]

    def test_what_breaks_the_limit_by_proportion_is_not_tried(self):
        search = BatchSearch(limit_s=0.05, largest=32, start=25)
        assert search.update(0.1) <= 12

    def test_neighbours_of_which_one_has_room_and_one_breaks_the_limit(self):
        """Room with 2, broken with 3: the third is tried again after 8 periods, then after 16."""
        values = turns(BatchSearch(limit_s=0.05, largest=4), per_sample(0.02), 40)
        assert values[:2] == [3, 2]
        assert [period for period, value in enumerate(values) if value == 3] == [0, 10, 28]

    def test_a_load_comes_and_leaves(self):
        search = BatchSearch(limit_s=0.05, largest=32)
        assert turns(search, per_sample(0.002), 4) == [17, 25, 25, 25]
        assert turns(search, per_sample(0.004), 4) == [7, 10, 12, 12]
        assert turns(search, per_sample(0.002), 4) == [13, 23, 23, 23]


class TestInstanceSteps:
    def test_one_more_where_there_is_room_and_one_less_over_the_limit(self):
        steps = InstanceSteps(limit_s=0.045, largest=8)
        assert turns(steps, lambda count: 0.005 + 0.01 * count, 5) == [2, 3, 4, 4, 4]
        assert turns(steps, lambda count: 0.005 + 0.02 * count, 4) == [3, 2, 2, 2]

    def test_remembers_what_broke_the_limit(self):
        steps = InstanceSteps(limit_s=0.038, largest=8, start=2)
        assert turns(steps, per_sample(0.01), 10) == [3, 4, 3, 3, 3, 3, 3, 3, 3, 3]

    def test_comes_back_at_once_when_the_load_has_left(self):
        steps = InstanceSteps(limit_s=0.05, largest=2, start=2)
        assert [steps.update(latency_s) for latency_s in (0.08, 0.04, 0.02, 0.025)] == [1, 1, 2, 2]

    def test_ends_are_kept(self):
        assert turns(InstanceSteps(limit_s=0.1, largest=2), per_sample(0.01), 3) == [2, 2, 2]
        assert turns(InstanceSteps(limit_s=0.001, largest=2), per_sample(0.01), 3) == [1, 1, 1]


class TestAimd:
    def test_four_more_and_a_tenth_less(self):
        assert turns(Aimd(limit_s=0.05, largest=32), per_sample(0.003), 6) == [5, 9, 13, 17, 15, 15]

    def test_remembers_nothing(self):
        """Without a value in the dead band it goes on for ever."""
        assert turns(Aimd(limit_s=0.05, largest=32), per_sample(0.02), 8) == [5, 4, 3, 2, 6, 5, 4, 3]

    def test_a_tenth_of_little_is_one(self):
        assert turns(Aimd(limit_s=0.01, largest=32, start=3), per_sample(0.02), 3) == [2, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_s": 0.0}, "limit of 0 s is no positive"),
        ({"limit_s": float("nan")}, "no positive number of seconds"),
        ({"largest": 0}, r"start=1 is not from 1 to largest=0"),
        ({"start": 9}, r"start=9 is not from 1 to largest=8"),
        ({"start": 1.5}, "must be whole numbers"),
        ({"name": "fastest"}, "policy 'fastest' is unknown; choose one of dnnscaler, aimd"),
        ({"knob": "threads"}, "knob 'threads' is unknown; choose one of batch, instances"),
    ],
)
def test_errors_name_the_value_and_the_remedy(options, message):
    given = {"name": "dnnscaler", "knob": "batch", "limit_s": 0.1, "largest": 8, **options}
    with pytest.raises(ValueError, match=message):
        make_knob_policy(given.pop("name"), **given)
