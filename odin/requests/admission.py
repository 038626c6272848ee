"""Whether a request that is submitted now would be done in time, and would not make others late: pure arithmetic.

::

    predicted   the stages' own recursion under present conditions (odin.partitioner.exits), all that is ahead included
    expected    predicted, corrected by the usual error of late
    latest      expected, with what experience says to allow for besides (odin.requests.margin)
    safest      three times what is expected: at hardly any risk

A request is refused if its latest completion lies behind its deadline, or if by going first it would push one behind
it, accepted before, over its own; and where others will come to fill its place (odin.requests.crowd), unless the
safest is in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from odin.partitioner.exits import Exits
from odin.requests.crowd import Crowd
from odin.requests.margin import Margin

__all__ = ["NONE", "PREDICT", "Admission", "Forecast", "Promised", "Verdict", "check_admission"]

PREDICT, NONE = "predict", "none"
_ALONE = 1.25
"""With nothing ahead of it a request is given this factor at most: it delays nobody, and from it is learned whether
errors are still as large as they were. Else bad times could keep all out for ever."""
_SAFE = 3.0
"""A request whose deadline is so many times as far as its expected completion is at hardly any risk: it is in time on
a stage that becomes three times as slow."""


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

    @property
    def safest_s(self) -> float:
        """A moment: see the module."""
        return self.made_s + _SAFE * (self.expected_s - self.made_s)


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
    crowded
        Whether that is so because others will come who need not wait.
    """

    forecasts: list[Forecast]
    late: bool
    delays: bool = False
    crowded: bool = False


class Admission:
    """Predicts, refuses, and learns from how it turned out.

    Parameters
    ----------
    refuses
        Whether requests that would be late are refused; otherwise all are only predicted.
    margin
        What is learned of errors; default: a new one.
    """

    def __init__(self, *, refuses: bool = True, margin: Margin | None = None) -> None:
        self.refuses = refuses
        self.margin, self.crowd = margin or Margin(), Crowd()

    def forecast(self, exits: Exits, now_s: float, ahead: int) -> Forecast:
        """Predict the completion of a request with so many others before it in the line."""
        predicted_s = max(0.0, exits.exit_s(ahead) - now_s)
        expected_s = self.margin.usual * predicted_s
        return Forecast(now_s, predicted_s, now_s + expected_s, now_s + self.margin.factor * expected_s)

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
        forecasts = [self.forecast(exits, now_s, ahead + part) for part in range(parts)]
        refuses = self.refuses and deadline_s < math.inf
        if refuses:
            verdict = self._of_its_own(exits, now_s, forecasts, deadline_s=deadline_s, ahead=ahead, alone=alone)
            if verdict.late:
                begin_s = exits.begin_s(ahead + parts - 1)
                work_s = forecasts[-1].predicted_s - max(0.0, begin_s - now_s)
                if now_s + self.margin.usual * work_s <= deadline_s:
                    self.crowd.turned_away(now_s)
                return verdict
        later: list[tuple[Promised, Forecast]] = []
        for one, before in behind:
            after = self.forecast(exits, now_s, before + parts)
            if refuses and after.latest_s > one.deadline_s >= self.forecast(exits, now_s, before).latest_s:
                return Verdict(forecasts, late=True, delays=True)
            later.append((one, after))
        for one, after in later:
            one.forecast = after
        return Verdict(forecasts, late=False)

    def _of_its_own(
        self, exits: Exits, now_s: float, forecasts: list[Forecast], *, deadline_s: float, ahead: int, alone: bool
    ) -> Verdict:
        """Whether to refuse a request, those behind it aside."""
        last = forecasts[-1]
        if alone:
            return Verdict(forecasts, self.lenient(last).latest_s > deadline_s)
        if last.latest_s > deadline_s:
            return Verdict(forecasts, late=True)
        crowded = last.safest_s > deadline_s and self.crowd.fills(now_s, exits.begin_s(ahead) - now_s)
        return Verdict(forecasts, late=crowded, crowded=crowded)

    def lenient(self, forecast: Forecast) -> Forecast:
        """The forecast that counts for a request with nothing at all ahead of it."""
        alone_s = forecast.made_s + _ALONE * (forecast.expected_s - forecast.made_s)
        return forecast._replace(latest_s=min(forecast.latest_s, alone_s))

    def is_hopeless(self, exits: Exits, now_s: float, deadline_s: float) -> bool:
        """Whether the next one to be sent would usually be late by now, although it was accepted."""
        return self.refuses and deadline_s < math.inf and self.forecast(exits, now_s, 0).expected_s > deadline_s

    def learn(self, forecast: Forecast, completed_s: float) -> None:
        """Take into account when a request was done."""
        self.margin.learn(completed_s - forecast.made_s, forecast.predicted_s)

    def ended(self, forecast: Forecast, deadline_s: float, *, in_time: bool) -> None:
        """Take into account whether one that was accepted was done in time.

        That says nothing of the margin if the request was late and had none, being alone, or in time and at no risk.
        """
        if not in_time and forecast.latest_s <= deadline_s:
            self.margin.broken()
        elif in_time and forecast.safest_s > deadline_s:
            self.margin.kept()
