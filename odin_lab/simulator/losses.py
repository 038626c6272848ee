"""Which devices are lost, when, and when they are back.

==========================  ============================================================================
``3@10s``                   device 3 dies at 10 s, for good
``3@10s+2s``                it is replaced 2 s later
``hang:3@10s+2s``           it stands still for 2 s, then goes on
``random:60s+2s``           every device dies after 60 s on average and is back after 2 s on average, both
                            exponentially distributed; ``hang:random:60s+2s`` stands still in place of dying
==========================  ============================================================================

Several are joined by commas. Seconds may be written as ``ms``, ``s`` or ``min``.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

__all__ = ["Loss", "Losses", "parse_seconds", "seconds_text"]

_UNITS_S = {"ms": 1e-3, "s": 1.0, "min": 60.0}
_SECONDS = re.compile(r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<unit>ms|s|min)")
_FORMS = "3@10s, 3@10s+2s, hang:3@10s+2s or random:60s+2s, joined by commas"


def parse_seconds(text: str) -> float:
    """Read ``10s``, ``250ms`` or ``2min``.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = _SECONDS.fullmatch(text.strip())
    try:
        assert match is not None
        return float(match["number"]) * _UNITS_S[match["unit"]]
    except (AssertionError, ValueError):
        raise ValueError(f"{text!r} is no time; write a number and its unit, such as 250ms, 10s or 2min") from None


def seconds_text(seconds: float) -> str:
    """The text that :func:`parse_seconds` reads back."""
    return f"{seconds!r}s".replace(".0s", "s")


class Loss(NamedTuple):
    """A device that is lost.

    Attributes
    ----------
    device
        Counted from 0.
    at_s, for_s
        When it is lost, and for how long; the latter infinite if it is for good.
    hangs
        Whether it stands still and then goes on with what it had, rather than to be replaced.
    """

    device: int
    at_s: float
    for_s: float = math.inf
    hangs: bool = False

    @property
    def back_s(self) -> float:
        """When it is back; infinite if it is not."""
        return self.at_s + self.for_s

    def __str__(self) -> str:
        lasts = "" if self.for_s == math.inf else f"+{seconds_text(self.for_s)}"
        return f"{'hang:' if self.hangs else ''}{self.device}@{seconds_text(self.at_s)}{lasts}"


class _Rate(NamedTuple):
    """Losses at random: mean seconds that a device lives, and that it is away."""

    live_s: float
    away_s: float
    hangs: bool

    def __str__(self) -> str:
        return f"{'hang:' if self.hangs else ''}random:{seconds_text(self.live_s)}+{seconds_text(self.away_s)}"


@dataclass(frozen=True)
class Losses:
    """All devices that are lost in a run: a list, and what is drawn at random.

    Attributes
    ----------
    listed
        Those told one by one.
    rates
        Those at random.

    Raises
    ------
    ValueError
        If a loss lasts for no time, or two of a device overlap.

    Examples
    --------
    >>> str(Losses.parse("3@10s+500ms, hang:0@1min+2s"))
    '3@10s+0.5s,hang:0@60s+2s'
    >>> Losses.parse("0@1s+2s").listed
    (Loss(device=0, at_s=1.0, for_s=2.0, hangs=False),)
    """

    listed: tuple[Loss, ...] = ()
    rates: tuple[_Rate, ...] = ()

    def __post_init__(self) -> None:
        for loss in self.listed:
            if loss.device < 0 or not 0 <= loss.at_s < math.inf or not loss.for_s > 0:
                raise ValueError(f"loss {loss}: a device is 0 or more, its loss at 0 s or later, for more than 0 s")
            if loss.hangs and loss.for_s == math.inf:
                raise ValueError(f"loss {loss}: say for how long it stands still, such as {loss}+2s")
        for device in {loss.device for loss in self.listed}:
            own = sorted(loss for loss in self.listed if loss.device == device)
            for before, after in itertools.pairwise(own):
                if after.at_s < before.back_s:
                    raise ValueError(f"loss {after} begins while the device is lost already: {before}; leave one out")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises
        ------
        ValueError
            If it is none.
        """
        listed: list[Loss] = []
        rates: list[_Rate] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                hangs = part.startswith("hang:")
                rest = part.removeprefix("hang:")
                if rest.startswith("random:"):
                    live, _, away = rest.removeprefix("random:").partition("+")
                    rates.append(_Rate(parse_seconds(live), parse_seconds(away), hangs))
                    if not min(rates[-1][:2]) > 0:
                        raise ValueError("mean times are above 0")
                    continue
                device, at, rest = rest.partition("@")
                if not at or not device.isdecimal():
                    raise ValueError("a device's number, @ and a time are needed")
                begin, plus, lasts = rest.partition("+")
                for_s = parse_seconds(lasts) if plus else math.inf
                listed.append(Loss(int(device), parse_seconds(begin), for_s, hangs))
            except ValueError as error:
                raise ValueError(f"loss {part!r}: {error}; write {_FORMS}") from error
        if not listed and not rates:
            raise ValueError(f"losses {text!r} are none; write {_FORMS}")
        return cls(tuple(listed), tuple(rates))

    def __str__(self) -> str:
        return ",".join(map(str, (*self.listed, *self.rates)))

    def check_fits(self, devices: int) -> None:
        """Raise ``ValueError`` if a device is none of so many."""
        for loss in self.listed:
            if loss.device >= devices:
                raise ValueError(f"loss {loss} is of device {loss.device}; there are {devices}, counted from 0")

    def moments(self, *, devices: int, seed: int) -> Iterator[Loss]:
        """All losses in their order, without end if there are some at random; the same seed gives the same ones.

        Those at random do not look at the list: a device that is lost already cannot be lost again.
        """
        at_random = (
            _at_random(rate, device, random.Random(f"{seed} {number} {device}").random)
            for number, rate in enumerate(self.rates)
            for device in range(devices)
        )
        return heapq.merge(sorted(self.listed, key=_moment), *at_random, key=_moment)


def _moment(loss: Loss) -> tuple[float, int]:
    return loss.at_s, loss.device


def _at_random(rate: _Rate, device: int, draw: Callable[[], float]) -> Iterator[Loss]:
    # Only random(): of all its methods this one promises the same numbers in every version of Python.
    at_s = 0.0
    while True:
        at_s += -rate.live_s * math.log(1.0 - draw())
        for_s = max(-rate.away_s * math.log(1.0 - draw()), 1e-9)
        yield Loss(device, at_s, for_s, rate.hangs)
        at_s += for_s
