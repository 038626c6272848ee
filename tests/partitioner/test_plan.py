"""Plans: text form, ranges, bad input."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.partitioner.plan import Plan


def test_plan_is_the_layers_per_stage():
    plan = Plan((7, 11))
    assert plan == (7, 11)
    assert list(plan) == [7, 11]
    assert plan.ranges == ((0, 7), (7, 18))
    assert plan.layer_count == 18


def test_empty_stages_have_empty_ranges():
    assert Plan((0, 3, 0, 2, 0)).ranges == ((0, 0), (0, 3), (3, 3), (3, 5), (5, 5))


def test_text_and_repr():
    assert str(Plan((7, 11))) == "7|11"
    assert repr(Plan((7, 11))) == "Plan((7, 11))"
    assert repr(Plan((7,))) == "Plan((7,))"
    assert f"{Plan((1, 2, 3))}" == "1|2|3"


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_text_parses_back(counts):
    plan = Plan(counts)
    assert Plan.parse(str(plan)) == plan
    assert eval(repr(plan)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert type(pickle.loads(pickle.dumps(plan))) is Plan


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_ranges_tile_the_chain(counts):
    plan = Plan(counts)
    ranges = plan.ranges
    assert ranges[0][0] == 0
    assert ranges[-1][1] == plan.layer_count
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert tuple(last - first for first, last in ranges) == plan


def test_parse_allows_blanks():
    assert Plan.parse(" 7 | 11 ") == Plan((7, 11))


@pytest.mark.parametrize("text", ["", "7|", "|", "7,11", "a|b", "7.5|2", "3|-1"])
def test_parse_refuses_what_is_no_plan(text):
    with pytest.raises(ValueError, match="is not a plan") as caught:
        Plan.parse(text)
    assert repr(text) in str(caught.value)


def test_bad_counts():
    with pytest.raises(ValueError, match="at least one stage"):
        Plan(())
    with pytest.raises(ValueError, match=r"plan 3\|-1 has a negative layer count"):
        Plan((3, -1))


def test_check_fits():
    Plan((7, 11)).check_fits(layer_count=18, stage_count=2)
    with pytest.raises(ValueError, match=r"plan 7\|11 has 2 stages, the pipeline has 3"):
        Plan((7, 11)).check_fits(layer_count=18, stage_count=3)
    with pytest.raises(ValueError, match=r"plan 7\|11 spreads 18 layers, the model has 20"):
        Plan((7, 11)).check_fits(layer_count=20, stage_count=2)


def test_plans_are_hashable_and_compare_as_tuples():
    assert len({Plan((1, 2)), Plan((1, 2)), Plan((2, 1))}) == 2
