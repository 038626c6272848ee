"""Which policy a pipeline gets that is given none."""

from __future__ import annotations

from collections.abc import Sequence

from odin.partitioner.policies import Policy, make_policy

__all__ = ["AUTO", "policy_for"]

AUTO = "auto"
"""Text for the policy that suits the stages."""


def policy_for(policy: Policy | str, *, kinds: Sequence[str], nodes: Sequence[str]) -> Policy:
    """Make a policy from its text.

    ``auto`` is ``relay`` if all stages are on CPUs of one node, where every stage can run every layer at once and knows
    when the others are free; ``filter`` otherwise.

    Parameters
    ----------
    kinds, nodes
        Kind of device and node of each stage.

    Examples
    --------
    >>> policy_for("auto", kinds=["cpu", "cpu"], nodes=["a", "a"]).name
    'relay'
    >>> policy_for("auto", kinds=["cpu", "gpu"], nodes=["a", "a"]).name
    'filter'
    """
    if not isinstance(policy, str):
        return policy
    if policy.strip() == AUTO:
        policy = "relay" if set(kinds) == {"cpu"} and len(set(nodes)) == 1 else "filter"
    return make_policy(policy)
