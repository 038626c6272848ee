"""The highest rate that keeps a bound, by bisection: one trial after the other, each at the rate that tells most."""

from __future__ import annotations

__all__ = ["RateSearch"]


class RateSearch:
    """Says which rate to try next.

    Parameters
    ----------
    start_hz
        Rate to begin with; beyond it the rate doubles until one fails, below it halves until one passes.
    precision
        Enough once the least rate that failed is within this part of the highest one that passed.
    most
        Trials at most.

    Attributes
    ----------
    passed_hz, failed_hz
        Highest rate that passed and least that failed so far; None: none.

    Raises
    ------
    ValueError
        If a number is not above 0.

    Examples
    --------
    >>> search = RateSearch(start_hz=8.0, precision=0.1)
    >>> while (rate_hz := search.next_hz) is not None:
    ...     search.add(rate_hz, passed=rate_hz <= 11.2)
    >>> search.passed_hz
    11.0
    """

    def __init__(self, *, start_hz: float, precision: float = 0.05, most: int = 12) -> None:
        if not (start_hz > 0 and precision > 0 and most > 0):
            raise ValueError(f"start_hz={start_hz}, precision={precision}, most={most}: all must be above 0")
        self._start_hz, self._precision, self._left = start_hz, precision, most
        self.passed_hz: float | None = None
        self.failed_hz: float | None = None

    @property
    def next_hz(self) -> float | None:
        """Rate to try next; None: that is enough."""
        if not self._left:
            return None
        if self.passed_hz is None:
            return self._start_hz if self.failed_hz is None else self.failed_hz / 2
        if self.failed_hz is None:
            return 2 * self.passed_hz
        if self.failed_hz - self.passed_hz <= self._precision * self.passed_hz:
            return None
        return (self.passed_hz + self.failed_hz) / 2

    def add(self, rate_hz: float, *, passed: bool) -> None:
        """Say what came of a trial."""
        self._left -= 1
        if passed:
            self.passed_hz = max(rate_hz, self.passed_hz or 0.0)
        else:
            self.failed_hz = rate_hz if self.failed_hz is None else min(rate_hz, self.failed_hz)
