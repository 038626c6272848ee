"""Policies: when and where layers move; pure, the same objects live and in simulation."""

from odin.partitioner.policies.base import (
    Decision,
    Observation,
    Policy,
    Setting,
    TenantSetting,
    checked_decision,
    windows_of,
)
from odin.partitioner.policies.filter import FilterPolicy
from odin.partitioner.policies.lls import LlsPolicy
from odin.partitioner.policies.odin import OdinPolicy
from odin.partitioner.policies.oracle import DelayedOraclePolicy, OraclePolicy
from odin.partitioner.policies.registry import POLICIES, GivenPolicy, make_policy, policy_names
from odin.partitioner.policies.relay import RelayPolicy
from odin.partitioner.policies.static import StaticPolicy
from odin.partitioner.policies.together import TogetherPolicy

__all__ = [
    "POLICIES",
    "Decision",
    "DelayedOraclePolicy",
    "FilterPolicy",
    "GivenPolicy",
    "LlsPolicy",
    "Observation",
    "OdinPolicy",
    "OraclePolicy",
    "Policy",
    "RelayPolicy",
    "Setting",
    "StaticPolicy",
    "TenantSetting",
    "TogetherPolicy",
    "checked_decision",
    "make_policy",
    "policy_names",
    "windows_of",
]
