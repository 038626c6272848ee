"""Plans of several pipelines on the same devices, made together: the least load on the most loaded device.

The load of a device is what all tenants compute there in a round, seconds. In a round each tenant ``k`` has ``w[k]``
requests, such as its requests per second. With ``t[k]`` the seconds of its layers (and of handing over) on the device,
and ``c[k]`` the largest share of any device that it may have::

    load = m * sum over k of w[k] t[k]          bound = max over devices of max(load, m w[k] t[k] / c[k])

where m is 1, and 1 + ``mixing`` where several tenants have layers: they take turns, and each finds the caches as the
others left them. Under the plans with the least bound all rates can grow most in proportion; among these the least sum
of loads decides. That tenants are kept apart, each on devices of its own, is one of the plans.

Two tenants are planned exactly, by dynamic programming over the devices: F[i, j] is the least bound so far if i layers
of the one and j of the other are done ::

    F'[i', j'] = min over i <= i', j <= j' of max(F[i, j], bound of layers [i, i') and [j, j') on this device)

Three and more are planned by pairs, each exactly with the others where they are, until no pair improves anything: that
may end short of the best plans. So may two whose stages come in orders that are neither the same nor the reverse: they
are planned one after the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.partitioner.plan import Plan

__all__ = ["JointPlans", "TenantLoad", "balance_jointly", "device_loads", "least_bound_s"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_Device = int | str

_SAME = 1e-9
"""Relative difference of two bounds that counts as none."""
_MOST_SWEEPS = 8
_MOVED = 1e-6
"""Part of the bound that a moved layer adds to the sum: so little that it decides between equals only."""


class TenantLoad(NamedTuple):
    """One pipeline, as far as planning goes.

    Attributes
    ----------
    devices
        Device of each stage, any numbers or names; no device twice.
    times_s
        Seconds of each layer on each stage as it is now, disturbed by all but the other tenants, shape (stages,
        layers); ``inf`` where it cannot run.
    weight
        Requests in a round, at least 0.
    cap
        Largest share of any device, above 0, at most 1.
    send_s, receive_s
        Seconds that a stage spends to send, to receive, what crosses each cut, shape (layers + 1,). None is free. A
        stage without layers is passed by, and costs nothing.
    plan
        Its present one: of plans that are as good those are chosen that move fewer layers.
    """

    devices: tuple[_Device, ...]
    times_s: FloatArray
    weight: float
    cap: float = 1.0
    send_s: FloatArray | None = None
    receive_s: FloatArray | None = None
    plan: Plan | None = None


class JointPlans(NamedTuple):
    """What was found.

    Attributes
    ----------
    plans
        One for each tenant, in their order.
    bound_s
        Seconds of a round; see the module.
    loads_s
        Load by device.
    """

    plans: tuple[Plan, ...]
    bound_s: float
    loads_s: dict[_Device, float]


def balance_jointly(tenants: Sequence[TenantLoad], *, mixing: float = 0.0) -> JointPlans:
    """Find plans for all tenants together.

    Parameters
    ----------
    tenants
        The pipelines.
    mixing
        Part of their time that tenants lose where several have layers on one device.

    Raises
    ------
    ValueError
        If there is no tenant, a shape does not fit, a value is out of its range, or no plan avoids what cannot be run.

    Examples
    --------
    >>> one, two = np.full((2, 4), 1.0), np.full((2, 4), 1.0)
    >>> balance_jointly([TenantLoad((0, 1), one, 1.0), TenantLoad((0, 1), two, 1.0)], mixing=0.1).plans
    (Plan((0, 4)), Plan((4, 0)))
    """
    problem = _Problem(tenants, mixing)
    if len(tenants) == 2 and _order(tenants[0].devices, tenants[1].devices) is not None:
        cuts = problem.best_of_pair([None, None], 0, 1)
        if None not in cuts:
            return problem.result(cuts)
    by_work = sorted(range(len(tenants)), key=lambda index: float(problem.costs[index][:, 0, -1].min()))
    # Those with the most work first: what they leave is filled by the smaller ones. Or the other way round.
    starts = [by_work[::-1], by_work] if len(tenants) > 2 else [by_work]
    cuts, score = _by_pairs(problem, starts[0])
    for start in starts[1:]:
        other, other_score = _by_pairs(problem, start)
        if _is_less(other_score, score):
            cuts, score = other, other_score
    return problem.result(cuts)


def least_bound_s(tenants: Sequence[TenantLoad]) -> float:
    """No plans have a smaller bound than this, which is quickly found: all layers where they are fastest, evenly."""
    devices = {device for tenant in tenants for device in tenant.devices}
    work_s = sum(tenant.weight * float(np.min(tenant.times_s, axis=0).sum()) for tenant in tenants)
    return work_s / len(devices)


def _by_pairs(problem: _Problem, order: Sequence[int]) -> tuple[list[_Cuts], tuple[float, float]]:
    """Cuts and their score: each tenant is added in this order, then pairs are improved."""
    cuts: list[_Cuts] = [None] * len(order)
    for index in order:
        cuts[index] = problem.best_of_one(cuts, index)
    score = problem.score(cuts)
    for _ in range(_MOST_SWEEPS):
        before = score
        for one, other in itertools.combinations(range(len(order)), 2):
            tried = problem.best_of_pair(cuts, one, other)
            tried_score = problem.score(tried)
            if _is_less(tried_score, score):
                cuts, score = tried, tried_score
        if not _is_less(score, before):
            break
    return cuts, score


def device_loads(tenants: Sequence[TenantLoad], plans: Sequence[Plan], *, mixing: float = 0.0) -> JointPlans:
    """The loads and the bound under given plans."""
    problem = _Problem(tenants, mixing)
    for tenant, plan in zip(tenants, plans, strict=True):
        plan.check_fits(layer_count=tenant.times_s.shape[1], stage_count=len(tenant.devices))
    return problem.result([[0, *itertools.accumulate(plan)] for plan in plans])


def _costs(tenant: TenantLoad) -> FloatArray:
    """Load of a round for layers [a, b) on a stage, shape (stages, layers + 1, layers + 1); inf for b < a."""
    times_s = np.asarray(tenant.times_s, dtype=np.float64)
    stages = len(tenant.devices)
    if times_s.ndim != 2 or times_s.shape[0] != stages or times_s.shape[1] < 1:
        raise ValueError(f"times_s of shape {times_s.shape}: {stages} stages need (stages, layers) seconds")
    if not (times_s >= 0).all():
        raise ValueError("times_s has a negative or nan entry; give seconds >= 0, inf where a layer cannot run")
    if len(set(tenant.devices)) != stages:
        raise ValueError(f"devices {tenant.devices}: give each stage a device of its own")
    if not 0 <= tenant.weight < math.inf:
        raise ValueError(f"weight is {tenant.weight}; give requests per round, 0 or more")
    if not 0 < tenant.cap <= 1:
        raise ValueError(f"cap is {tenant.cap}; it is the largest share of a device, above 0, at most 1")
    cuts = times_s.shape[1] + 1
    send_s, receive_s = _cut_costs("send_s", tenant.send_s, cuts), _cut_costs("receive_s", tenant.receive_s, cuts)
    finite = np.isfinite(times_s)
    prefix_s = np.zeros((stages, cuts))
    np.cumsum(np.where(finite, times_s, 0.0), axis=1, out=prefix_s[:, 1:])
    missing = np.zeros((stages, cuts), dtype=np.int64)
    np.cumsum(~finite, axis=1, out=missing[:, 1:])
    costs: FloatArray = prefix_s[:, None, :] - prefix_s[:, :, None] + receive_s[:, None] + send_s
    costs *= tenant.weight
    costs[missing[:, None, :] > missing[:, :, None]] = np.inf
    before, after = np.tril_indices(cuts, -1)
    costs[:, before, after] = np.inf
    costs[:, range(cuts), range(cuts)] = 0.0
    return costs


def _moved(tenant: TenantLoad) -> FloatArray:
    """Layers of [a, b) that a stage does not have now, shape (stages, layers + 1, layers + 1)."""
    stages, layers = tenant.times_s.shape
    if tenant.plan is None:
        return np.zeros((stages, layers + 1, layers + 1))
    tenant.plan.check_fits(layer_count=layers, stage_count=stages)
    holder = np.repeat(np.arange(stages), tenant.plan)
    others: FloatArray = np.zeros((stages, layers + 1))
    np.cumsum(holder != np.arange(stages)[:, None], axis=1, out=others[:, 1:])
    moved: FloatArray = others[:, None, :] - others[:, :, None]
    return moved


def _cut_costs(name: str, given: ArrayLike | None, cuts: int) -> FloatArray:
    if given is None:
        return np.zeros(cuts)
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (cuts,) or not (values >= 0).all():
        raise ValueError(f"{name} of shape {values.shape}: give {cuts} numbers of seconds >= 0, one for each cut")
    return values


_Cuts = list[int] | None
"""The stages + 1 cuts of a tenant; None before it has any."""


def _is_less(one: tuple[float, float], other: tuple[float, float]) -> bool:
    for mine, its in zip(one, other, strict=True):
        if abs(mine - its) > _SAME * max(mine, its):
            return mine < its
    return False


def _order(one: Sequence[_Device], other: Sequence[_Device]) -> tuple[tuple[_Device, ...], bool] | None:
    """An order of all devices in which both have their stages, and whether the other's is reversed; None: none is."""
    for backward in (False, True):
        turned = other[::-1] if backward else other
        common = [device for device in one if device in turned]
        if common != [device for device in turned if device in one]:
            continue
        merged: list[_Device] = []
        rest = list(turned)
        for device in one:
            if device in common:
                at = rest.index(device)
                merged += rest[:at]
                rest = rest[at + 1 :]
            merged.append(device)
        return (*merged, *rest), backward
    return None


class _Problem:
    """The tenants, with the load of every range of layers of each."""

    def __init__(self, tenants: Sequence[TenantLoad], mixing: float) -> None:
        if not tenants:
            raise ValueError("there is no tenant to plan for; give at least one TenantLoad")
        if not 0 <= mixing < math.inf:
            raise ValueError(f"mixing is {mixing}; it is the part of their time that tenants lose by turns, 0 or more")
        self._tenants, self._mixing = tenants, mixing
        self.costs = [_costs(tenant) for tenant in tenants]
        self._moved = [_moved(tenant) for tenant in tenants]

    def _used(self, cuts: Sequence[_Cuts], but: tuple[int, ...] = ()) -> dict[_Device, tuple[float, int]]:
        """Load without mixing, and tenants with layers, by device; of all but some."""
        used: dict[_Device, tuple[float, int]] = {
            device: (0.0, 0) for tenant in self._tenants for device in tenant.devices
        }
        for index, (tenant, costs, own) in enumerate(zip(self._tenants, self.costs, cuts, strict=True)):
            if own is None or index in but:
                continue
            for stage, (device, (a, b)) in enumerate(zip(tenant.devices, itertools.pairwise(own), strict=True)):
                load_s, count = used[device]
                used[device] = load_s + float(costs[stage, a, b]), count + (a < b)
        return used

    def _times(self, count: int) -> float:
        return 1.0 + self._mixing * (count > 1)

    def loads_s(self, cuts: Sequence[_Cuts]) -> dict[_Device, float]:
        """Load by device."""
        return {device: load_s * self._times(count) for device, (load_s, count) in self._used(cuts).items()}

    def score(self, cuts: Sequence[_Cuts]) -> tuple[float, float]:
        """The bound, and the sum of loads, which moved layers make a little larger."""
        used = self._used(cuts)
        loads_s = self.loads_s(cuts)
        bound_s = max(loads_s.values())
        for tenant, costs, own in zip(self._tenants, self.costs, cuts, strict=True):
            for stage, (a, b) in enumerate(itertools.pairwise(own or ())):
                times = self._times(used[tenant.devices[stage]][1])
                bound_s = max(bound_s, times * float(costs[stage, a, b]) / tenant.cap)
        moved = sum(
            float(own[stage, a, b])
            for own, where in zip(self._moved, cuts, strict=True)
            for stage, (a, b) in enumerate(itertools.pairwise(where or ()))
        )
        return bound_s, sum(loads_s.values()) + _MOVED * bound_s * moved

    def result(self, cuts: Sequence[_Cuts]) -> JointPlans:
        """What was found."""
        plans = tuple(Plan(b - a for a, b in itertools.pairwise(own or ())) for own in cuts)
        return JointPlans(plans, self.score(cuts)[0], self.loads_s(cuts))

    def best_of_one(self, cuts: Sequence[_Cuts], index: int) -> list[int]:
        """The best cuts of one tenant with the others where they are."""
        tenant, used = self._tenants[index], self._used(cuts, but=(index,))
        rows = zip(tenant.devices, self.costs[index], self._moved[index], strict=True)
        steps = [_Step(*used[device], own, _NOBODY, moved, _NOBODY) for device, own, moved in rows]
        found = _best_cuts(steps, (tenant.cap, 1.0), self._mixing)
        if found is None:
            raise ValueError(f"no plan of tenant {index} avoids infinite times: a layer can run on none of its stages")
        return found[0]

    def best_of_pair(self, cuts: Sequence[_Cuts], one: int, other: int) -> list[_Cuts]:
        """All cuts, with the best ones of two tenants while the others are where they are."""
        mine, its = self._tenants[one], self._tenants[other]
        tried = list(cuts)
        if (order := _order(mine.devices, its.devices)) is None:  # one after the other
            for index in (one, other):
                tried[index] = self.best_of_one(tried, index)
            return tried
        devices, backward = order
        its_costs, its_moved, its_devices = self.costs[other], self._moved[other], its.devices
        if backward:  # its chain from the end
            its_costs, its_moved = (rows[::-1, ::-1, ::-1].transpose(0, 2, 1) for rows in (its_costs, its_moved))
            its_devices = its_devices[::-1]
        used = self._used(cuts, but=(one, other))
        steps = [
            _Step(
                *used[device],
                _costs_on(device, mine.devices, self.costs[one]),
                _costs_on(device, its_devices, its_costs),
                _costs_on(device, mine.devices, self._moved[one]),
                _costs_on(device, its_devices, its_moved),
            )
            for device in devices
        ]
        found = _best_cuts(steps, (mine.cap, its.cap), self._mixing)
        if found is None:
            return tried
        tried[one], its_cuts = _own_cuts(found[0], devices, mine.devices), _own_cuts(found[1], devices, its_devices)
        tried[other] = [its_cuts[-1] - cut for cut in reversed(its_cuts)] if backward else its_cuts
        return tried


def _costs_on(device: _Device, devices: Sequence[_Device], costs: FloatArray) -> FloatArray:
    """Costs of a tenant's stage on a device; where it has none, only no layers are possible."""
    if device in devices:
        own: FloatArray = costs[devices.index(device)]
        return own
    none = np.full(costs.shape[1:], np.inf)
    np.fill_diagonal(none, 0.0)
    return none


def _own_cuts(cuts: list[int], devices: Sequence[_Device], own: Sequence[_Device]) -> list[int]:
    """Those of the devices that a tenant has a stage on."""
    return [0, *(cut for device, cut in zip(devices, cuts[1:], strict=True) if device in own)]


class _Step(NamedTuple):
    """A device: what others compute there, how many they are, and costs of ranges of two tenants and how many of their
    layers have to be moved there, (cuts, cuts).
    """

    base_s: float
    base_count: int
    one: FloatArray
    other: FloatArray
    one_moved: FloatArray
    other_moved: FloatArray


_NOBODY: FloatArray = np.zeros((1, 1))
"""Costs of a tenant without layers."""


def _best_cuts(steps: Sequence[_Step], caps: tuple[float, float], mixing: float) -> tuple[list[int], list[int]] | None:
    """Cuts of both with the least bound, and then the least sum; None if every bound is infinite."""
    bound_s, _ = _sweep(steps, caps, mixing, math.inf)
    if not bound_s < math.inf:
        return None
    _, came_from = _sweep(steps, caps, mixing, bound_s * (1 + _SAME))
    mine, its = (len(costs) - 1 for costs in (steps[0].one, steps[0].other))
    width = its + 1
    cuts = ([mine], [its])
    for chosen in reversed(came_from):
        mine, its = divmod(int(chosen[mine, its]), width)
        cuts[0].append(mine)
        cuts[1].append(its)
    return cuts[0][::-1], cuts[1][::-1]


def _sweep(
    steps: Sequence[_Step], caps: tuple[float, float], mixing: float, bound_s: float
) -> tuple[float, list[IntArray]]:
    """Go from device to device.

    Returns
    -------
    float
        The least bound; if ``bound_s`` is given (not infinite), the least sum of loads within it.
    list of arrays
        For each device and pair of cuts at its end, the flat index of the pair at its beginning.
    """
    sums = bound_s < math.inf
    mine_count, its_count = len(steps[0].one), len(steps[0].other)
    best: FloatArray = np.full((mine_count, its_count), np.inf)
    best[0, 0] = 0.0
    came_from: list[IntArray] = []
    for number, (base_s, base_count, one, other, one_moved, other_moved) in enumerate(steps):
        first, last = number == 0, number == len(steps) - 1
        after: FloatArray = np.full((mine_count, its_count), np.inf)
        chosen: IntArray = np.zeros((mine_count, its_count), dtype=np.int64)
        # Nothing is done before the first device, and everything after the last one.
        its_rows, its_columns = slice(0, 1 if first else its_count), slice(its_count - 1 if last else 0, its_count)
        its, its_moved = other[its_rows, its_columns], other_moved[its_rows, its_columns]
        its_layers = (np.arange(its_count)[its_rows, None] < np.arange(its_count)[its_columns]).astype(np.int64)
        for cut in (mine_count - 1,) if last else range(mine_count):
            rows = 1 if first else cut + 1
            mine = one[:rows, cut, None, None]
            tenants = base_count + (np.arange(rows) < cut)[:, None, None] + its_layers
            times = np.where(tenants > 1, 1.0 + mixing, 1.0)
            loads_s = (base_s + mine + its) * times  # (cuts of the one, cuts of the other before, and after)
            bounds_s = np.maximum(loads_s, np.maximum(mine / caps[0], its / caps[1]) * times)
            before = best[:rows, its_rows, None]
            if sums:
                moved = one_moved[:rows, cut, None, None] + its_moved
                ways = before + np.where(bounds_s <= bound_s, loads_s + _MOVED * bound_s * moved, np.inf)
            else:
                ways = np.maximum(before, bounds_s)
            flat = ways.reshape(-1, ways.shape[2])
            way = np.argmin(flat, axis=0)
            after[cut, its_columns] = flat[way, np.arange(len(way))]
            from_mine, from_its = np.divmod(way, ways.shape[1])
            chosen[cut, its_columns] = from_mine * its_count + from_its
        best = after
        came_from.append(chosen)
    return float(best[-1, -1]), came_from
