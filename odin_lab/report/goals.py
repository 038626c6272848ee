"""What a policy is to hold in every setting."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["GOALS", "Goal"]


class Goal(NamedTuple):
    """A figure, and the least or most that it may be.

    Attributes
    ----------
    figure
        Name of the figure in :class:`~odin_lab.report.results.Cell`, and in a policy's
        :class:`~odin_lab.report.comparison.Score`.
    what
        The figure in words.
    limit, least
        The limit, and whether it is the least (or the most) that holds.
    """

    figure: str
    what: str
    limit: float
    least: bool

    def holds(self, value: float) -> bool:
        """Whether a value is within the limit; nan, where there is nothing to say, is."""
        return math.isnan(value) or (value >= self.limit if self.least else value <= self.limit)


GOALS = (
    Goal("of_delayed", "throughput / delayed oracle", 0.97, True),
    Goal("of_static", "throughput / static", 0.99, True),
    Goal("changes_per_event", "plan changes per event", 2.0, False),
)
