"""Policies by their text form: ``odin:alpha=10``, ``mypkg:MyPolicy``, or the name that a distribution offers."""

from __future__ import annotations

from typing import Any

from odin.partitioner.named import Family
from odin.partitioner.policies.base import Decision, Observation, Policy, Setting

__all__ = ["ENTRY_POINT_GROUP", "POLICIES", "GivenPolicy", "make_policy", "policy_names"]

ENTRY_POINT_GROUP = "odin.policies"
"""Entry points by which installed distributions offer policies of their own."""

_FAMILY = Family(
    kind="policy",
    group=ENTRY_POINT_GROUP,
    builtin={
        "relay": "odin.partitioner.policies.relay:RelayPolicy",
        "static": "odin.partitioner.policies.static:StaticPolicy",
        "lls": "odin.partitioner.policies.lls:LlsPolicy",
        "odin": "odin.partitioner.policies.odin:OdinPolicy",
        "filter": "odin.partitioner.policies.filter:FilterPolicy",
        "oracle": "odin.partitioner.policies.oracle:OraclePolicy",
        "delayed-oracle": "odin.partitioner.policies.oracle:DelayedOraclePolicy",
        "together": "odin.partitioner.policies.together:TogetherPolicy",
    },
    properties=("name",),
    methods={"start": 1, "decide": 1},
    replaced={"predictive": "filter"},
)

POLICIES = tuple(_FAMILY.builtin)
"""Built-in names that :func:`make_policy` knows."""


class GivenPolicy:
    """A user's policy, named by the text that it was made from, so that its name can be given again.

    Attributes
    ----------
    name
        The text.
    policy
        The user's policy.
    """

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy

    def start(self, setting: Setting) -> None:
        """Forget everything and get ready for a pipeline."""
        self.policy.start(setting)

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request in; answer as the policy does."""
        return self.policy.decide(observation)

    def __getattr__(self, attribute: str) -> Any:
        """What else the policy has, such as ``exploring``."""
        if attribute == "policy":  # not there yet: a copy is being made
            raise AttributeError(attribute)
        return getattr(self.policy, attribute)


def policy_names() -> tuple[str, ...]:
    """All names that :func:`make_policy` knows: built-in ones, then those that installed distributions offer."""
    return _FAMILY.names()


def make_policy(text: str) -> Policy:
    """Make a policy from its text form.

    ``NAME`` or ``NAME:parameter=value,parameter=value`` for those built in and those of the entry-point group
    ``odin.policies``; ``module:Class``, with or without ``:parameter=value,...``, for any class that has ``name``,
    ``start`` and ``decide``. :mod:`odin.partitioner.named` has the grammar.

    Returns
    -------
    Policy
        Its ``name`` can be given to this function again. For a policy that is not built in and calls itself otherwise,
        a :class:`GivenPolicy`.

    Raises
    ------
    ValueError
        If there is no such policy or parameter, the value is not one it can have, or the class cannot be imported or
        is no policy; says what there is and what to do.

    Examples
    --------
    >>> make_policy("odin:alpha=2").name
    'odin:alpha=2'
    """
    policy: Policy = _FAMILY.make(text)
    if not isinstance(policy.name, str) or not policy.name:
        raise ValueError(f"policy {text!r} is called {policy.name!r}; its name must be a text with something in it")
    text = text.strip()
    if _FAMILY.is_builtin(text) or policy.name == text:
        return policy
    return GivenPolicy(text, policy)
