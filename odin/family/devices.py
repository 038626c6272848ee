"""What variants on the same devices mean for each other: pure arithmetic.

A pipeline predicts from its own queue and its own stages' slowdown. It does not see what other variants have been given
for the same cores a moment ago, and an idle one knows nothing of a load that has come since. Both are known here::

    shared      own work + what others have there, of each at most as much as the own: processor sharing
    disturbed   own work x slowdown that another variant saw last on these devices, if the own is half forgotten

The prediction is the largest of the pipeline's own and these two; they describe the same things, so they are not added.
A slowdown that is not seen any more is forgotten as fast as a pipeline forgets its own: if it kept all requests out,
nobody would learn that it has gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from odin.partitioner.relay import idle_slowdown

__all__ = ["SharedDevices"]

_FORGETS = 10.0
"""Half of a slowdown is forgotten in so many times what a request takes, as by :mod:`odin.requests.conditions`."""


class SharedDevices:
    """The devices of a family.

    Parameters
    ----------
    devices
        Of each variant, in any text form.
    """

    def __init__(self, devices: Sequence[Sequence[str]]) -> None:
        self._devices = [tuple(own) for own in devices]
        self._work_s = [0.0] * len(devices)
        self._seen_s = [-math.inf] * len(devices)
        self._told: dict[str, tuple[float, float]] = {}
        self._parts = [
            [(other, len(set(own) & set(others)) / len(others)) for other, others in enumerate(self._devices)]
            for own in self._devices
        ]
        for one, parts in enumerate(self._parts):
            self._parts[one] = [(other, part) for other, part in parts if other != one and part]

    def begun(self, variant: int, work_s: float) -> None:
        """A variant was given a request that takes so many seconds of a device."""
        self._work_s[variant] += work_s

    def ended(self, variant: int, work_s: float) -> None:
        """It is done with it."""
        self._work_s[variant] = max(0.0, self._work_s[variant] - work_s)

    def told(self, variant: int, slowdowns: Sequence[tuple[float, float]]) -> None:
        """A variant's stages have told how slow they are, and when; what other variants' work explains is taken out."""
        rivals = 1 + sum(self._work_s[other] > 0 for other, _ in self._parts[variant])
        for device, (slowdown, seen_s) in zip(self._devices[variant], slowdowns, strict=False):
            self._seen_s[variant] = max(self._seen_s[variant], seen_s)
            if seen_s > self._told.get(device, (1.0, -math.inf))[1]:
                self._told[device] = (max(1.0, slowdown / rivals), seen_s)

    def slowdown(self, variant: int, now_s: float, *, request_s: float) -> float:
        """Of a variant that divides its work among its devices by their speed; 1.0 if nothing is known.

        ``request_s``: what a request takes, by which time is measured.
        """
        speeds = []
        for device in self._devices[variant]:
            slowdown, seen_s = self._told.get(device, (1.0, now_s))
            idle_s = max(0.0, now_s - seen_s) / _FORGETS
            speeds.append(1.0 / idle_slowdown(slowdown, idle_s=idle_s, chain_s=request_s))
        return len(speeds) / math.fsum(speeds)

    def predict_s(self, variant: int, own_s: float, now_s: float) -> float:
        """Seconds until a variant would be done with a request that takes ``own_s`` with nothing else running."""
        request_s = own_s
        own_s += self._work_s[variant] / len(self._devices[variant])
        shared_s = own_s
        for other, part in self._parts[variant]:
            work_s = part * self._work_s[other] / len(self._devices[variant])
            shared_s += min(work_s, own_s)
        if now_s - self._seen_s[variant] < _FORGETS * request_s:  # the pipeline knows better
            return shared_s
        return max(shared_s, own_s * self.slowdown(variant, now_s, request_s=request_s))
