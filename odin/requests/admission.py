"""Whether a request that is submitted now would be done in time, and would not make others late: pure arithmetic.

::

    predicted   the stages' own recursion under present conditions (odin.partitioner.exits), all that is ahead included
    expected    predicted, corrected by the usual error of late
    latest      what almost no request of late would have exceeded: this is what a deadline is compared with

A request is refused if its latest completion lies behind its deadline, or if by going first it would push one behind
it, accepted before, over its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from odin.partitioner.exits import Exits
from odin.requests.spread import Spread

__all__ = ["NONE", "PREDICT", "Admission", "Forecast", "Promised", "Verdict", "check_admission"]

PREDICT, NONE = "predict", "none"
_ALONE = 1.25
"""With nothing ahead of it a request is given this factor at most: it delays nobody, and from it is learned whether
errors are still as large as they were. Else bad times could keep all out for ever."""


def check_admission(admission: str) -> str:
    """Return ``admission``; ``ValueError`` if it is not one of the two."""
    if admission not in (PREDICT, NONE):
        raise ValueError(
            f"admission={admission!r}; choose 'predict', which refuses a request that would be late, or 'none', which "
            "takes all"
        )
    return admission


class Forecast(NamedTuple):
    """When a request is to be done, on the clock of deadlines.

    Attributes
    ----------
    made_s
        When this was predicted.
    predicted_s
        Seconds from then, by the stages' recursion alone.
    expected_s, latest_s
        Moments: see the module.
    """

    made_s: float
    predicted_s: float
    expected_s: float
    latest_s: float


class Promised(Protocol):
    """A request in the line that was accepted.

    Attributes
    ----------
    deadline_s
        Its deadline; infinite for none.
    forecast
        The last one made for it; None if there is none.
    """

    deadline_s: float
    forecast: Forecast | None


class Verdict(NamedTuple):
    """What is to be done with a request.

    Attributes
    ----------
    forecasts
        One per part.
    late
        Whether to refuse it.
    delays
        Whether that is so for the sake of another one.
    """

    forecasts: list[Forecast]
    late: bool
    delays: bool = False


class Admission:
    """Predicts, refuses, and learns from how it turned out.

    Parameters
    ----------
    refuses
        Whether requests that would be late are refused; otherwise all are only predicted.
    """

    def __init__(self, *, refuses: bool = True) -> None:
        self.refuses = refuses
        self.spread = Spread()

    def forecast(self, exits: Exits, now_s: float, ahead: int) -> Forecast:
        """Predict the completion of a request with so many others before it in the line."""
        spread = self.spread
        predicted_s = max(0.0, exits.exit_s(ahead) - now_s)
        return Forecast(now_s, predicted_s, now_s + spread.usual * predicted_s, now_s + spread.high * predicted_s)

    def judge(
        self,
        exits: Exits,
        now_s: float,
        *,
        deadline_s: float,
        ahead: int,
        parts: int = 1,
        alone: bool = False,
        behind: Iterable[tuple[Promised, int]] = (),
    ) -> Verdict:
        """Decide about a request of so many parts that is submitted now.

        Parameters
        ----------
        exits
            The stages now.
        deadline_s
            The request's; infinite for none, which is never refused.
        ahead
            How many in the line are taken before it.
        alone
            Whether nothing at all is under way.
        behind
            Those in the line that it goes before, each with how many are taken before it now. Their forecasts are made
            anew if the request is taken.
        """
        self.spread.forget(now_s)
        forecasts = [self.forecast(exits, now_s, ahead + part) for part in range(parts)]
        refuses = self.refuses and deadline_s < math.inf
        if refuses:
            last = forecasts[-1]
            latest_s = min(last.latest_s, _alone_s(last)) if alone else last.latest_s
            if latest_s > deadline_s:
                return Verdict(forecasts, late=True)
        later: list[tuple[Promised, Forecast]] = []
        for one, before in behind:
            after = self.forecast(exits, now_s, before + parts)
            if refuses and after.latest_s > one.deadline_s >= self.forecast(exits, now_s, before).latest_s:
                return Verdict(forecasts, late=True, delays=True)
            later.append((one, after))
        for one, after in later:
            one.forecast = after
        return Verdict(forecasts, late=False)

    def is_hopeless(self, exits: Exits, now_s: float, deadline_s: float) -> bool:
        """Whether the next one to be sent would usually be late by now, although it was accepted."""
        return self.refuses and deadline_s < math.inf and self.forecast(exits, now_s, 0).expected_s > deadline_s

    def learn(self, forecast: Forecast, completed_s: float) -> None:
        """Take into account how it turned out."""
        self.spread.add(completed_s - forecast.made_s, predicted_s=forecast.predicted_s, now_s=completed_s)


def _alone_s(forecast: Forecast) -> float:
    return forecast.made_s + _ALONE * (forecast.expected_s - forecast.made_s)
