"""Policies: when and where layers move; pure, the same objects live and in simulation."""

from partitioner.policies.base import Decision, Observation, Policy, Setting, checked_decision
from partitioner.policies.lls import LlsPolicy
from partitioner.policies.odin import OdinPolicy
from partitioner.policies.oracle import DelayedOraclePolicy, OraclePolicy
from partitioner.policies.predictive import PredictivePolicy
from partitioner.policies.registry import POLICIES, GivenPolicy, make_policy, policy_names
from partitioner.policies.static import StaticPolicy

__all__ = [
    "POLICIES",
    "Decision",
    "DelayedOraclePolicy",
    "GivenPolicy",
    "LlsPolicy",
    "Observation",
    "OdinPolicy",
    "OraclePolicy",
    "Policy",
    "PredictivePolicy",
    "Setting",
    "StaticPolicy",
    "checked_decision",
    "make_policy",
    "policy_names",
]
