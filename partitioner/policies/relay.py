"""The policy that leaves each hand-over to the stages: whichever is free takes a request, or over."""

from __future__ import annotations

from odin.partitioner.policies.base import Decision, Observation, Setting
from odin.partitioner.relay import Windows

__all__ = ["RelayPolicy"]


class RelayPolicy:
    """Sets the windows of all boundaries as wide as they can be, and never moves them.

    What happens within the windows is decided by the stages, request by request: see :mod:`odin.partitioner.relay`.
    Where a boundary has no room, as beside a GPU, it stays where the plan has it.
    """

    name = "relay"

    def windows(self, setting: Setting) -> Windows | None:
        """All cuts that can be reached without a stage getting ready."""
        return setting.reach

    def start(self, setting: Setting) -> None:
        """Nothing to remember."""

    def decide(self, observation: Observation) -> Decision | None:
        """Nothing, always."""
        return None
