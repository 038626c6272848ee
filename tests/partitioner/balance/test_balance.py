"""Exact balance against brute force, its choice among equals, and bad input."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import examples

from odin.partitioner.balance.exact import Balance, balance, fluid_bound_hz, stage_times
from odin.partitioner.plan import Plan

INF = math.inf


def all_plans(stages, layers, min_layers=0):
    for inner in itertools.combinations_with_replacement(range(layers + 1), stages - 1):
        cuts = (0, *inner, layers)
        plan = Plan(last - first for first, last in itertools.pairwise(cuts))
        if min(plan) >= min_layers:
            yield plan


def plain_stage_times(plan, times_s, send_s, receive_s, relay_s):
    """The definition, summed by math.fsum, with nothing clever."""
    result = []
    for stage, (first, last) in enumerate(plan.ranges):
        if first == last and relay_s is not None:
            result.append(float(relay_s[stage][last]))
        else:
            terms = [*times_s[stage][first:last]]
            terms += [send_s[stage][last]] if send_s is not None else []
            terms += [receive_s[stage][first]] if receive_s is not None else []
            result.append(math.fsum(terms))
    return result


def seconds(infinite):
    """Mixed on purpose: small integers make ties, floats make rounding, tiny beside huge makes cancellation."""
    values = st.one_of(
        st.integers(0, 4).map(float),
        st.floats(0, 10),
        st.sampled_from([0.1, 0.2, 0.3, 1e-9, 1e6]),
    )
    return st.one_of(values, values, values, st.just(INF)) if infinite else values


@st.composite
def problems(draw):
    stages, layers = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    infinite = draw(st.booleans())

    def matrix(columns):
        values = seconds(infinite)
        row = st.lists(values, min_size=columns, max_size=columns)
        return np.array(draw(st.lists(row, min_size=stages, max_size=stages)))

    times = matrix(layers)
    if draw(st.booleans()):
        times = np.broadcast_to(times[0], times.shape).copy()
    if draw(st.integers(0, 3)) == 0:
        times[draw(st.integers(0, stages - 1))] = INF
    options = {name: matrix(layers + 1) for name in ("send_s", "receive_s", "relay_s") if draw(st.booleans())}
    min_layers = draw(st.integers(0, 1)) if stages <= layers else 0
    return times, options, min_layers


@settings(max_examples=examples(400))
@given(problems())
def test_bottleneck_is_the_true_minimum(problem):
    times, options, min_layers = problem
    least = min(max(stage_times(plan, times, **options)) for plan in all_plans(*times.shape, min_layers=min_layers))
    if least == INF:
        with pytest.raises(ValueError, match="no plan avoids infinite times"):
            balance(times, min_layers=min_layers, **options)
        return
    found = balance(times, min_layers=min_layers, **options)
    assert found.bottleneck_s == least  # exactly, not nearly
    assert found.stage_s == stage_times(found.plan, times, **options)
    assert found.bottleneck_s == max(found.stage_s)
    assert min(found.plan) >= min_layers
    assert balance(times, min_layers=min_layers, **options) == found
    for row, count in zip(times, found.plan, strict=True):
        assert count == 0 or not np.isinf(row).all()


@settings(max_examples=examples(200))
@given(problems(), st.data())
def test_stage_times_follow_the_definition(problem, data):
    times, options, _ = problem
    plan = data.draw(st.sampled_from(list(all_plans(*times.shape))))
    plain = plain_stage_times(plan, times, *(options.get(name) for name in ("send_s", "receive_s", "relay_s")))
    # A stage's arithmetic is as fine as 2**-40 of all that this stage could cost (2**-50 if nothing is infinite).
    given_s = np.concatenate([times, *options.values()], axis=1)
    fine = np.where(np.isinf(given_s), 0, given_s).sum(axis=1) * 2.0**-40
    for got, expected, tolerance in zip(stage_times(plan, times, **options), plain, fine, strict=True):
        assert got == expected or abs(got - expected) <= tolerance


@settings(max_examples=examples(50))
@given(st.integers(0, 2**32 - 1))
def test_larger_problems_with_transfers_are_locally_and_globally_sound(seed):
    """Beyond brute force: an independent dynamic programme over (stage, cut) in exact integers."""
    random = np.random.default_rng(seed)
    stages, layers = int(random.integers(2, 12)), int(random.integers(2, 40))
    times = random.integers(1, 1000, (stages, layers)).astype(float)
    send, receive = random.integers(0, 2000, (2, stages, layers + 1)).astype(float)
    least = np.full(layers + 1, INF)
    least[0] = 0.0
    for stage in range(stages):
        cost = [
            min(max(least[a], times[stage, a:b].sum() + send[stage, b] + receive[stage, a]) for a in range(b + 1))
            for b in range(layers + 1)
        ]
        least = np.array(cost)
    assert balance(times, send_s=send, receive_s=receive).bottleneck_s == least[-1]


def test_equal_stages():
    assert balance([1.0] * 8, stage_count=4) == Balance(Plan((2, 2, 2, 2)), 2.0, (2.0, 2.0, 2.0, 2.0))


def test_different_speeds():
    found = balance([[4.0, 2.0, 2.0, 4.0], [8.0, 4.0, 4.0, 8.0]])
    assert found == Balance(Plan((3, 1)), 8.0, (8.0, 8.0))


def test_a_cut_is_moved_off_a_large_activation():
    # 4|4 by layers alone; the cut in the middle carries ten times the bytes of the cut after it.
    times, send = [1.0] * 8, [0.0, 3.0, 3.0, 3.0, 3.0, 0.25, 0.25, 0.25, 0.0]
    assert balance(times, stage_count=2).plan == Plan((4, 4))
    assert balance(times, stage_count=2, send_s=send) == Balance(Plan((5, 3)), 5.25, (5.25, 3.0))


def test_an_empty_stage_passes_on_what_crosses_its_cut():
    send, receive = [0.5, 0.25, 0.125], [4.0, 2.0, 1.0]
    times = [[1.0, 1.0]] * 3
    # Stage 0 at the front relays the input (cut 0), stage 2 at the end relays the output (cut 2).
    assert stage_times(Plan((0, 2, 0)), times, send, receive) == (4.5, 6.125, 1.125)
    assert stage_times(Plan((0, 2, 0)), times, send, receive, 0.0) == (0.0, 6.125, 0.0)
    assert stage_times(Plan((0, 2, 0)), times, send, receive, [9.0, 8.0, 7.0]) == (9.0, 6.125, 7.0)


def test_passing_on_is_part_of_the_bottleneck():
    # Receiving the input costs 4 whoever does it; with 0|2 both stages would have to.
    assert balance([[1.0, 1.0]] * 2, receive_s=[4.0, 0.0, 0.0]) == Balance(Plan((1, 1)), 5.0, (5.0, 1.0))


def test_stages_that_cost_more_to_feed_than_they_relieve_stay_empty():
    # Any inner cut costs 3 on both sides, the whole model only 2 on one stage; going round empty stages is free.
    send = [0.0, 3.0, 0.0]
    assert balance([1.0, 1.0], stage_count=2, send_s=send, relay_s=0.0).bottleneck_s == 2.0


def test_dead_stage_gets_no_layers():
    times = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    times[1] = INF
    assert balance(times) == Balance(Plan((2, 0, 1)), 3.0, (3.0, 0.0, 3.0))


def test_a_layer_that_a_stage_cannot_run():
    times = [[1.0, INF, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]]
    assert balance(times) == Balance(Plan((1, 3)), 15.0, (1.0, 15.0))


def test_ties_do_not_starve_stages():
    # The first layer alone is the bottleneck; 1|4|0, 1|3|1 and 1|2|2 have the same, and 1|2|2 is fair.
    assert balance([10.0, 1.0, 1.0, 1.0, 1.0], stage_count=3).plan == Plan((1, 2, 2))
    assert balance([1.0, 1.0, 1.0, 1.0, 10.0], stage_count=3).plan == Plan((2, 2, 1))
    assert balance([1.0] * 6 + [10.0], stage_count=4).plan == Plan((2, 2, 2, 1))


def test_ties_prefer_less_in_total():
    # 1|2 costs 4 and 4, 2|1 costs 4 and 3.
    assert balance([3.0, 1.0, 3.0], stage_count=2, send_s=[0.0, 1.0, 0.0, 0.0]).plan == Plan((2, 1))


def test_a_stage_idle_behind_slow_layers_is_filled():
    # 0|1|1|4 is as good by its bottleneck, and moving one cut cannot better it: two slow layers must shift first.
    assert balance([10.0, 10.0, 1.0, 1.0, 1.0, 1.0], stage_count=4).plan == Plan((1, 1, 2, 2))
    assert balance([1.0, 1.0, 1.0, 1.0, 10.0, 10.0], stage_count=4).plan == Plan((2, 2, 1, 1))


def test_more_stages_than_layers_leaves_some_empty():
    found = balance([3.0, 1.0], stage_count=4)
    assert found.bottleneck_s == 3.0
    assert found.plan.layer_count == 2


def test_sums_do_not_depend_on_their_order():
    # 0.1 added ten times in floats is 0.9999999999999999; here both halves cost exactly the same.
    found = balance([0.1] * 20, stage_count=2)
    assert found.plan == Plan((10, 10))
    assert found.stage_s[0] == found.stage_s[1] == pytest.approx(1.0, rel=1e-14)


def test_extreme_magnitudes():
    times = [[1e-300, 2e-300, 1e-300], [1e300, 1e300, 1e300]]
    found = balance(times)
    assert found.plan == Plan((3, 0))
    assert found.bottleneck_s == pytest.approx(4e-300, rel=1e-14)


def test_zero_times():
    found = balance([0.0, 0.0], stage_count=2)
    assert found.bottleneck_s == 0.0
    assert found.plan.layer_count == 2


def test_large_problem_is_exact():
    """152 layers on 52 stages: the optimum cannot be improved, by the greedy rule that is exact without transfers."""
    random = np.random.default_rng(7)
    times = random.integers(1, 1000, 152) * random.integers(1, 4, (52, 1)).astype(float)
    found = balance(times)

    def feasible(limit):
        first = 0
        for row in times:
            spent = 0.0
            while first < 152 and spent + row[first] <= limit:
                spent += row[first]
                first += 1
        return first == 152

    assert feasible(found.bottleneck_s)
    assert not feasible(np.nextafter(found.bottleneck_s, 0.0))


def test_fluid_bound():
    assert fluid_bound_hz([[1.0, 3.0], [2.0, 6.0]]) == 0.25 + 0.125
    assert fluid_bound_hz([[1.0, 3.0], [INF, INF]]) == 0.25
    assert fluid_bound_hz([1.0, 3.0], stage_count=2) == 0.5
    assert fluid_bound_hz([[INF], [INF]]) == 0.0


@settings(max_examples=examples(100))
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(1, 5))
def test_fluid_bound_is_an_upper_bound(times, stages):
    found = balance(times, stage_count=stages)
    assert 1 / found.bottleneck_s <= fluid_bound_hz(times, stage_count=stages) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([[1.0, -2.0]], {}, r"times_s\[0, 1\] is -2.0; times are seconds >= 0"),
        ([[1.0, math.nan]], {}, r"times_s\[0, 1\] is nan"),
        ([1.0, 2.0], {}, r"times_s has shape \(2,\); give \(stages, layers\)"),
        ([[[1.0]]], {}, r"times_s has shape \(1, 1, 1\)"),
        ([[]], {}, r"times_s has shape \(1, 0\); at least one stage and one layer"),
        ([1.0, 2.0], {"stage_count": 0}, "stage_count is 0"),
        ([[1.0, 2.0]], {"stage_count": 2}, "times_s has 1 rows, stage_count is 2"),
        ([[1.0, 2.0]], {"send_s": [0.0, 0.0]}, r"send_s has shape \(2,\); 2 layers have 3 cuts"),
        ([[1.0, 2.0]], {"receive_s": [[0.0] * 3] * 2}, r"receive_s has shape \(2, 3\).*give \(3,\) or \(1, 3\)"),
        ([[1.0, 2.0]], {"send_s": [0.0, math.nan, 0.0]}, r"send_s\[1\] is nan"),
        ([[1.0, 2.0]], {"relay_s": -1.0}, "relay_s is -1.0"),
        ([[1.0, 2.0]], {"min_layers": 2}, "min_layers is 2; it is 0"),
        ([[1.0], [1.0]], {"min_layers": 1}, "2 stages cannot each have one of 1 layers; take fewer stages"),
        ([[INF, INF], [INF, INF]], {}, "no plan avoids infinite times.*at least one live stage"),
        ([[1.0, 1.0], [INF, INF]], {"min_layers": 1}, "no plan avoids infinite times.*min_layers=0"),
        ([[1e308, 1e308]], {}, "the times of stage 0 add up beyond floats"),
    ],
)
def test_bad_input(times, options, message):
    with pytest.raises(ValueError, match=message):
        balance(times, **options)


def test_stage_times_refuses_a_plan_that_does_not_fit():
    with pytest.raises(ValueError, match=r"plan 1\|1 spreads 2 layers, the model has 3"):
        stage_times(Plan((1, 1)), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"plan 1\|2 has 2 stages, the pipeline has 1"):
        stage_times(Plan((1, 2)), [[1.0, 2.0, 3.0]])
