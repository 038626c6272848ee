"""Verification of moves: whether to undo a move, the bias of predictions, and the backoff after harmful moves.

::

    move decided    first request under it          ``verify`` later
    expect()        before_s: the old plan's        judge(): slower than the old plan: undo, and no such move for a
                    measured bottleneck                      while, twice as long each time
                                                             slower than predicted: the prediction bias rises

In simulation, where predictions are right, this gains nothing; it is for stages that slow each other down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from odin.partitioner.plan import Plan

__all__ = ["Check", "MoveChecks"]

_FIRST_BACKOFF, _LAST_BACKOFF = 16, 65_536
_FORGIVEN = 3
"""After more harmful moves in a row than this, only a change long after a move ends the backoff."""
_BIAS_RATE, _MOST_BIAS = 0.25, 0.15
"""Weight of the latest miss in the prediction bias (an EWMA), and the largest bias (a logarithm)."""


@dataclass
class Check:
    """A move that is not verified yet; ``before_s`` is nan until the first request under the new plan."""

    before: Plan
    after: Plan
    predicted_s: float
    calm: bool
    before_s: float = math.nan
    error: float = math.nan


class MoveChecks:
    """Compares moves with their predictions, and remembers harmful ones.

    Attributes
    ----------
    awaited
        The move that is not judged yet.
    prediction_bias
        EWMA of ln(measured / predicted time), at least 0: to leave the home plan the gain must exceed it.
    still_until
        Request until which no layers move, after a move that did harm.
    banned
        Plans that did harm under the present conditions.
    """

    def __init__(self) -> None:
        self.awaited: Check | None = None
        self.prediction_bias = 0.0
        self.still_until = 0
        self.banned: set[Plan] = set()
        self._failures = 0

    def conditions_changed(self, *, long_after_move: bool) -> None:
        """Clear bans after a change that is not an effect of a move: a banned plan may be good now."""
        self.banned.clear()
        if self._failures <= _FORGIVEN or long_after_move:
            self.still_until = 0

    def judge(self, check: Check, *, slowest_s: float, error: float, least: float, request: int) -> float | None:
        """Compare a plan's measured time with the old plan's.

        Parameters
        ----------
        check
            The move; it is awaited no more.
        slowest_s
            Seconds of the slowest stage under the new plan.
        error
            Standard deviation of its logarithm, times the standard errors that count.
        least
            Loss that does not count, a logarithm.
        request
            The present one.

        Returns
        -------
        float or None
            The (negative) gain if the move is to be undone.
        """
        self.awaited = None
        gain = math.log(check.before_s / slowest_s)
        missed = math.log(slowest_s / check.predicted_s)
        self.prediction_bias = min(
            max(0.0, self.prediction_bias + _BIAS_RATE * (missed - self.prediction_bias)), _MOST_BIAS
        )
        if gain < -max(least, error):
            self._failures += 1
            self.still_until = request + min(_FIRST_BACKOFF << (self._failures - 1), _LAST_BACKOFF)
            self.banned.add(check.after)
            return gain
        if gain > 0:
            self._failures //= 2
        return None
