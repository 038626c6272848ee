"""What is made of a finished request, live and in simulation alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from odin.control.decision_core import DecisionCore, Finished
from odin.monitor.detectors import CusumDetector
from odin.monitor.watch import StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision, Setting, StaticPolicy
from odin.testing import ScriptedPolicy

SETTING = Setting(Plan((2, 2)), np.ones((2, 4)), np.zeros(5), np.zeros(5), np.ones(4))


def scripted(*answers):
    """Answers these, one after the other."""
    return ScriptedPolicy(dict(enumerate(answers, start=1)))


class Core(DecisionCore):
    """One that collects faults."""

    def __init__(self, policy, watch=None):
        self.policy_faults, self.detector_faults = [], []
        super().__init__(
            SETTING,
            policy,
            watch,
            on_policy_fault=self.policy_faults.append,
            on_detector_fault=lambda detector, error: self.detector_faults.append((detector, error)),
        )
        self.number = 0

    def take(self, *, slowdown=1.0):
        self.number += 1
        stage_s, layer_s = np.array([2.0, 2.0 * slowdown]), np.array([1.0, 1.0, slowdown, slowdown])
        finished = Finished(self.number, Plan((2, 2)), (0, 2, 4), stage_s, layer_s, 3.0 * self.number)
        changes, observation = self.observe(finished)
        return changes, self.decide(observation)


def move(*plan):
    return Decision(Plan(plan), "move", "scripted")


def test_only_a_decision_for_another_plan_is_to_be_carried_out_and_it_holds_once_it_was():
    core = Core(scripted(move(2, 2), move(3, 1), move(3, 1), move(3, 1)))
    assert core.take()[1] is None
    assert core.take()[1] == move(3, 1)
    assert core.take()[1] == move(3, 1)  # nobody has moved anything yet
    core.carried_out(Plan((3, 1)))
    assert core.take()[1] is None


def test_a_policy_starts_anew_where_its_decision_came_to_nothing():
    policy = scripted(move(3, 1))
    core = Core(policy)
    core.take()
    core.not_carried_out()
    core.take()
    core.take()
    assert [setting.plan for setting in policy.started] == [Plan((2, 2)), Plan((2, 2))]


def test_intervals_are_between_those_looked_at():
    policy = scripted()
    core = Core(policy)
    for _ in range(3):
        core.take()
    assert math.isnan(policy.seen[0].interval_s)
    assert [observation.interval_s for observation in policy.seen[1:]] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("answer", "answered"), [(RuntimeError("no idea"), False), ("3|1", True), (SystemExit(), False)]
)
def test_a_policy_at_fault_is_replaced_by_static_and_told_of(answer, answered):
    policy = scripted(answer)
    core = Core(policy)
    assert core.take()[1] is None
    [fault] = core.policy_faults
    assert (fault.policy, fault.answered) == (policy, answered)
    assert type(core.policy) is StaticPolicy
    assert core.take()[1] is None
    assert len(policy.seen) == 1


def test_who_uses_it_may_raise_instead_of_going_on():
    core = Core(scripted(KeyboardInterrupt()))

    def refuse(fault):
        raise fault.error

    core._on_policy_fault = refuse
    with pytest.raises(KeyboardInterrupt):
        core.take()


@pytest.mark.parametrize("fault", ["raises", "shape"])
def test_a_detector_at_fault_gives_way_to_the_default_one(fault):
    class Faulty(CusumDetector):
        def update(self, x):
            if fault == "raises":
                raise RuntimeError("no idea")

        @property
        def age(self):
            return np.zeros(3, dtype=int)

    faulty = Faulty(2)
    core = Core(scripted(), StageWatch(SETTING.baseline_s, faulty))
    core.take()
    [(detector, error)] = core.detector_faults
    assert detector is faulty
    assert str(error) in ("no idea", "its age has shape (3,), not (2,)")
    for _ in range(40):
        core.take()
    changes = [change for _ in range(20) for change in core.take(slowdown=2.0)[0]]
    assert [(change.stage, change.state) for change in changes][:1] == [(1, "onset")]
    assert len(core.detector_faults) == 1


def test_where_nobody_watches_nothing_changes_and_ages_count_requests():
    policy = scripted()
    core = Core(policy)
    assert not core.idle
    core.take()
    core.take(slowdown=5.0)
    last = policy.seen[-1]
    assert not last.changed.any()
    assert last.age.tolist() == [2, 2]
    assert last.disturbed is None
    assert Core(StaticPolicy()).idle
