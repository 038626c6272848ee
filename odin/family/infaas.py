"""INFaaS's rule for choosing and scaling variants (Romero et al., ATC 2021), to compare with.

Constants and steps as read in its published code (stanford-mast/INFaaS, commit 4c5ff7b: ``queryfe_server.cc``,
``query_executor.cc``, ``autoscaler.cc``), for CPUs. A *worker* there is the devices of a variant here, a *replica* a
stage that takes whole requests. Left out, since there is no counterpart: the budget of metadata look-ups, the rule that
a loose limit takes no GPU variant, a worker's overall utilisation, and machines that are started and ended.

::

    choice      of the five fastest that are accurate enough and whose profile is within the limit:
                the first that is loaded and not on the black list; else the least loading + computing
    each second on the list   mean latency > 2.5 x profile and rate > 0.5 x capacity, or backlog > 0.8 x capacity
                              (one replica: 4 x, 1.0 x, 1.1 x)
                off the list  mean latency < 1.5 x profile and a small backlog
                replicas      up by what is needed, down one after ten looks with less than one fewer could do
                              none left: another variant is loaded (upgrade)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from odin.family.choice import refusal
from odin.family.facts import Choice, Facts, Predict, Refusal, Seen, Step, Want

__all__ = ["CPU", "CPU_ONE_REPLICA", "InfaasPolicy", "Thresholds"]

_FASTEST = 5
_CLEAR = 1.5
_HEAD_ROOM = 1.05
_DOWN_LOOKS = 10


class Thresholds(NamedTuple):
    """Of the black list: latency over the profile's, rate and backlog over the capacity."""

    latency: float
    rate: float
    backlog: float


CPU = Thresholds(2.5, 0.5, 0.8)
CPU_ONE_REPLICA = Thresholds(4.0, 1.0, 1.1)


class InfaasPolicy:
    """INFaaS's rule; reduced forms, which it does not know, are never taken."""

    name = "infaas"
    refuses = False
    starts_with_one = True

    def __init__(self) -> None:
        self.black_list: set[int] = set()
        self._small: list[int] = []

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        """See :class:`odin.family.facts.VariantPolicy`; present conditions count by the black list alone."""
        able = [
            one
            for one, known in enumerate(facts)
            if not known.reduced and known.is_accurate(want.accuracy) and one not in tried
        ]
        if not able:
            return refusal(facts, want, predict)
        by_latency = sorted(able, key=lambda one: (facts[one].latency_s(want.samples), one))
        in_time = [one for one in by_latency if facts[one].latency_s(want.samples) <= want.latency_s]
        fastest = in_time[:_FASTEST]
        for one in fastest:
            if one in loaded and one not in self.black_list:
                return self._chosen(facts, one, want, "first" if one == fastest[0] else "variant")

        def soonest(one: int) -> tuple[bool, float, int]:
            load_s = 0.0 if one in loaded else facts[one].load_s
            return one in self.black_list, load_s + facts[one].latency_s(want.samples), one

        one = min(in_time or by_latency, key=soonest)
        return self._chosen(facts, one, want, "variant" if one in loaded else "load")

    def _chosen(self, facts: Sequence[Facts], one: int, want: Want, step: str) -> Choice:
        """It predicts what the profile says."""
        seconds = facts[one].latency_s(want.samples) + (facts[one].load_s if step == "load" else 0.0)
        return Choice(one, seconds, seconds, step, why="interference" if step == "variant" else "asked")

    def look(self, facts: Sequence[Facts], seen: Sequence[Seen], *, memory_mib: float) -> Sequence[Step]:
        """See :class:`odin.family.facts.VariantPolicy`."""
        if len(self._small) != len(facts):
            self._small = [0] * len(facts)
        steps: list[Step] = []
        used_mib = sum(known.memory_mib for known, now in zip(facts, seen, strict=True) if now.loaded or now.loading)
        for one, (known, now) in enumerate(zip(facts, seen, strict=True)):
            if not now.loaded:
                self.black_list.discard(one)
                continue
            samples = now.samples / now.answered if now.answered else 1.0
            capacity_hz = samples / known.latency_s(max(1, round(samples)))  # of one replica, in samples
            self._judge(one, known, now, samples=samples, capacity_hz=capacity_hz)
            rate_hz = float(now.samples)
            need_hz = _HEAD_ROOM * rate_hz - now.instances * capacity_hz
            if need_hz > 0 and now.instances < now.most_instances:
                count = min(now.most_instances, now.instances + math.ceil(need_hz / capacity_hz))
                steps.append(Step("instances", one, f"{rate_hz:.3g} samples/s", count))
                self._small[one] = 0
            elif need_hz > 0 or one in self.black_list:
                other = self._upgrade(facts, seen, one, free_mib=memory_mib - used_mib)
                if other is not None and not any(step.action == "load" for step in steps):
                    steps.append(Step("load", other, f"beside {known.name}, which has too much"))
            elif now.instances > 1 and rate_hz <= (now.instances - 1) * capacity_hz:
                self._small[one] += 1
                if self._small[one] >= _DOWN_LOOKS:
                    self._small[one] = 0
                    steps.append(Step("instances", one, f"{rate_hz:.3g} samples/s", now.instances - 1))
            else:
                self._small[one] = 0
        return steps

    def _judge(self, one: int, known: Facts, now: Seen, *, samples: float, capacity_hz: float) -> None:
        """Put a variant on the black list, or take it off."""
        limits = CPU_ONE_REPLICA if now.instances == 1 else CPU
        profile_s = known.latency_s(max(1, round(samples)))
        all_hz = now.instances * capacity_hz
        backlog = now.under_way * samples > limits.backlog * all_hz
        slow = now.latency_s > limits.latency * profile_s and now.samples > limits.rate * all_hz
        if slow or backlog:
            self.black_list.add(one)
        elif not (now.latency_s > _CLEAR * profile_s or backlog):  # nan, of nobody answered, clears as well
            self.black_list.discard(one)

    def _upgrade(self, facts: Sequence[Facts], seen: Sequence[Seen], one: int, *, free_mib: float) -> int | None:
        """Another variant that is as accurate, not loaded and fits into memory: the one that is loaded soonest."""
        if any(now.loading for now in seen):
            return None
        others = [
            other
            for other, known in enumerate(facts)
            if not (seen[other].loaded or known.reduced)
            and known.memory_mib <= free_mib
            and (math.isnan(facts[one].accuracy) or known.accuracy >= facts[one].accuracy)
        ]
        return min(others, key=lambda other: (facts[other].load_s, other), default=None)
