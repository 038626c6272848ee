"""The policy that never moves."""

from __future__ import annotations

from odin.partitioner.policies.base import Decision, Observation, Setting

__all__ = ["StaticPolicy"]


class StaticPolicy:
    """Keeps the plan that serving started with: for programs that call ``Pipeline.migrate`` themselves."""

    name = "static"

    def start(self, setting: Setting) -> None:
        """Nothing to remember."""

    def decide(self, observation: Observation) -> Decision | None:
        """Nothing, always."""
        return None
