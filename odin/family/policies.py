"""The policies that choose variants, by their names."""

from __future__ import annotations

from odin.family.choice import AlwaysPolicy, OdinPolicy
from odin.family.facts import VariantPolicy
from odin.family.infaas import InfaasPolicy

__all__ = ["POLICIES", "make_variant_policy"]

POLICIES = ("odin", "odin:prefer=accuracy", "infaas", "best", "cheapest")


def make_variant_policy(name: str) -> VariantPolicy:
    """Make a policy by its name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    match name:
        case "odin" | "odin:prefer=cost":
            return OdinPolicy()
        case "odin:prefer=accuracy":
            return OdinPolicy(prefer="accuracy")
        case "infaas":
            return InfaasPolicy()
        case "best" | "cheapest":
            return AlwaysPolicy(name)
    raise ValueError(f"there is no policy {name!r} for variants; choose one of {', '.join(map(repr, POLICIES))}")
