"""Whether a trial at a rate can still keep its bound: one that cannot need not be carried out to its end."""

from __future__ import annotations

import math
from collections.abc import Callable

from odin_lab.load.trial import Trial

__all__ = ["not_hopeless"]


def not_hopeless(*, expected: float, share: float, bound_s: float) -> Callable[[Trial], bool]:
    """Make what looks at a trial while it runs.

    Parameters
    ----------
    expected
        Requests that will come.
    share
        Of all requests, that must be answered within the bound.
    bound_s
        From when one was due, seconds.
    """
    allowed = (1 - share) * (expected + 4 * math.sqrt(expected))  # the number is drawn, and never so much larger

    def look(trial: Trial) -> bool:
        late = sum(bool(one.failure) or one.over_s - one.asked_s > bound_s for one in trial.outcomes)
        return late <= allowed

    return look
