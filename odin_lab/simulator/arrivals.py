"""When requests come: as clients get their answers, at random, in bursts, or as recorded.

========================================  ==============================================================
``closed``, ``closed:8``                  8 clients, each with its next request when the last is answered
``poisson:12.5``                          12.5 requests per second, independent of each other
``poisson:2x``                            twice as many as the best plan can serve with nothing else running
``bursty:RATE,FACTOR,ON_S,OFF_S``         RATE per second, and FACTOR times as many in bursts: ON_S seconds on
                                          average, OFF_S between them (Markov-modulated Poisson process)
``trace:FILE``                            one arrival time in seconds per line
========================================  ==============================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrivals"]

FloatArray = NDArray[np.float64]

_FORMS = "closed, closed:N, poisson:RATE, poisson:2x, bursty:RATE,FACTOR,ON_S,OFF_S or trace:FILE"


@dataclass(frozen=True)
class Arrivals:
    """When requests come; see the module's text for the text forms.

    Attributes
    ----------
    kind
        One of ``closed``, ``poisson``, ``bursty``, ``trace``.
    clients
        Requests under way at most, of the closed kind; 0 for as many as the gateway lets in.
    rate_hz
        Requests per second, outside bursts; before :meth:`at_peak` of the peak, where ``relative``.
    factor, on_s, off_s
        How many times as many come in a burst, and the mean seconds of bursts and of what is between.
    recorded_s
        Arrival times of a trace, ascending.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    kind: Literal["closed", "poisson", "bursty", "trace"] = "closed"
    clients: int = 0
    rate_hz: float = 0.0
    factor: float = 1.0
    on_s: float = 0.0
    off_s: float = 0.0
    recorded_s: tuple[float, ...] = ()
    relative: bool = False

    def __post_init__(self) -> None:
        if self.clients < 0:
            raise ValueError(f"{self.clients} clients: at least 1, or closed without a number for as many as there may")
        if self.kind in ("poisson", "bursty") and not 0 < self.rate_hz < math.inf:
            raise ValueError(f"a rate of {self.rate_hz} requests per second is not above 0")
        if self.kind == "bursty" and not (0 < self.factor < math.inf and 0 < self.on_s < math.inf > self.off_s > 0):
            raise ValueError(
                f"bursts {self.factor} times as dense for {self.on_s} s every {self.off_s} s: give numbers above 0"
            )
        if self.kind == "trace":
            times_s = np.asarray(self.recorded_s)
            if not len(times_s) or not np.isfinite(times_s).all() or times_s[0] < 0 or (np.diff(times_s) < 0).any():
                raise ValueError(f"a trace of {len(times_s)} times: give seconds from 0 on, in order")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises
        ------
        ValueError
            If it is none of them, or the trace cannot be read.

        Examples
        --------
        >>> Arrivals.parse("bursty:10,4,2,8").factor
        4.0
        """
        kind, colon, rest = text.partition(":")
        if kind == "trace":
            return cls("trace", recorded_s=_read_trace(Path(rest)))
        try:
            if kind == "closed":
                clients = int(rest) if colon else 0
                if colon and clients < 1:
                    raise ValueError("at least one client")
                return cls("closed", clients=clients)
            if kind == "poisson":
                relative = rest.endswith("x")
                return cls("poisson", rate_hz=float(rest.removesuffix("x")), relative=relative)
            if kind == "bursty":
                rate_hz, factor, on_s, off_s = map(float, rest.split(","))
                return cls("bursty", rate_hz=rate_hz, factor=factor, on_s=on_s, off_s=off_s)
        except ValueError as error:
            raise ValueError(f"arrivals {text!r}: {error}; write {_FORMS}") from error
        raise ValueError(f"arrivals {text!r} are not known; write {_FORMS}")

    def at_peak(self, peak_hz: float) -> Self:
        """The same with a rate in requests per second, given what the best plan can serve undisturbed."""
        return replace(self, rate_hz=self.rate_hz * peak_hz, relative=False) if self.relative else self

    def times_s(self, requests: int, random: np.random.Generator) -> FloatArray | None:
        """Arrival times of so many requests, ascending; ``None`` for closed ones, which depend on the answers.

        Raises
        ------
        ValueError
            If a trace is too short.
        """
        if self.kind == "closed":
            return None
        if self.kind == "trace":
            if len(self.recorded_s) < requests:
                raise ValueError(
                    f"the trace has {len(self.recorded_s)} arrivals, not {requests}; simulate fewer requests"
                )
            return np.array(self.recorded_s[:requests])
        expected = np.cumsum(random.exponential(size=requests))
        return expected / self.rate_hz if self.kind == "poisson" else self._in_bursts(expected, random)

    def _in_bursts(self, expected: FloatArray, random: np.random.Generator) -> FloatArray:
        """Times at which so many requests are expected: the integral of the rate, turned round."""
        mean_s, rates_hz = (self.off_s, self.on_s), (self.rate_hz, self.rate_hz * self.factor)
        first = int(random.random() < self.on_s / (self.on_s + self.off_s))  # in the long run's proportions
        per_cycle = self.off_s * rates_hz[0] + self.on_s * rates_hz[1]
        edges_s, until = np.zeros(1), np.zeros(1)
        while until[-1] < expected[-1]:
            cycles = 16 + math.ceil((expected[-1] - until[-1]) / per_cycle)
            order = [first, 1 - first]
            lasting_s = random.exponential(np.tile([mean_s[state] for state in order], cycles))
            coming = lasting_s * np.tile([rates_hz[state] for state in order], cycles)
            edges_s = np.append(edges_s, edges_s[-1] + np.cumsum(lasting_s))
            until = np.append(until, until[-1] + np.cumsum(coming))
        return np.interp(expected, until, edges_s)


def _read_trace(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"trace {path}: {error}; name a file with one arrival time in seconds per line") from error
    times_s = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                times_s.append(float(line))
            except ValueError:
                raise ValueError(f"trace {path}, line {number}: {line[:40]!r} is no number of seconds") from None
    return tuple(times_s)
