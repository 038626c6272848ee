"""A pipeline that is held to a share: what takes only what it leaves unused moves no layers."""

import dataclasses

import numpy as np
import pytest

from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation, TenantSetting
from odin.partitioner.policies.filter import FilterPolicy
from odin.partitioner.policies.paced import in_turns, share_of, turns_of
from odin.testing import drive_policy, setting_for, slowed

CALM = np.tile(np.random.default_rng(3).uniform(0.5, 1.5, 18), (2, 1))
HELD = setting_for(np.array([[1.0, 2.0], [1.0, 2.0]]), Plan((1, 1)))._replace(
    tenant=TenantSetting("one", ("cpu:0", "cpu:1"), 0.25)
)


def finished(stage_s, delay_s):
    return Observation(
        *(1, Plan((1, 1)), np.array(stage_s), np.array(stage_s), 1.0, np.zeros(2, dtype=bool)),
        *(np.ones(2, dtype=np.int64), np.zeros(2)),
        delay_s=None if delay_s is None else np.array(delay_s),
    )


def test_without_a_share_nothing_changes():
    setting, observation = HELD._replace(tenant=None), finished([1.0, 2.0], None)
    assert share_of(setting) == 1.0
    assert turns_of(setting) is setting
    assert in_turns(observation, 1.0) is observation


def test_a_turn_has_its_pause():
    assert turns_of(HELD).baseline_s.tolist() == [[4.0, 8.0], [4.0, 8.0]]
    assert in_turns(finished([1.0, 2.0], None), share_of(HELD)).stage_s.tolist() == [4.0, 8.0]


@pytest.mark.parametrize(
    ("wall_s", "delay_s", "turn_s"),
    [
        (3.0, 2.0, 4.0),  # it waited instead of pausing
        (4.0, 3.0, 4.0),
        (5.0, 4.0, 5.0),  # longer than it would have paused
        (2.0, 0.0, 8.0),  # its work takes longer, by caches or memory
    ],
)
def test_what_waiting_takes_from_the_pause_costs_nothing(wall_s, delay_s, turn_s):
    turns = in_turns(finished([wall_s, 2.0], [delay_s, 0.0]), 0.25)
    assert turns.stage_s.tolist() == turns.layer_s.tolist() == [turn_s, 8.0]


@dataclasses.dataclass
class Held(FilterPolicy):
    """Filter, for a pipeline with a share; what is above the calm times was waited for."""

    share: float

    def __post_init__(self):
        super().__init__()

    def start(self, setting):
        self.calm_s = setting.baseline_s
        super().start(setting._replace(tenant=TenantSetting("one", ("cpu:0", "cpu:1"), self.share)))

    def decide(self, observation):
        cuts = [0, *np.cumsum(observation.plan)]
        own_s = np.array([row[a:b].sum() for row, a, b in zip(self.calm_s, cuts, cuts[1:], strict=False)])
        return super().decide(observation._replace(delay_s=np.maximum(0.0, observation.stage_s - own_s)))


@pytest.mark.parametrize(("share", "moves"), [(1.0, ["move"]), (0.3, []), (0.6, ["move"])])
def test_layers_move_only_if_a_program_takes_more_than_the_pipeline_leaves(share, moves):
    """Twice as slow: no longer than the pauses of 0.3, and longer than those of 0.6."""
    result = drive_policy(
        Held(share), CALM, balance(CALM).plan, changes={100: slowed(CALM, {1: 2.0})}, requests=250, in_flight=4,
        noise=0.05, layer_noise=0.05, flag_delay=1,
    )  # fmt: skip
    assert result.kinds == moves
