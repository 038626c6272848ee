"""Deadlines, and what the gateway does about requests that would miss theirs.

=============  =========================================================================================
``none``       nothing: first come, first served
``expired``    a request whose deadline is over when a stage is about to begin with it is dropped
``clockwork``  refused at arrival if it would be late should every stage be as slow as in the worst of its last 10
               requests; dropped when there is no time left for the rest of it (Clockwork, OSDI 2020)
``predict``    as a live pipeline has it (:mod:`odin.requests.admission`): the same with what stages take at present,
               and with a margin that follows from how many promises were kept
=============  =========================================================================================
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, get_args

from odin.partitioner.exits import Exits
from odin.partitioner.relay import idle_slowdown
from odin.requests.admission import Admission, Forecast
from odin_lab.simulator.losses import parse_seconds, seconds_text

__all__ = ["Deadline", "Door", "DoorName", "Never", "Seen"]

DoorName = Literal["none", "expired", "clockwork", "predict"]

_LAST = 10
"""Requests of a stage that Clockwork's estimate is the worst of."""
_WEIGHT = 0.3
"""Of the latest request in what a stage takes at present, as live."""
_FORGETS = 10.0
"""What a stage took is forgotten so many times more slowly than by the stage itself, as live."""


@dataclass(frozen=True)
class Deadline:
    """Time from a request's coming within which it is to be answered: in seconds, or times the undisturbed latency.

    Examples
    --------
    >>> str(Deadline.parse("3x")), str(Deadline.parse("250ms"))
    ('3x', '0.25s')
    """

    value: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(f"deadline {self}: give a time above 0, or a multiple of the undisturbed latency")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``250ms`` or ``3x``.

        Raises
        ------
        ValueError
            If it is neither.
        """
        words = text.strip()
        try:
            return cls(float(words[:-1]), relative=True) if words.endswith("x") else cls(parse_seconds(words))
        except ValueError as error:
            raise ValueError(
                f"deadline {text!r}: {error}; write a time, such as 250ms, or 3x, three times the undisturbed latency"
            ) from error

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.relative else seconds_text(self.value)

    def seconds(self, undisturbed_s: float) -> float:
        """Seconds, given the latency of a request that is alone and undisturbed."""
        return self.value * undisturbed_s if self.relative else self.value


class Seen(NamedTuple):
    """What the gateway makes of a request that comes: whether it is late, and when it is expected."""

    late: bool
    forecast: Forecast | None = None


class Never:
    """No stage is left."""

    def exit_s(self, ahead: int) -> float:
        """Never."""
        return math.inf

    begin_s = exit_s


class Door:
    """One rule, with what it knows of stages.

    Parameters
    ----------
    name
        See the module's text.
    stages
        How many.

    Raises
    ------
    ValueError
        If there is no such rule.
    """

    def __init__(self, name: str, *, stages: int) -> None:
        if name not in get_args(DoorName):
            raise ValueError(f"admission {name!r} is not known; write {', '.join(get_args(DoorName))}")
        self.name = name
        self.predicts = name in ("clockwork", "predict")
        self._last: list[deque[float]] = [deque(maxlen=_LAST) for _ in range(stages)]
        self._present = [1.0] * stages
        self._seen_s = [-math.inf] * stages
        self._admission = Admission()

    def measured(self, stage: int, ratio: float, now_s: float) -> None:
        """A stage has taken so many times what a request's layers take there with nothing else running."""
        self._last[stage].append(ratio)
        self._present[stage] += _WEIGHT * (ratio - self._present[stage])
        self._seen_s[stage] = now_s

    def replaced(self, stage: int) -> None:
        """What was known of a stage is void."""
        self._last[stage].clear()
        self._present[stage] = 1.0

    def slowdown(self, stage: int, now_s: float, *, chain_s: float) -> float:
        """What a stage is expected to take, over what it takes undisturbed: ``chain_s`` for a whole request."""
        if self.name == "clockwork":
            return max(self._last[stage], default=1.0)
        idle_s = (now_s - self._seen_s[stage]) / _FORGETS
        return idle_slowdown(self._present[stage], idle_s=idle_s, chain_s=chain_s)

    def judge(self, exits: Exits, now_s: float, *, deadline_s: float, ahead: int, alone: bool) -> Seen:
        """Whether a request that comes now, with so many to be sent before it, is to be refused."""
        if self.name == "clockwork":
            return Seen(exits.exit_s(ahead) > deadline_s)
        verdict = self._admission.judge(exits, now_s, deadline_s=deadline_s, ahead=ahead, alone=alone)
        return Seen(verdict.late, verdict.forecasts[-1])

    def is_hopeless(self, exits: Exits, now_s: float, deadline_s: float) -> bool:
        """Whether the next one to be sent is to be dropped."""
        if self.name == "clockwork":
            return exits.exit_s(0) > deadline_s
        return self._admission.is_hopeless(exits, now_s, deadline_s)

    def answered(self, forecast: Forecast, completed_s: float) -> None:
        """When a request was done."""
        self._admission.learn(forecast, completed_s)

    def ended(self, forecast: Forecast, deadline_s: float, *, in_time: bool) -> None:
        """Whether a request that was taken was answered in time."""
        self._admission.ended(forecast, deadline_s, in_time=in_time)
