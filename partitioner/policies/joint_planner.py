"""Plans pipelines on the same devices together, whenever that is predicted to gain more than noise.

::

    each pipeline's policy -> take: its requests, how long they took            (tenant_measures.py)
    every now and then     -> look: load of each device under the plans in force, and under the best plans together
                                    (odin.partitioner.balance.joint)
                              if the gain exceeds its noise: each pipeline has a plan that is wanted for it

``noise`` is the gain's standard error, from that of each tenant's rate and stages; ``certainty`` of these must be
exceeded, and ``min_gain``. A tenant that is idle is left where it is. After a move there is a pause, twice as long
after each further one within half a minute, unless a tenant came or went.

Several pipelines use one planner, each from a thread of its own, so it has a lock. It reads no clock.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.balance.joint import JointPlans, TenantLoad, balance_jointly, device_loads, least_bound_s
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Observation, Setting
from odin.partitioner.policies.in_flight import PlansInFlight
from odin.partitioner.policies.tenant_measures import StageMeans, TenantMeasures

__all__ = ["JointPlanner", "Member", "TenantPlan", "Wanted"]

FloatArray = NDArray[np.float64]

_LOOK_S = 0.5
"""Seconds between looks."""
_LONGEST_PAUSE_S = 16.0
_REMEMBERED_S = 30.0
_FORGET_S = 30.0
"""In so many seconds half of a device's slowdown is forgotten that nobody measures any more."""
_MIXING = 0.05
"""Part of their time that tenants are taken to lose by turns on one core; assumed, since it depends on their caches."""


class TenantPlan(NamedTuple):
    """One of the tenants that were planned together.

    Attributes
    ----------
    name, devices, share
        As in :class:`~odin.partitioner.policies.TenantSetting`.
    plan
        Its plan from now on.
    rate_hz
        Requests per second that it was planned for.
    """

    name: str
    devices: tuple[str, ...]
    plan: Plan
    rate_hz: float
    share: float


class Wanted(NamedTuple):
    """A plan that is wanted for a pipeline, and why."""

    plan: Plan
    why: str


class Member:
    """One pipeline, as the planner knows it.

    Attributes
    ----------
    measures
        What it needs.
    plans
        Those in force, and on their way.
    weight
        Requests per second to plan for; 0: as many as are measured.
    wanted
        What it is to move to; None: nothing.
    together
        Those that it was planned with last, itself among them.
    moved_s, next_look_s
        When it, or those around it, moved of late, and when to look again.
    """

    def __init__(self, setting: Setting, weight: float) -> None:
        self.measures = TenantMeasures(setting)
        self.plans = PlansInFlight(setting.plan)
        self.weight = weight
        self.wanted: Wanted | None = None
        self.together: tuple[TenantPlan, ...] = ()
        self.moved_s: list[float] = []
        self.next_look_s = 0.0

    @property
    def devices(self) -> tuple[str, ...]:
        """Of its stages."""
        return self.measures.tenant.devices

    def take(self, observation: Observation) -> None:
        """Take one finished request in."""
        self.plans.saw(observation.plan, observation.request)
        if self.plans.settled and self.wanted is not None and self.plans.decided == self.wanted.plan:
            self.wanted = None
        self.measures.take(observation)

    @property
    def settled(self) -> bool:
        """Whether requests finish under the plan that is wanted."""
        return self.plans.settled and (self.wanted is None or self.wanted.plan == self.plans.decided)

    def rate_hz(self, now_s: float) -> float:
        """Requests per second to plan for; 0 while it is idle."""
        rate_hz = self.measures.rate_hz(now_s)
        return self.weight if self.weight and rate_hz else rate_hz


class JointPlanner:
    """The pipelines that are planned together if they share devices.

    Parameters
    ----------
    mixing
        Part of their time that tenants lose where several have layers on one device.
    """

    def __init__(self, *, mixing: float = _MIXING) -> None:
        self.lock = threading.RLock()
        self._mixing = mixing
        self._members: list[Member] = []
        self._now_s = 0.0
        self._known: dict[str, tuple[float, float]] = {}  # device -> slowdown, when it was measured

    def join(self, member: Member) -> None:
        """A pipeline has come."""
        with self.lock:
            self._members.append(member)
            self._look_anew()

    def leave(self, member: Member) -> None:
        """A pipeline has gone."""
        with self.lock:
            if member in self._members:
                self._members.remove(member)
                self._look_anew()

    def _look_anew(self) -> None:
        for member in self._members:
            member.next_look_s = 0.0
            member.moved_s = []

    def take(self, member: Member, observation: Observation, *, min_gain: float, certainty: float) -> None:
        """Take a pipeline's finished request in; afterwards members may have other plans that are wanted for them."""
        with self.lock:
            if member.measures.is_idle(self._now_s):
                member.wanted = None  # it was wanted in another company, long ago
            member.take(observation)
            self._now_s = max(self._now_s, member.measures.now_s)
            if self._now_s < member.next_look_s:
                return
            around = self._around(member)
            for one in around:
                one.next_look_s = self._now_s + _LOOK_S
            if all(one.settled for one in around):
                self._look(around, min_gain=min_gain, certainty=certainty)

    def _around(self, member: Member) -> list[Member]:
        """Those that share a device with it, or with one that does, and so on, and had requests of late."""
        busy = [one for one in self._members if not one.measures.is_idle(self._now_s)]
        devices, found = set(member.devices), [member]
        while more := [one for one in busy if one not in found and devices.intersection(one.devices)]:
            found += more
            devices.update(*(one.devices for one in more))
        return [one for one in self._members if one in found]

    # -- what is best -----------------------------------------------------------------------------------------------

    def _look(self, members: Sequence[Member], *, min_gain: float, certainty: float) -> None:
        now_s = self._now_s
        rates_hz = [one.rate_hz(now_s) for one in members]
        if not all(rates_hz):
            return  # one has just begun: what it needs is not known yet
        loads = self._loads(members, rates_hz)
        if any(len(set(one.devices)) < len(one.devices) for one in members):
            return  # two stages of one pipeline on a device: there is nothing to choose between them
        plans = [one.plans.decided for one in members]
        present = device_loads(loads, plans, mixing=self._mixing)
        if present.bound_s <= least_bound_s(loads) * (1 + min_gain):
            self._tell(members, rates_hz, present)
            return
        best = balance_jointly(loads, mixing=self._mixing)
        gain = math.log(present.bound_s / best.bound_s)
        if gain <= math.log1p(min_gain) or gain <= certainty * self._noise(members, loads, plans, best.plans, gain):
            self._tell(members, rates_hz, present)
            return
        self._move(members, rates_hz, present, best)

    def _noise(
        self,
        members: Sequence[Member],
        loads: Sequence[TenantLoad],
        plans: Sequence[Plan],
        best: Sequence[Plan],
        gain: float,
    ) -> float:
        """Standard error of the gain: how it changes if each rate, and each stage's time, is off by its own one."""
        squares = 0.0
        for index, (member, load) in enumerate(zip(members, loads, strict=True)):
            rate_error = member.measures.rate_error(self._now_s)
            others = [load._replace(weight=load.weight * math.exp(rate_error))]
            for stage, error in enumerate(member.measures.stage_errors(self._now_s).tolist()):
                times_s = load.times_s.copy()
                times_s[stage] *= math.exp(error)
                others.append(load._replace(times_s=times_s))
            for other in others:
                off = [*loads[:index], other, *loads[index + 1 :]]
                before, after = (device_loads(off, given, mixing=self._mixing).bound_s for given in (plans, best))
                squares += (math.log(before / after) - gain) ** 2
        return math.sqrt(squares)

    def _move(
        self, members: Sequence[Member], rates_hz: Sequence[float], present: JointPlans, best: JointPlans
    ) -> None:
        now_s = self._now_s
        moved_s = {at_s for one in members for at_s in one.moved_s if at_s > now_s - _REMEMBERED_S} | {now_s}
        for one in members:
            one.moved_s = sorted(moved_s)
            one.next_look_s = now_s + min(_LOOK_S * 2 ** len(moved_s), _LONGEST_PAUSE_S)
        self._tell(members, rates_hz, best)
        fullest = max(present.loads_s, key=lambda device: present.loads_s[device])
        gain = present.bound_s / best.bound_s - 1
        for member, plan in zip(members, best.plans, strict=True):
            others = ", ".join(
                f"{one.measures.tenant.name} {its}"
                for one, its in zip(members, best.plans, strict=True)
                if one is not member
            )
            company = f"together with {others}" if others else "alone"
            why = f"planned {company}: {str(fullest).rpartition('/')[2]} is fullest, {gain:+.0%} predicted"
            member.wanted = Wanted(plan, why) if plan != member.plans.decided else None

    def _tell(self, members: Sequence[Member], rates_hz: Sequence[float], planned: JointPlans) -> None:
        """Note who was planned together, if that is another company, or has other plans."""
        told = tuple(
            TenantPlan(one.measures.tenant.name, one.devices, plan, rate_hz, one.measures.tenant.share)
            for one, plan, rate_hz in zip(members, planned.plans, rates_hz, strict=True)
        )
        for member in members:
            if [(one.name, one.plan) for one in member.together] != [(one.name, one.plan) for one in told]:
                member.together = told

    # -- how fast devices are ---------------------------------------------------------------------------------------

    def _loads(self, members: Sequence[Member], rates_hz: Sequence[float]) -> list[TenantLoad]:
        """What each needs of its devices, as they are but for the other tenants."""
        now_s = self._now_s
        means = [one.measures.means(now_s) for one in members]
        measured = [one.measures.rate_hz(now_s) for one in members]
        slowdowns = [self._slowdown(index, members, means, measured) for index in range(len(members))]
        by_device: dict[str, list[float]] = {}
        for member, slowdown in zip(members, slowdowns, strict=True):
            for device, factor in zip(member.devices, slowdown.tolist(), strict=True):
                if math.isfinite(factor):
                    by_device.setdefault(device, []).append(factor)
        self._known.update({device: (float(np.mean(factors)), now_s) for device, factors in by_device.items()})
        loads = []
        for member, slowdown, rate_hz in zip(members, slowdowns, rates_hz, strict=True):
            factors = np.where(np.isfinite(slowdown), slowdown, [self._remembered(device) for device in member.devices])
            setting = member.measures.setting
            loads.append(
                TenantLoad(
                    member.devices,
                    setting.baseline_s * factors[:, None],
                    rate_hz,
                    member.measures.tenant.share,
                    setting.send_s,
                    setting.receive_s,
                    member.plans.decided,
                )
            )
        return loads

    def _slowdown(
        self, index: int, members: Sequence[Member], means: Sequence[StageMeans], rates_hz: Sequence[float]
    ) -> FloatArray:
        member = members[index]
        others = np.zeros(len(member.devices))
        for number, (one, its, rate_hz) in enumerate(zip(members, means, rates_hz, strict=True)):
            if number == index:
                continue
            for device, busy_s in zip(one.devices, its.busy_s.tolist(), strict=True):
                if device in member.devices:
                    others[member.devices.index(device)] += busy_s * rate_hz
        return member.measures.slowdown(means[index], np.minimum(others, 1.0))

    def _remembered(self, device: str) -> float:
        """What is thought of a device that is not measured: its slowdown may be over."""
        slowdown, at_s = self._known.get(device, (1.0, self._now_s))
        return 1.0 + (slowdown - 1.0) * float(0.5 ** ((self._now_s - at_s) / _FORGET_S))
