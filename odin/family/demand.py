"""What should be loaded, by what requests would have got: ODIN's rule.

::

    each second   missed of each variant that is not loaded  -> averaged -> the most missed one is loaded,
                  if what must go for it within the memory was asked for less
    unused for five minutes                                  -> unloaded, unless it is the last
"""

from __future__ import annotations

from collections.abc import Sequence

from odin.family.facts import Facts, Seen, Step

__all__ = ["Demand"]

_WEIGHT = 0.5
"""Of the last second in a rate."""
_LEAST_HZ = 1.0
"""A variant is not loaded, which takes seconds of a core, for fewer requests per second."""
_UNUSED_LOOKS = 300


class Demand:
    """Remembers rates from look to look."""

    def __init__(self) -> None:
        self._missed_hz: list[float] = []
        self._used_hz: list[float] = []
        self._unused: list[int] = []

    def look(self, facts: Sequence[Facts], seen: Sequence[Seen], *, memory_mib: float) -> list[Step]:
        """See :class:`odin.family.facts.VariantPolicy`."""
        count = len(facts)
        if len(self._missed_hz) != count:
            self._missed_hz, self._used_hz, self._unused = [0.0] * count, [0.0] * count, [0] * count
        for one, now in enumerate(seen):
            self._missed_hz[one] += _WEIGHT * (now.missed - self._missed_hz[one])
            self._used_hz[one] += _WEIGHT * (now.answered - self._used_hz[one])
            idle = now.loaded and not (now.answered or now.under_way)
            self._unused[one] = self._unused[one] + 1 if idle else 0
        if any(now.loading for now in seen):
            return []  # one after the other: what that changes is seen first
        return self._load(facts, seen, memory_mib) or self._unload(seen)

    def _load(self, facts: Sequence[Facts], seen: Sequence[Seen], memory_mib: float) -> list[Step]:
        """The most missed variant, and what has to go for it."""
        wanted = [one for one, now in enumerate(seen) if not now.loaded and self._missed_hz[one] >= _LEAST_HZ]
        for one in sorted(wanted, key=lambda one: (-self._missed_hz[one], one)):
            rate_hz, steps = self._missed_hz[one], []
            free_mib = memory_mib - sum(facts[other].memory_mib for other, now in enumerate(seen) if now.loaded)
            less = [other for other, now in enumerate(seen) if now.loaded and self._used_hz[other] < rate_hz]
            for other in sorted(less, key=lambda other: (self._used_hz[other], -self._unused[other], other)):
                if free_mib >= facts[one].memory_mib:
                    break
                free_mib += facts[other].memory_mib
                steps.append(Step("unload", other, f"{facts[one].name} is asked for more"))
            if free_mib >= facts[one].memory_mib:
                return [*steps, Step("load", one, f"{rate_hz:.3g} requests/s would have got it")]
        return []

    def _unload(self, seen: Sequence[Seen]) -> list[Step]:
        """What nobody has used for long; one at a time."""
        loaded = [one for one, now in enumerate(seen) if now.loaded]
        for one in loaded if len(loaded) > 1 else ():
            if self._unused[one] >= _UNUSED_LOOKS:
                self._unused[one] = 0
                return [Step("unload", one, f"unused for {_UNUSED_LOOKS} s")]
        return []
