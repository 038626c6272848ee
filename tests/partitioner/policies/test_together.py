"""Pipelines of one planner: fed with exact timings of stages that take turns, no clock."""

from __future__ import annotations

import re

import numpy as np
import pytest

from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision, Observation, Setting, TenantSetting, make_policy
from odin.partitioner.policies.joint_planner import JointPlanner
from odin.partitioner.policies.tenant_measures import TenantMeasures
from odin.partitioner.policies.together import TogetherPolicy

LAYERS = 6


def setting(name: str, plan: str, *, layer_s: float = 0.01, share: float = 1.0, devices: str = "01") -> Setting:
    free = np.zeros(LAYERS + 1)
    tenant = TenantSetting(name, tuple(f"cpu:{device}" for device in devices), share)
    baseline_s = np.full((len(devices), LAYERS), layer_s)
    return Setting(Plan.parse(plan), baseline_s, free, free, np.ones(LAYERS), tenant=tenant)


class Feed:
    """A pipeline whose requests finish at a steady rate, its stages' times given by what they share."""

    def __init__(self, planner: JointPlanner, given: Setting, *, begin_s: float = 0.0, **options: float) -> None:
        self.policy, self.setting = TogetherPolicy(planner=planner, **options), given
        self.plan, self.number, self.begin_s = given.plan, 0, begin_s
        self.decisions: list[Decision] = []
        self.policy.start(given)

    def finish(
        self,
        at_s: float,
        *,
        wait: tuple[float, ...] = (0.0, 0.0),
        slower: tuple[float, ...] = (1.0, 1.0),
        changed: tuple[int, ...] = (),
        age: int = 1,
    ) -> None:
        """One request: each stage was ``slower`` in computing, and waited so many times as long as that."""
        self.number += 1
        own_s = np.array(self.plan) * self.setting.baseline_s[:, 0] * slower
        delay_s = own_s * wait
        stages = len(self.plan)
        observation = Observation(
            request=self.number,
            plan=self.plan,
            stage_s=own_s + delay_s,
            layer_s=np.full(LAYERS, np.nan),
            interval_s=np.nan,
            changed=np.isin(np.arange(stages), changed),
            age=np.full(stages, age),
            noise=np.full(stages, 0.02),
            delay_s=delay_s,
            at_s=at_s,
        )
        decision = self.policy.decide(observation)
        if decision is not None:
            self.decisions.append(decision)
            self.plan = decision.plan


def run(*feeds: tuple[Feed, float], until_s: float, begin_s: float = 0.0, **how: object) -> None:
    """Let each finish requests at its rate."""
    times = sorted(
        (at_s, index)
        for index, (_, rate_hz) in enumerate(feeds)
        for at_s in np.arange(begin_s, until_s, 1 / rate_hz).tolist()
    )
    for at_s, index in times:
        feeds[index][0].finish(at_s, **how)


def test_two_that_take_turns_on_both_devices_get_one_each():
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "3|3")), Feed(planner, setting("dogs", "3|3"))
    run((cats, 16.0), (dogs, 16.0), until_s=0.5, wait=(1.0, 1.0))
    run((cats, 16.0), (dogs, 16.0), begin_s=0.5, until_s=8.0)
    assert {str(cats.plan), str(dogs.plan)} == {"6|0", "0|6"}
    assert (len(cats.decisions), len(dogs.decisions)) == (1, 1)
    assert re.fullmatch(
        rf"planned together with dogs {re.escape(str(dogs.plan))}: cpu:[01] is fullest, \+[345]% predicted",
        cats.decisions[0].why,
    )
    assert [(one.name, one.plan, one.share) for one in cats.policy.together] == [
        ("cats", cats.plan, 1.0),
        ("dogs", dogs.plan, 1.0),
    ]
    assert cats.policy.together == dogs.policy.together


def test_who_is_alone_again_spreads_over_all_devices():
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "6|0")), Feed(planner, setting("dogs", "0|6"))
    run((cats, 16.0), (dogs, 16.0), until_s=4.0)
    assert (cats.decisions, dogs.decisions) == ([], [])
    dogs.policy.leave()
    run((cats, 16.0), begin_s=4.0, until_s=5.0)
    assert (str(cats.plan), str(dogs.plan)) == ("3|3", "0|6")
    assert cats.decisions[0].why == "planned alone: cpu:0 is fullest, +100% predicted"
    assert [one.name for one in cats.policy.together] == ["cats"]


def test_who_is_idle_counts_for_nothing_until_it_has_requests_again():
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "6|0")), Feed(planner, setting("dogs", "0|6"))
    run((cats, 16.0), until_s=2.0)
    assert str(cats.plan) == "3|3"
    run((cats, 16.0), (dogs, 16.0), begin_s=2.0, until_s=12.0, wait=(1.0, 1.0))
    assert {str(cats.plan), str(dogs.plan)} == {"6|0", "0|6"}
    run((cats, 16.0), begin_s=12.0, until_s=24.0)
    assert str(cats.plan) == "3|3"


def test_a_shift_of_demand_moves_the_one_that_needs_less():
    """Dogs have the whole of device 1 for a while, then few requests: cats get most of it."""
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "6|0")), Feed(planner, setting("dogs", "0|6"))
    run((cats, 16.0), (dogs, 16.0), until_s=4.0)
    assert cats.decisions == []
    run((cats, 16.0), (dogs, 16.0 / 3), begin_s=4.0, until_s=14.0)
    assert cats.plan in ((4, 2), (3, 3))
    assert cats.decisions[0].why.startswith("planned together with dogs ")


def test_what_tenants_take_from_each_other_is_no_slowdown_but_what_others_take_is():
    planner = JointPlanner()
    one, two = Feed(planner, setting("cats", "3|3")), Feed(planner, setting("dogs", "3|3"))
    # Each computes 0.03 s of 0.06 s on both devices: the rest is the other's.
    run((one, 1 / 0.06), (two, 1 / 0.06), until_s=3.0, wait=(1.0, 1.0))
    loads = planner._loads([one.policy._member, two.policy._member], [1.0, 1.0])
    assert loads[0].times_s == pytest.approx(one.setting.baseline_s, rel=0.02)

    planner = JointPlanner()
    one, two = Feed(planner, setting("cats", "3|3")), Feed(planner, setting("dogs", "3|3"))
    # A third program on device 1 takes a third of it: alone with it a tenant would take twice as long there.
    run((one, 1 / 0.09), (two, 1 / 0.09), until_s=0.5, wait=(0.0, 2.0))
    loads = planner._loads([one.policy._member, two.policy._member], [1.0, 1.0])
    assert loads[0].times_s[1] == pytest.approx(2 * one.setting.baseline_s[1], rel=0.05)
    assert loads[0].times_s[0] == pytest.approx(one.setting.baseline_s[0], rel=0.05)


def test_a_device_that_a_stranger_slows_down_gets_less():
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "3|3"))
    run((cats, 10.0), until_s=2.0)
    assert cats.decisions == []
    cats.finish(2.0, wait=(0.0, 1.0), changed=(1,))
    run((cats, 10.0), begin_s=2.1, until_s=3.0, wait=(0.0, 1.0))
    assert str(cats.plan) == "4|2"


def test_a_device_without_layers_is_thought_free_again_after_a_while():
    """Nobody measures it any more: layers come back to see."""
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "3|3"))
    cats.finish(0.0, slower=(1.0, 20.0), changed=(1,))
    run((cats, 10.0), begin_s=0.1, until_s=3.0, slower=(1.0, 20.0))
    assert str(cats.plan) == "6|0"
    run((cats, 10.0), begin_s=3.0, until_s=300.0)
    assert str(cats.plan) == "3|3"


def test_a_share_counts_for_the_plans_of_all():
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "6|0")), Feed(planner, setting("dogs", "0|6", share=0.25))
    run((cats, 16.0), (dogs, 8.0), until_s=3.0)
    assert str(dogs.plan) == "3|3"


def test_only_those_that_share_a_device_are_planned_together():
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "3|3"))
    dogs = Feed(planner, setting("dogs", "3|3", devices="23"))
    run((cats, 16.0), (dogs, 16.0), until_s=3.0)
    assert [one.name for one in cats.policy.together] == ["cats"]
    assert [one.name for one in dogs.policy.together] == ["dogs"]


def test_gains_within_the_dead_band_or_the_noise_move_nothing():
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "3|3"), min_gain=0.6)
    run((cats, 16.0), until_s=3.0, slower=(1.0, 1.5))
    assert cats.decisions == []
    random = np.random.default_rng(0)
    dogs = Feed(JointPlanner(), setting("dogs", "3|3"), certainty=60.0)
    for at_s in np.cumsum(random.exponential(0.2, 60)).tolist():
        dogs.finish(at_s, slower=(1.0, 1.3))
    assert dogs.decisions == []


def test_moves_wait_until_what_is_measured_is_sure():
    """Each stage takes 1 or 2.5 times as long, at random: what looks like a gain of some per cent is noise."""
    random = np.random.default_rng(1)
    cats = Feed(JointPlanner(), setting("cats", "3|3"))
    for at_s in np.arange(0.0, 20.0, 0.25).tolist():
        cats.finish(at_s, slower=tuple(random.choice([1.0, 2.5], 2)))
    assert cats.decisions == []


def test_a_weight_takes_the_place_of_what_is_measured():
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "6|0"), weight=1.0)
    dogs = Feed(planner, setting("dogs", "0|6"), weight=1 / 3)
    run((cats, 16.0), (dogs, 16.0), until_s=3.0)
    assert (str(cats.plan), str(dogs.plan)) == ("4|2", "0|6")


def test_a_single_stage_is_measured_but_stays():
    planner = JointPlanner()
    cats, dogs = Feed(planner, setting("cats", "3|3")), Feed(planner, setting("dogs", "6", devices="1"))
    times = sorted((number / 16, number % 2) for number in range(100))
    for at_s, which in times:
        if which:
            cats.finish(at_s)
        else:
            dogs.finish(at_s, wait=(0.0,), slower=(1.0,))
    assert (str(cats.plan), dogs.decisions) == ("6|0", [])


def test_two_stages_on_one_device_are_left_where_they_are():
    cats = Feed(JointPlanner(), setting("cats", "6|0", devices="00"))
    run((cats, 16.0), until_s=3.0)
    assert cats.decisions == []


def test_requests_that_nobody_looked_at_count_for_the_rate():
    measures = TenantMeasures(setting("cats", "3|3"))
    feed = Feed(JointPlanner(), setting("cats", "3|3"))
    feed.policy.decide = measures.take  # type: ignore[method-assign]
    for at_s in np.arange(0.0, 2.0, 0.1).tolist():
        feed.number += 9  # not seen
        feed.finish(at_s)
    assert measures.rate_hz(2.0) == pytest.approx(95.0, rel=0.05)
    assert measures.rate_hz(100.0) == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("together:min_gain=1.5", "min_gain is 1.5"),
        ("together:certainty=0", "certainty is 0.0"),
        ("together:weight=-1", "weight is -1.0"),
        ("together:planner=x", "no parameter 'planner'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(text, words):
    with pytest.raises(ValueError, match=words):
        make_policy(text)


def test_its_name_makes_it_again():
    assert make_policy("together").name == "together"
    assert make_policy("together:weight=2").name == "together:weight=2.0"
    with pytest.raises(ValueError, match="was not started"):
        TogetherPolicy().decide(None)  # type: ignore[arg-type]


def test_one_object_plans_for_one_pipeline_at_a_time():
    planner = JointPlanner()
    cats = Feed(planner, setting("cats", "3|3"))
    with pytest.raises(
        ValueError, match=r"plans for another pipeline, cats: give each its own, or the text 'together'"
    ):
        cats.policy.start(setting("dogs", "3|3"))
    cats.policy.start(cats.setting._replace(plan=Plan((4, 2))))  # the same pipeline, anew
    cats.policy.leave()
    cats.policy.start(setting("dogs", "3|3"))
