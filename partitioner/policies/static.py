"""The policy that never moves."""

from __future__ import annotations

from odin.partitioner.policies.base import Decision, Observation, Setting

__all__ = ["StaticPolicy"]


class StaticPolicy:
    """Stays with the plan that serving started with, whatever happens: for those who migrate themselves."""

    name = "static"

    def start(self, setting: Setting) -> None:
        """Nothing to remember."""

    def decide(self, observation: Observation) -> Decision | None:
        """Nothing, always."""
        return None
