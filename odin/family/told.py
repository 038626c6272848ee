"""Tells what requests get, when that changes: one event, not one for each request.

A wish is an accuracy, a budget, and a latency within a factor of two: clients that pass on what is left of a deadline
of their own ask for another one each time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from odin.family.facts import Choice, Refusal, Want
from odin.monitor.events import Event, VariantChosen

__all__ = ["Told"]

_WANTS = 64
"""So many wishes are remembered, then the oldest are forgotten."""
_AT_MOST_S = 1.0


class Told:
    """Remembers what was told last for each wish.

    Parameters
    ----------
    names
        Of the variants.
    emit
        Takes the event.
    """

    def __init__(self, names: Sequence[str], emit: Callable[[Event], object]) -> None:
        self._names, self._emit = names, emit
        self._last: OrderedDict[tuple[float, int, float], tuple[str, float]] = OrderedDict()

    def chosen(self, want: Want, chosen: Choice | Refusal, now_s: float) -> None:
        """Take a decision in."""
        key = want.accuracy, math.frexp(want.latency_s)[1], want.budget
        variant = self._names[chosen.variant] if isinstance(chosen, Choice) else ""
        before, told_s = self._last.get(key, (None, -math.inf))
        if variant == before or now_s - told_s < _AT_MOST_S:
            return
        self._last[key] = variant, now_s
        self._last.move_to_end(key)
        if len(self._last) > _WANTS:
            self._last.popitem(last=False)
        step, seconds = (
            ("refused", chosen.soonest_s) if isinstance(chosen, Refusal) else (chosen.step, chosen.expected_s)
        )
        self._emit(
            VariantChosen(
                now_s,
                want.accuracy,
                math.nan if math.isinf(want.latency_s) else want.latency_s,
                want.budget,
                before or "",
                variant,
                step,
                math.nan if math.isinf(seconds) else seconds,
            )
        )
