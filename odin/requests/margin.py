"""How much longer than predicted a request may take before its promise breaks, learned from whether promises were kept.

Two numbers, each moved a little by every answer::

    usual    seconds taken over seconds predicted, of half of the requests: what predictions leave out
    factor   of that, what is allowed for before a request is taken

A broken promise widens what the factor is above 1 by a fifth, a kept one narrows it by a thousandth of that (or by
another share, if that is asked for). So it comes to rest where one in a thousand is broken, whatever the errors are
like: nothing is assumed of their distribution, and how large they were does not matter. (This is stochastic
approximation of a quantile, Robbins and Monro 1951; as a promise that holds whatever the data do: adaptive conformal
inference, Gibbs and Candes 2021.) It stays between 1.1 and 2.
"""

from __future__ import annotations

import math

__all__ = ["Margin"]

_NARROWEST, _FIRST, _WIDEST = 1.1, 1.5, 2.0
"""Stages' times vary by a tenth on the quietest machine. Another program that comes to a stage's only core makes it
twice as slow; what becomes slower still was late before it could be refused, and a wider factor costs much and keeps
little."""
_STEP = 0.2
"""Of one broken promise: after four in a row the factor is at its widest, from which it is back where it began after
3,500 that were kept."""
_BROKEN = 0.001
"""Share of promises that may be broken."""
_PACE = 0.005
"""By so much the usual error moves towards each one: half as much again is followed within some eighty requests."""


class Margin:
    """The allowance of one gateway.

    Parameters
    ----------
    broken
        Share of promises that may be broken.

    Attributes
    ----------
    usual, factor
        See the module.

    Examples
    --------
    >>> margin = Margin()
    >>> margin.broken()
    >>> round(margin.factor, 6)
    1.6
    >>> for _ in range(1000):
    ...     margin.kept()
    >>> round(margin.factor, 3)
    1.491
    """

    def __init__(self, *, broken: float = _BROKEN) -> None:
        self._narrows = _STEP * broken
        self.usual, self.factor = 1.0, _FIRST

    def learn(self, took_s: float, predicted_s: float) -> None:
        """Follow what requests usually take."""
        if 0 <= took_s < math.inf and 0 < predicted_s < math.inf:
            expected_s = self.usual * predicted_s
            self.usual *= 1.0 + _PACE * ((took_s > expected_s) - (took_s < expected_s))

    def kept(self) -> None:
        """A request that was taken at some risk was answered in time."""
        self.factor = max(_NARROWEST, self.factor - self._narrows * (self.factor - 1.0))

    def broken(self) -> None:
        """One that was taken was not."""
        self.factor = min(_WIDEST, self.factor + _STEP * (self.factor - 1.0))
