"""What variants on the same devices mean for each other, and how slow these devices are: pure arithmetic.

Stages of several variants on one core share it in equal parts (processor sharing), and slow each other down. What they
do to each other is known here, since all requests of a family come by. A request begins on the core with the fewest
others (:mod:`odin.stages.company`), so that busy stages are spread evenly::

    rivals       busy stages of other variants beside one of its own
    own time     seconds of a request, each counted as the part 1 / (1 + rivals) that its variant had of a core
    alone        seconds until a stage of the variant is free, and its latency by the profile: with a core for itself
    slowdown     own time / alone, each averaged over requests: what others than the family's variants do to the
                 devices; so long requests count for more, of which less is the program's own work

    prediction   slowdown x alone, and of each rival what it has yet to do, at most as much again

So a slowdown is that of other programs only, and every variant learns of it from each. One that is not seen any more
is forgotten: if it kept all requests out, nobody would learn that it has gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from odin.partitioner.exits import SharedExits
from odin.partitioner.relay import idle_slowdown
from odin.requests.admission import Admission, Forecast
from odin.requests.margin import Margin

__all__ = ["Begun", "SharedDevices"]

_WEIGHT = 0.3
"""Of the latest request in a slowdown, as of a stage's (:mod:`odin.requests.conditions`)."""
_FORGETS = 10.0
"""Half of a slowdown is forgotten in so many times what a request takes, as there."""
_BROKEN = 0.03
"""Share of promises that may be broken before another variant, or a reduced form, is taken instead: with a thousandth,
as a pipeline has, that happens where the preferred one would nearly always have been in time."""
_LEAST_S = 1e-6


@dataclass(slots=True, eq=False)
class Begun:
    """A request that a variant was given.

    Attributes
    ----------
    variant
        Which.
    work_s
        Seconds for which it keeps a stage busy, at the slowdown of that moment.
    alone_s
        See the module.
    begun_s, own_s
        When it began, and its variant's own time then.
    leaves_s
        In its variant's own time, when it is expected to leave its stage.
    forecast, deadline_s
        When it is to be done; the deadline is infinite if there is none.
    """

    variant: int
    work_s: float
    alone_s: float
    begun_s: float
    own_s: float
    leaves_s: float
    forecast: Forecast
    deadline_s: float


class SharedDevices:
    """The devices of a family; whoever uses it holds a lock.

    Parameters
    ----------
    devices
        Of each variant, in any text form.
    refuses
        See :class:`odin.requests.admission.Admission`.

    Examples
    --------
    Two variants on one core. The second one's request is expected to take turns with the first one's for as long as
    itself takes:

    >>> devices = SharedDevices([["cpu:0"], ["cpu:0"]])
    >>> long = devices.begun(0, 0.1, 0.1, now_s=0.0)
    >>> round(devices.predict(1, 0.02, now_s=0.0).predicted_s, 6)
    0.04

    It does, so nothing is learned from it of the core:

    >>> short = devices.begun(1, 0.02, 0.02, now_s=0.0)
    >>> devices.answered(short, now_s=0.04)
    >>> round(devices.slowdown(1, 0.04, request_s=0.02), 6)
    1.0
    """

    def __init__(self, devices: Sequence[Sequence[str]], *, refuses: bool = True) -> None:
        self._devices = [tuple(own) for own in devices]
        self._admission = [Admission(refuses=refuses, margin=Margin(broken=_BROKEN)) for _ in devices]
        self._begun: list[list[Begun]] = [[] for _ in devices]
        self._busy = [0] * len(devices)  # stages of each that have a request
        self._left: tuple[float, dict[int, float]] = -math.inf, {}
        self._own_s, self._part, self._at_s = [0.0] * len(devices), [1.0] * len(devices), 0.0
        self._told: dict[str, tuple[float, float, float]] = {}  # slowdown, mean of alone, when
        # For each variant the others on its devices, and which part of their stages is there.
        self._beside = [
            [
                (other, len(set(own) & set(others)) / len(set(others)))
                for other, others in enumerate(self._devices)
                if other != one and set(own) & set(others)
            ]
            for one, own in enumerate(self._devices)
        ]

    # -- predicting ----------------------------------------------------------------------------------------------------

    def predict(self, variant: int, latency_s: float, now_s: float) -> Forecast:
        """When a variant would be done with a request that takes ``latency_s`` with nothing else running."""
        wait_s, slowdown = self._waits(variant, latency_s, now_s)
        return self._forecast(variant, wait_s + slowdown * latency_s, now_s)

    def _waits(self, variant: int, latency_s: float, now_s: float) -> tuple[float, float]:
        """Seconds until one of a variant's stages is free, and the slowdown of a request that takes so long."""
        return self._wait_s(variant, now_s), self.slowdown(variant, now_s, request_s=latency_s)

    def _forecast(self, variant: int, own_s: float, now_s: float) -> Forecast:
        """When a request is done that takes so long without rivals."""
        seconds, others = own_s, self._others(variant)
        if busy := math.fsum(others.values()):
            stages = len(self._devices[variant])
            rivals = (busy + min(self._busy[variant], stages - 1)) // stages  # on the core that has the fewest
            for other, count in others.items() if rivals else ():
                left_s = self._left_s(other, now_s) / self._busy[other]
                seconds += rivals * count / busy * min(left_s, own_s)
        admission = self._admission[variant]
        forecast = admission.forecast(SharedExits([now_s], [max(seconds, _LEAST_S)]), now_s, 0)
        return forecast if self._begun[variant] else admission.lenient(forecast)

    def slowdown(self, variant: int, now_s: float, *, request_s: float) -> float:
        """Of a variant that divides its work among its devices by their speed; 1.0 if nothing is known.

        ``request_s``: what a request takes, by which time is measured.
        """
        own = self._devices[variant]
        return len(own) / math.fsum(1.0 / self._slowdown_of(device, now_s, request_s) for device in own)

    def _slowdown_of(self, device: str, now_s: float, request_s: float) -> float:
        slowdown, _, seen_s = self._told.get(device, (1.0, 0.0, now_s))
        return idle_slowdown(slowdown, idle_s=max(0.0, now_s - seen_s) / _FORGETS, chain_s=request_s)

    def _wait_s(self, variant: int, now_s: float) -> float:
        """Seconds of its own time until one of a variant's stages is free."""
        begun = self._begun[variant]
        stages = len(self._devices[variant])
        if len(begun) < stages:
            return 0.0
        leaves_s = sorted(one.leaves_s for one in begun)[len(begun) - stages]
        return abs(leaves_s - self._now_s(variant, now_s))  # if it is late, then as much later again

    def _others(self, variant: int) -> dict[int, float]:
        """Busy stages of other variants on a variant's devices; of one that has more devices, the part that is here."""
        return {other: part * busy for other, part in self._beside[variant] if (busy := self._busy[other])}

    def _left_s(self, variant: int, now_s: float) -> float:
        """Seconds of its own time that a variant's stages have yet to work; kept while nothing changes."""
        if self._left[0] != now_s:
            self._left = now_s, {}
        left_s = self._left[1].get(variant)
        if left_s is None:
            own_s = self._now_s(variant, now_s)
            left_s = math.fsum([min(one.work_s, abs(one.leaves_s - own_s)) for one in self._begun[variant]])
            self._left[1][variant] = left_s
        return left_s

    def under_way(self, variant: int) -> int:
        """Requests that a variant has."""
        return len(self._begun[variant])

    def _now_s(self, variant: int, now_s: float) -> float:
        """A variant's own time."""
        return self._own_s[variant] + self._part[variant] * (now_s - self._at_s)

    # -- learning ------------------------------------------------------------------------------------------------------

    def begun(
        self, variant: int, latency_s: float, work_s: float, now_s: float, *, deadline_s: float = math.inf
    ) -> Begun:
        """A variant is given a request.

        Parameters
        ----------
        latency_s, work_s
            What it takes, and for how long it keeps a stage busy, with nothing else running.
        deadline_s
            On the clock of ``now_s``.
        """
        wait_s, slowdown = self._waits(variant, latency_s, now_s)
        forecast = self._forecast(variant, wait_s + slowdown * latency_s, now_s)
        own_s, takes_s = self._now_s(variant, now_s), slowdown * work_s
        alone_s = max(_LEAST_S, wait_s / slowdown + latency_s)
        one = Begun(variant, takes_s, alone_s, now_s, own_s, own_s + wait_s + takes_s, forecast, deadline_s)
        self._begun[variant].append(one)
        self._changed(variant, now_s)
        return one

    def ended(self, one: Begun, now_s: float, *, late: bool = False) -> None:
        """A variant has not answered a request, which is no longer with it; ``late``: since its deadline passed."""
        if late:
            took_s = self._now_s(one.variant, now_s) - one.own_s
            if took_s > one.alone_s * self.slowdown(one.variant, now_s, request_s=one.alone_s):
                self._tell(one, took_s, now_s)  # it would have taken longer still
            self._admission[one.variant].ended(one.forecast, one.deadline_s, in_time=False)
        self._gone(one, now_s)

    def answered(self, one: Begun, now_s: float) -> None:
        """A variant has answered a request."""
        self._tell(one, self._now_s(one.variant, now_s) - one.own_s, now_s)
        admission = self._admission[one.variant]
        admission.learn(one.forecast, now_s)
        admission.ended(one.forecast, one.deadline_s, in_time=now_s <= one.deadline_s)
        self._gone(one, now_s)

    def _tell(self, one: Begun, took_s: float, now_s: float) -> None:
        """A request took so much of its variant's own time."""
        for device in self._devices[one.variant]:
            before = self._slowdown_of(device, now_s, one.alone_s)
            mean_s = self._told.get(device, (1.0, one.alone_s, now_s))[1]
            mean_s += _WEIGHT * (one.alone_s - mean_s)
            now = before + _WEIGHT * (max(_LEAST_S, took_s) - before * one.alone_s) / mean_s
            self._told[device] = now, mean_s, now_s

    def _gone(self, one: Begun, now_s: float) -> None:
        self._begun[one.variant].remove(one)
        self._changed(one.variant, now_s)

    def _changed(self, variant: int, now_s: float) -> None:
        """A variant has another number of requests; if who is beside whom changes, own times go on at another pace."""
        self._left = -math.inf, {}
        busy = min(len(self._begun[variant]), len(self._devices[variant]))
        if busy == self._busy[variant]:
            return
        self._busy[variant] = busy
        for variant in range(len(self._devices)):
            self._own_s[variant] = self._now_s(variant, now_s)
        self._at_s = now_s
        for variant, own in enumerate(self._devices):
            here = self._busy[variant] + math.fsum(self._others(variant).values())
            self._part[variant] = 1.0 / (1.0 + _rivals(here, len(own)))


def _rivals(busy: float, devices: int) -> float:
    """How many others a busy stage has beside it, on average, if so many are spread evenly over devices.

    Examples
    --------
    >>> [_rivals(busy, 2) for busy in (1, 2, 4)]
    [0.0, 0.0, 1.0]
    """
    if busy <= devices:
        return 0.0
    fewest = busy // devices
    more = busy - fewest * devices
    return (more * (fewest + 1) * fewest + (devices - more) * fewest * (fewest - 1)) / busy
