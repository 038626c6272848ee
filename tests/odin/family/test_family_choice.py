"""Exact decisions of the policies that choose variants."""

from __future__ import annotations

import math

import pytest

from odin.family.choice import AlwaysPolicy, OdinPolicy
from odin.family.demand import Demand
from odin.family.errors import refused
from odin.family.facts import Choice, Facts, Prediction, Refusal, Seen, Step, Want
from odin.family.infaas import InfaasPolicy
from odin.family.policies import POLICIES, make_variant_policy
from odin.family.told import Told
from odin.monitor.events import VariantChosen
from odin.monitor.view.event_text import event_text

FACTS = [
    Facts("small", 0.0, 0.010, load_s=1.0, memory_mib=100, accuracy=0.90, cost_s=0.010, capacity_hz=200),
    Facts("middle", 0.0, 0.020, load_s=1.5, memory_mib=200, accuracy=0.95, cost_s=0.020, capacity_hz=100),
    Facts("large", 0.0, 0.040, load_s=2.0, memory_mib=400, accuracy=0.98, cost_s=0.040, capacity_hz=50),
    Facts("exit", 0.0, 0.008, 1.0, 100, accuracy=0.97, cost_s=0.008, capacity_hz=250, form="exit-3", lost=0.01),
]
SMALL, MIDDLE, LARGE, EXIT = range(4)
ALL = {SMALL, MIDDLE, LARGE, EXIT}


class Times:
    """What variants take now; loading included for those that are not loaded."""

    def __init__(self, loaded: set[int], **slower: float) -> None:
        self.loaded, self.asked = loaded, []
        self.slower = [slower.get(facts.name, 1.0) for facts in FACTS]

    def __call__(self, variant: int, *, loaded: bool = False) -> Prediction:
        self.asked.append(variant)
        seconds = FACTS[variant].latency_s() * self.slower[variant]
        seconds += 0.0 if loaded or variant in self.loaded else FACTS[variant].load_s
        return Prediction(seconds, seconds)


def choose(want: Want, times: Times, **options) -> Choice | Refusal:
    return OdinPolicy(**options).choose(FACTS, times.loaded, want, times)


@pytest.mark.parametrize(
    ("accuracy", "variant"), [(0.0, SMALL), (0.90, SMALL), (0.92, MIDDLE), (0.96, LARGE), (0.98, LARGE)]
)
def test_the_least_dear_one_that_is_accurate_enough(accuracy, variant):
    chosen = choose(Want(accuracy, 0.05), Times(ALL))
    assert (chosen.variant, chosen.step, chosen.missed) == (variant, "first", -1)


def test_only_what_comes_into_question_is_predicted():
    times = Times(ALL)
    choose(Want(0.92, 0.05), times)
    assert times.asked == [MIDDLE]


def test_the_most_accurate_one_if_that_is_preferred():
    assert choose(Want(0.9, 0.05), Times(ALL), prefer="accuracy").variant == LARGE
    chosen = choose(Want(0.9, 0.05), Times(ALL, large=2.0), prefer="accuracy")
    assert (chosen.variant, chosen.step) == (MIDDLE, "variant")


def test_another_variant_only_when_the_first_would_be_late():
    chosen = choose(Want(0.9, 0.03), Times(ALL, small=4.0))
    assert chosen == Choice(MIDDLE, 0.02, 0.02, "variant", -1, "interference")


def test_what_is_too_slow_even_alone_is_not_the_first():
    chosen = choose(Want(0.9, 0.03), Times(ALL), prefer="accuracy")
    assert (chosen.variant, chosen.step) == (MIDDLE, "first")


def test_reduced_last_and_only_if_allowed():
    times = Times(ALL, small=9.0, middle=9.0, large=9.0)
    assert isinstance(choose(Want(0.9, 0.05), times), Refusal)
    chosen = choose(Want(0.9, 0.05, budget=0.01), times)
    assert (chosen.variant, chosen.step) == (EXIT, "reduced")
    assert choose(Want(0.9, 0.05, budget=0.01), Times(ALL)).variant == SMALL  # full ones first, though dearer
    assert isinstance(choose(Want(0.9, 0.05, budget=0.009), times), Refusal)  # it loses more than that
    assert isinstance(choose(Want(0.98, 0.05, budget=0.01), times), Refusal)  # the accuracy holds for it too


def test_of_reduced_forms_the_one_that_loses_least_though_it_is_dearer():
    times = [9.0, 0.03, 0.02, 0.01, 0.005]
    facts = [
        Facts("full", 0.0, 0.04, accuracy=0.98, cost_s=0.04),
        Facts("exit-8", 0.0, 0.03, accuracy=0.979, cost_s=0.03, form="exit-8", lost=0.001),
        Facts("exit-9", 0.0, 0.02, accuracy=0.985, cost_s=0.02, form="exit-9", lost=-0.005),  # gained by chance
        Facts("exit-5", 0.0, 0.01, accuracy=0.97, cost_s=0.01, form="exit-5", lost=0.01),
        Facts("exit-1", 0.0, 0.005, accuracy=0.90, cost_s=0.005, form="exit-1", lost=0.08),
    ]

    def predict(variant: int, *, loaded: bool = False) -> Prediction:
        return Prediction(times[variant], times[variant])

    def chosen(latency_s: float, budget: float = 0.1) -> str:
        choice = OdinPolicy().choose(facts, set(range(5)), Want(0.0, latency_s, budget), predict)
        return facts[choice.variant].name if isinstance(choice, Choice) else "refused"

    assert [chosen(limit) for limit in (10.0, 1.0, 0.015, 0.007, 0.001)] == [
        "full", "exit-9", "exit-5", "exit-1", "refused"
    ]  # fmt: skip
    assert chosen(0.007, budget=0.01) == "refused"
    assert chosen(1.0, budget=0.0) == "refused"  # off, though one seems to lose nothing
    assert chosen(math.inf) == "full"  # no deadline is no reason to compute less


def test_what_is_loaded_goes_before_what_is_not_and_what_was_missed_is_told():
    chosen = choose(Want(0.9, 5.0), Times({LARGE}))
    assert chosen == Choice(LARGE, 0.04, 0.04, "variant", SMALL, "unloaded")
    chosen = choose(Want(0.9, 1.2), Times({LARGE}, large=99.0))
    assert (chosen.variant, chosen.step, chosen.missed) == (SMALL, "load", SMALL)


def test_a_reduced_one_is_not_missed_by_who_does_not_allow_it():
    refusal = choose(Want(0.96, 0.03), Times({SMALL}))
    assert refusal.missed == -1
    assert choose(Want(0.96, 0.03, budget=0.01), Times({SMALL})).missed == EXIT


def test_a_refusal_names_the_best():
    refusal = choose(Want(0.92, 0.001), Times(ALL))
    assert refusal == Refusal(MIDDLE, pytest.approx(0.022), LARGE, -1)  # with so much allowed it would be taken
    error = refused(FACTS, Want(0.92, 0.001), refusal)
    assert error.refused
    assert error.predicted_s == pytest.approx(0.022)
    assert "'middle' (accuracy 0.95) in 22.0 ms" in str(error)
    refusal = choose(Want(0.99, 1.0), Times(ALL))
    assert (refusal.soonest, refusal.most_accurate) == (-1, LARGE)
    assert "the best is 'large' with 0.98" in str(refused(FACTS, Want(0.99, 1.0), refusal))


def test_who_is_safe_goes_before_who_is_preferred_and_a_fair_chance_before_a_refusal():
    def chosen(latency_s: float, *, budget: float = 0.0) -> str:
        def predict(variant: int, *, loaded: bool = False) -> Prediction:
            return Prediction(
                *{SMALL: (0.02, 0.06), MIDDLE: (0.03, 0.05), LARGE: (0.5, 0.6), EXIT: (0.04, 0.041)}[variant]
            )

        choice = OdinPolicy().choose(FACTS, ALL, Want(0.9, latency_s, budget), predict)
        return FACTS[choice.variant].name if isinstance(choice, Choice) else f"refused: {choice.soonest_s:.3f}"

    assert [chosen(limit) for limit in (0.06, 0.055, 0.045, 0.0225, 0.0215)] == [
        "small", "middle", "small", "small", "refused: 0.022"
    ]  # fmt: skip
    assert [chosen(limit, budget=0.01) for limit in (0.055, 0.045, 0.0405)] == ["middle", "exit", "small"]


def test_unknown_accuracy_serves_only_who_does_not_care():
    facts = [Facts("a", 0.0, 0.01, cost_s=1.0)]
    policy = OdinPolicy()

    def predict(variant: int, *, loaded: bool = False) -> Prediction:
        return Prediction(0.01, 0.01)

    assert policy.choose(facts, {0}, Want(), predict).variant == 0
    assert policy.choose(facts, {0}, Want(accuracy=0.1), predict) == Refusal(-1, math.inf, -1, -1)


def test_who_was_turned_away_is_not_asked_again():
    policy, times = OdinPolicy(), Times(ALL)
    assert policy.choose(FACTS, ALL, Want(0.9, 0.05), times, {SMALL}).variant == MIDDLE
    assert policy.choose(FACTS, ALL, Want(0.9, 0.05), times, {SMALL, MIDDLE}).variant == LARGE


def test_always_the_same():
    for name, variant in (("best", LARGE), ("cheapest", SMALL)):
        policy = AlwaysPolicy(name)
        assert policy.choose(FACTS, ALL, Want(0.95, 0.001), Times(ALL)).variant == variant
    assert AlwaysPolicy("best").choose(FACTS, {SMALL}, Want(), Times({SMALL})).variant == SMALL


@pytest.mark.parametrize("name", POLICIES)
def test_policies_by_name(name):
    assert make_variant_policy(name).name == name


def test_an_unknown_policy_is_told():
    with pytest.raises(ValueError, match=r"'fastest'.*'infaas'"):
        make_variant_policy("fastest")


WHYS = [
    (Want(0.9, 0.05), Times(ALL), (SMALL, "asked")),
    (Want(0.9, 0.03), Times(ALL, small=4.0), (MIDDLE, "interference")),
    (Want(0.9, 0.05), Times({MIDDLE, LARGE}), (MIDDLE, "unloaded")),
    (Want(0.9, 5.0), Times({EXIT}), (SMALL, "asked")),  # and loaded for it
    (Want(0.9, 0.05, budget=0.01), Times(ALL, small=9.0, middle=9.0, large=9.0), (EXIT, "interference")),
    (Want(0.9, 0.009, budget=0.01), Times(ALL), (EXIT, "deadline")),
]


@pytest.mark.parametrize(("want", "times", "expected"), WHYS)
def test_why_a_variant_was_taken(want, times, expected):
    chosen = choose(want, times)
    assert (chosen.variant, chosen.why) == expected


def test_the_deadline_may_ask_for_a_quicker_one_than_the_preferred():
    chosen = choose(Want(0.9, 0.03), Times(ALL), prefer="accuracy")
    assert (chosen.variant, chosen.why) == (MIDDLE, "deadline")
    chosen = choose(Want(0.9, 0.03), Times(ALL, middle=2.0), prefer="accuracy")
    assert (chosen.variant, chosen.why) == (SMALL, "interference")


# -- INFaaS -----------------------------------------------------------------------------------------------------------


def seen(**fields) -> list[Seen]:
    """All loaded and idle, but for the small one, which is as given."""
    return [Seen(True, **fields), Seen(True), Seen(True), Seen(True)]


def test_infaas_takes_the_fastest_that_fits_by_its_profile():
    policy = InfaasPolicy()
    assert policy.choose(FACTS, ALL, Want(0.92, 0.05), Times(ALL, middle=99)).variant == MIDDLE  # blind to the present
    assert policy.choose(FACTS, ALL, Want(0.0, 0.05), Times(ALL)).variant == SMALL
    late = policy.choose(FACTS, ALL, Want(0.92, 0.001), Times(ALL))
    assert (late.variant, late.step) == (MIDDLE, "variant")  # never refused
    assert policy.choose(FACTS, {LARGE}, Want(0.9, 0.05), Times({LARGE})).variant == LARGE
    assert isinstance(policy.choose(FACTS, ALL, Want(0.99, 1.0), Times(ALL)), Refusal)


@pytest.mark.parametrize(
    ("fields", "listed"),
    [
        # Several replicas of 100 samples/s each: 2.5 x 10 ms and 0.5 x 200/s, or a backlog of 0.8 x 200.
        ({"instances": 2, "most_instances": 2, "latency_s": 0.026, "answered": 101, "samples": 101}, True),
        ({"instances": 2, "most_instances": 2, "latency_s": 0.024, "answered": 101, "samples": 101}, False),
        ({"instances": 2, "most_instances": 2, "latency_s": 0.026, "answered": 99, "samples": 99}, False),
        ({"instances": 2, "most_instances": 2, "under_way": 161}, True),
        ({"instances": 2, "most_instances": 2, "under_way": 159}, False),
        # One replica: 4 x, 1.0 x, 1.1 x.
        ({"latency_s": 0.041, "answered": 101, "samples": 101}, True),
        ({"latency_s": 0.039, "answered": 101, "samples": 101}, False),
        ({"under_way": 111}, True),
        ({"under_way": 109}, False),
    ],
)
def test_infaas_black_list(fields, listed):
    policy = InfaasPolicy()
    policy.look(FACTS, seen(**fields), memory_mib=1000)
    assert (SMALL in policy.black_list) is listed


def test_infaas_clears_at_one_and_a_half_and_avoids_the_listed():
    policy = InfaasPolicy()
    policy.look(FACTS, seen(under_way=200), memory_mib=1000)
    assert policy.choose(FACTS, ALL, Want(0.9, 0.05), Times(ALL)).variant == MIDDLE
    policy.look(FACTS, seen(latency_s=0.016, answered=1, samples=1), memory_mib=1000)
    assert SMALL in policy.black_list
    policy.look(FACTS, seen(latency_s=0.014, answered=1, samples=1), memory_mib=1000)
    assert SMALL not in policy.black_list


def test_infaas_scales_up_at_once_and_down_after_ten_looks():
    policy = InfaasPolicy()
    steps = policy.look(FACTS, seen(answered=150, samples=150, most_instances=4), memory_mib=1000)
    assert [(step.action, step.variant, step.instances) for step in steps] == [("instances", SMALL, 2)]
    few = seen(answered=90, samples=90, instances=2, most_instances=4)
    for _ in range(9):
        assert policy.look(FACTS, few, memory_mib=1000) == []
    steps = policy.look(FACTS, few, memory_mib=1000)
    assert [(step.action, step.instances) for step in steps] == [("instances", 1)]


def test_infaas_loads_another_variant_when_there_are_no_more_replicas():
    policy = InfaasPolicy()
    states = [Seen(True, answered=150, samples=150), Seen(False), Seen(False), Seen(False)]
    assert [(s.action, s.variant) for s in policy.look(FACTS, states, memory_mib=1000)] == [("load", MIDDLE)]
    assert policy.look(FACTS, states, memory_mib=250) == []  # nothing fits


# -- what is loaded ----------------------------------------------------------------------------------------------------


def states(loaded: set[int], **fields: tuple[int, int]) -> list[Seen]:
    """``name=(answered, missed)``."""
    return [
        Seen(number in loaded, answered=fields.get(facts.name, (0, 0))[0], missed=fields.get(facts.name, (0, 0))[1])
        for number, facts in enumerate(FACTS)
    ]


def test_the_most_missed_variant_is_loaded_and_what_is_used_less_goes():
    demand = Demand()
    now = states({SMALL, MIDDLE}, small=(50, 0), middle=(1, 0), large=(0, 20))
    assert demand.look(FACTS, now, memory_mib=900) == [Step("load", LARGE, "10 requests/s would have got it")]
    assert Demand().look(FACTS, now, memory_mib=500) == [
        Step("unload", MIDDLE, "large is asked for more"),
        Step("load", LARGE, "10 requests/s would have got it"),
    ]
    assert Demand().look(FACTS, now, memory_mib=450) == []  # the small one is used more


def test_few_misses_load_nothing_and_loads_go_one_by_one():
    demand = Demand()
    assert demand.look(FACTS, states({SMALL}, large=(0, 1)), memory_mib=900) == []
    assert demand.look(FACTS, states({SMALL}, large=(0, 2)), memory_mib=900)[0].variant == LARGE
    loading = [now._replace(loading=number == MIDDLE) for number, now in enumerate(states({SMALL}, large=(0, 9)))]
    assert demand.look(FACTS, loading, memory_mib=900) == []


def test_what_nobody_uses_is_unloaded_but_for_the_last():
    demand = Demand()
    for _ in range(299):
        assert demand.look(FACTS, states({SMALL, LARGE}, small=(1, 0)), memory_mib=900) == []
    steps = demand.look(FACTS, states({SMALL, LARGE}, small=(1, 0)), memory_mib=900)
    assert [(step.action, step.variant) for step in steps] == [("unload", LARGE)]
    for _ in range(400):
        assert demand.look(FACTS, states({SMALL}), memory_mib=900) == []


# -- telling -----------------------------------------------------------------------------------------------------------


def test_changes_are_told_once_a_second_for_each_wish():
    events: list[VariantChosen] = []
    told = Told(["small", "large"], events.append)
    want = Want(0.9, 0.05)
    told.chosen(want, Choice(1, 0.04, 0.04), 0.0)
    told.chosen(want, Choice(1, 0.04, 0.04), 5.0)
    told.chosen(want, Choice(0, 0.01, 0.01, "variant"), 5.5)
    told.chosen(want, Choice(1, 0.04, 0.04), 5.6)
    told.chosen(want, Choice(0, 0.01, 0.01, "variant"), 5.7)
    told.chosen(want, Refusal(0, 0.2, 1), 7.0)
    assert [(event.before, event.variant, event.step) for event in events] == [
        ("", "large", "first"),
        ("large", "small", "variant"),
        ("small", "", "refused"),
    ]
    assert [event_text(event, ()) for event in events] == [
        "variant: large for accuracy >= 0.9 within 50.0 ms, expected in 40.0 ms",
        "variant: small instead of large for accuracy >= 0.9 within 50.0 ms, expected in 10.0 ms",
        "refused: requests for accuracy >= 0.9 within 50.0 ms; the soonest would take 200 ms",
    ]


def test_made_up_wishes_do_not_pile_up():
    told = Told(["small"], lambda event: None)
    for number in range(1000):
        told.chosen(Want(number / 1000), Choice(0, 0.01, 0.01), float(number))
    assert len(told._last) == 64


def test_what_is_left_of_a_deadline_is_the_same_wish_each_time():
    events: list[VariantChosen] = []
    told = Told(["small"], events.append)
    for number in range(1000):
        told.chosen(Want(0.9, 0.05 + number * 1e-6), Choice(0, 0.01, 0.01), number * 0.001)
    assert len(events) == 1
