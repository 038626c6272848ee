"""The exact best plan: contiguous ranges of layers, the slowest stage as fast as possible.

Three steps, each cheap because the one before it did most of the work:

1. *Frontier search*, a lower bound. For a bottleneck T, stage by stage, how far could the cut lie if every
   cut before the frontier were reachable? That is one binary search per stage. Bisection over T finds the
   least T that gets to the end. Without transfer costs this already is the optimum; with them it nearly
   always is.
2. *Reachability sweep*, exact. Which cuts can end stage s when no stage exceeds T? Cut b can if
   ``ready[s, b] - T <= max(start[s, a] for reachable a <= b)``: a running maximum. Each T tried either gives
   a plan, whose own bottleneck becomes the new upper bound, or raises the lower bound to the next cost above
   T. Both bounds are always costs of some range of layers, so they meet after finitely many steps. Usually
   the first sweep is the last.
3. *Settling*, for ties. Many plans share the least bottleneck, and most of them starve some stage.

Feasibility for a given bottleneck as the inner step ("probe"): Pinar, Aykanat: Fast optimal load balancing
algorithms for 1D partitioning, JPDC 64(8), 2004; the sweep extends it to costs at the cuts and stages of
different speeds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.partitioner.balance.costs import FloatArray, StageCosts, fluid_bound_hz, stage_times
from odin.partitioner.plan import Plan

__all__ = ["Balance", "balance", "fluid_bound_hz", "stage_times"]

_GALLOP = 1.25  # the lower bounds are seldom far off
_SETTLING_ROUNDS = 8


class Balance(NamedTuple):
    """A plan and its cost.

    Attributes
    ----------
    plan
        Layers per stage.
    bottleneck_s
        Seconds per request of the slowest stage; no plan has less.
    stage_s
        Seconds per request of each stage, as :func:`stage_times` has them.
    """

    plan: Plan
    bottleneck_s: float
    stage_s: tuple[float, ...]


def balance(
    times_s: ArrayLike,
    *,
    stage_count: int | None = None,
    send_s: ArrayLike | None = None,
    receive_s: ArrayLike | None = None,
    relay_s: ArrayLike | None = None,
    min_layers: int = 0,
) -> Balance:
    """Split a chain into contiguous stages so that the slowest stage is as fast as possible.

    Parameters
    ----------
    times_s
        Seconds of each layer on each stage, shape (stages, layers); or (layers,) with ``stage_count`` for
        equal stages. ``inf`` where a stage cannot run a layer; a dead stage is a row of ``inf`` and gets no
        layers.
    stage_count
        Number of stages, if ``times_s`` has one row for all.
    send_s, receive_s
        Seconds a stage spends to send, to receive, what crosses each cut: shape (layers + 1,) or (stages,
        layers + 1). Cut ``i`` lies before layer ``i``: cut 0 is the model's input, the last cut its output.
        None is free.
    relay_s
        Seconds that a stage *without layers* spends on the values at its cut, same shapes, or one number.
        None means ``receive_s + send_s``: the stage still stands in the pipeline and passes everything on,
        the input if it is at the front and the output if it is at the end. Give 0.0 if the pipeline goes
        round empty stages.
    min_layers
        0 allows empty stages, 1 gives every stage at least one layer.

    Returns
    -------
    Balance
        The plan and its costs. ``bottleneck_s`` is the true minimum over all plans as :func:`stage_times`
        evaluates them (arithmetic is exact after rounding to 2**-50 of a stage's total, see
        :mod:`odin.partitioner.balance.costs`).

        Among plans with that bottleneck the choice is deterministic and evens out the rest: from the last stage to
        the first, the cut that best shares what is left; then rounds in which each cut in turn goes to the best place
        between its neighbours (lower maximum of the two stages beside it, then lower sum), until two rounds improve
        nothing, at most 8. So no stage idles beside one that it could relieve. Further than that the other stages
        are not optimised.

    Raises
    ------
    ValueError
        If a shape does not fit, a time is negative or nan, there are more stages than layers with
        ``min_layers=1``, or no plan avoids what cannot be run (all stages dead).

    Examples
    --------
    >>> balance([4.0, 2.0, 2.0, 4.0], stage_count=2)
    Balance(plan=Plan((2, 2)), bottleneck_s=6.0, stage_s=(6.0, 6.0))
    >>> balance([[4.0, 2.0, 2.0, 4.0], [8.0, 4.0, 4.0, 8.0]]).plan  # stage 1 is slowed down twofold
    Plan((3, 1))
    """
    costs = StageCosts(times_s, send_s=send_s, receive_s=receive_s, relay_s=relay_s, stage_count=stage_count)
    if min_layers not in (0, 1):
        raise ValueError(f"min_layers is {min_layers}; it is 0 (stages may be empty) or 1")
    if min_layers == 1 and costs.stage_count > costs.layer_count:
        raise ValueError(
            f"{costs.stage_count} stages cannot each have one of {costs.layer_count} layers; "
            "take fewer stages or allow empty ones with min_layers=0"
        )
    lower_s = _Frontier(costs, min_layers).search()
    cuts = _Sweep(costs, min_layers).search(lower_s) if lower_s < math.inf else None
    if cuts is None:
        raise ValueError(
            "no plan avoids infinite times: some layer can run on no stage that could have it; "
            "give at least one live stage, or min_layers=0 if a stage is dead"
        )
    _settle(costs, cuts, min_layers)
    stage_s = costs.of_cuts(cuts)
    return Balance(Plan(b - a for a, b in pairwise(cuts)), max(stage_s), stage_s)


def _next_trial_s(low_s: float, high_s: float, trial_s: float) -> float:
    """Bottleneck to try next, in [low_s, high_s): bisect, or gallop up from the last one while there is no plan yet."""
    if high_s == math.inf:
        return max(low_s, _GALLOP * trial_s)
    middle_s = low_s + (high_s - low_s) / 2
    return middle_s if middle_s < high_s else low_s


class _Frontier:
    """Lower bound: every cut up to the furthest one reached counts as reachable."""

    def __init__(self, costs: StageCosts, min_layers: int) -> None:
        self._costs = costs
        self._min_layers = min_layers
        # Cheapest end at or after b, and dearest start at or before a: both monotone, so a binary search
        # finds the furthest end. Lists, because bisect on them is ten times faster than numpy on one number.
        self._ready = np.minimum.accumulate(costs.ready[:, ::-1], axis=1)[:, ::-1].tolist()
        self._start = np.maximum.accumulate(costs.start, axis=1).tolist()
        self._unit_s = costs.unit_s.tolist()
        self._jump = costs.jump.tolist()

    def search(self) -> float:
        """Least bottleneck in seconds at which the frontier gets to the last cut; inf if none does."""
        low_s, high_s = self._costs.lower_bound_s(), math.inf
        trial_s = _GALLOP * low_s
        while low_s < high_s:
            reached, bound_s = self._advance(trial_s)
            if reached:
                high_s = bound_s
            else:
                low_s = bound_s
            trial_s = _next_trial_s(low_s, high_s, trial_s)
        return high_s

    def _advance(self, bottleneck_s: float) -> tuple[bool, float]:
        """Whether the end is reached, and the largest cost used; else the next cost that matters."""
        layer_count = self._costs.layer_count
        # A relay of its own price may cost less than the formula: then an empty stage is no obstacle here.
        stays = self._min_layers == 0 and self._costs.relay is not None
        room = layer_count - self._costs.stage_count if self._min_layers else layer_count
        used_s, next_s = 0.0, math.inf
        frontier = 0
        limits = self._costs.limits(bottleneck_s).tolist()
        rows = zip(self._ready, self._start, limits, self._unit_s, self._jump, strict=True)
        for ready, start, limit, unit_s, jump in rows:
            room += self._min_layers  # cuts beyond it leave too few layers for the stages after this one
            origin = start[frontier]
            furthest = bisect_right(ready, limit + origin) - 1
            if furthest >= room:
                furthest = room
            else:
                missing = ready[furthest + 1] - origin
                if missing < jump:
                    next_s = min(next_s, missing * unit_s)
            if stays and furthest <= frontier:
                continue
            if furthest < 0:
                return False, next_s
            used_s = max(used_s, (ready[furthest] - origin) * unit_s)
            frontier = furthest
        return (True, used_s) if frontier == layer_count else (False, next_s)


class _Sweep:
    """Exact: the set of reachable cuts, stage by stage."""

    def __init__(self, costs: StageCosts, min_layers: int) -> None:
        self._costs = costs
        self._min_layers = min_layers
        stages, cuts = costs.stage_count, costs.layer_count + 1
        # Least cost in units at which stage s can end at cut b.
        self._need: FloatArray = np.empty((stages, cuts))
        self._reached: NDArray[np.bool_] = np.empty((stages + 1, cuts), dtype=bool)
        self._fluid_s: FloatArray | None = None

    def search(self, low_s: float) -> list[int] | None:
        """Cuts of a plan with the least bottleneck (>= ``low_s``); None if every plan is infinite."""
        best: list[int] | None = None
        high_s, trial_s = math.inf, low_s
        while low_s < high_s:
            if self._reaches_end(trial_s):
                best = self._walk_back(trial_s)
                high_s = max(self._costs.of_cuts(best))
            else:
                low_s = self._next_need_s(trial_s)
            trial_s = _next_trial_s(low_s, high_s, trial_s)
        return best

    def _reaches_end(self, bottleneck_s: float) -> bool:
        costs, need, reached = self._costs, self._need, self._reached
        reached[0] = False
        reached[0, 0] = True
        best: FloatArray
        for stage, limit in enumerate(costs.limits(bottleneck_s).tolist()):
            start = np.where(reached[stage], costs.start[stage], -np.inf)
            best = np.maximum.accumulate(start)
            row = need[stage]
            if self._min_layers == 0 and costs.relay is None:
                np.subtract(costs.ready[stage], best, out=row)
            else:
                np.subtract(costs.ready[stage, 1:], best[:-1], out=row[1:])
                row[0] = np.inf
                if self._min_layers == 0 and costs.relay is not None:
                    np.minimum(row, np.where(reached[stage], costs.relay[stage], np.inf), out=row)
            np.less_equal(row, limit, out=reached[stage + 1])
        return bool(reached[-1, -1])

    def _next_need_s(self, bottleneck_s: float) -> float:
        """Least cost above the bottleneck just tried that would make one more cut reachable."""
        costs = self._costs
        need = self._need
        open_ = (need > costs.limits(bottleneck_s)[:, None]) & (need < costs.jump[:, None])
        return float(np.min(need * costs.unit_s[:, None], where=open_, initial=np.inf))

    def _walk_back(self, bottleneck_s: float) -> list[int]:
        """Cuts of a plan within the bottleneck: from the last on, each stage takes what best shares the rest."""
        costs = self._costs
        fluid_s = self._fluid() if self._fluid_s is None else self._fluid_s
        limits = costs.limits(bottleneck_s)
        last = costs.layer_count
        cuts = [last]
        for stage in range(costs.stage_count - 1, -1, -1):
            units = costs.starting(stage, 0, last)
            allowed = (units <= limits[stage]) & self._reached[stage, : last + 1]
            if self._min_layers:
                allowed[last] = False
            shared_s = np.maximum(units * costs.unit_s[stage], fluid_s[stage, : last + 1])
            last = int(np.argmin(np.where(allowed, shared_s, np.inf)))
            assert allowed[last]
            cuts.append(last)
        return cuts[::-1]

    def _fluid(self) -> FloatArray:
        """Seconds of layers [0, a) if the stages before s share them as a fluid, (stages, layers + 1)."""
        costs = self._costs
        whole_s = np.where(costs.prefix >= costs.jump[:, None], np.inf, costs.prefix * costs.unit_s[:, None])
        fluid_s = np.zeros_like(whole_s)  # row 0 stays 0: only cut 0 can be chosen there
        # Clipped, so that the largest float stands for "nobody could": argmin must still see allowed cuts as
        # finite.
        with np.errstate(divide="ignore", over="ignore"):
            np.divide(1.0, np.cumsum(1.0 / whole_s[:-1], axis=0), out=fluid_s[1:])
        self._fluid_s = np.minimum(fluid_s, np.finfo(np.float64).max)
        return self._fluid_s


def _settle(costs: StageCosts, cuts: list[int], min_layers: int) -> None:
    """Move each cut to the best place between its neighbours; no round makes the stages less even.

    Rounds alternate between the leftmost and the rightmost of equally good places. Otherwise a stage would stay idle
    behind a layer that is as slow as the bottleneck: ``0|1|4`` must become ``1|0|4`` before it can become ``1|2|2``.
    """
    ready, start, relay = costs.ready, costs.start, costs.relay
    units_s, jumps = costs.unit_s.tolist(), costs.jump.tolist()
    # Cuts to look at: at first all, then those with a neighbour that moved or with another place as good.
    stale = [True] * (costs.stage_count + 1)
    tied = [False] * (costs.stage_count + 1)
    quiet_rounds = 0
    for number in range(_SETTLING_ROUNDS):
        quiet_rounds += 1
        leftmost = number % 2 == 0
        # Rightmost from left to right, leftmost from right to left: so a gap gets through all slow layers in one round.
        order = range(costs.stage_count - 1, 0, -1) if leftmost else range(1, costs.stage_count)
        for stage in order:
            if not (stale[stage] or tied[stage]):
                continue
            stale[stage] = tied[stage] = False
            first, last = cuts[stage - 1], cuts[stage + 1]
            # Plain lists: between neighbours lie a handful of layers, for which numpy calls cost ten times more.
            ends = ready[stage - 1, first : last + 1].tolist()
            starts = start[stage, first : last + 1].tolist()
            origin, end = float(start[stage - 1, first]), float(ready[stage, last])
            left = [value - origin for value in ends]
            right = [end - value for value in starts]
            if relay is not None:
                left[0], right[-1] = float(relay[stage - 1, first]), float(relay[stage, last])
            left_unit_s, right_unit_s = units_s[stage - 1], units_s[stage]
            left_jump, right_jump = jumps[stage - 1], jumps[stage]
            old, best_offset = cuts[stage] - first, -1
            best_larger_s = best_sum_s = old_larger_s = old_sum_s = math.inf
            for offset in range(min_layers, last - first + 1 - min_layers):
                a, b = left[offset], right[offset]
                if a >= left_jump or b >= right_jump:
                    continue
                a, b = a * left_unit_s, b * right_unit_s
                larger_s, sum_s = a if a > b else b, a + b
                if offset == old:
                    old_larger_s, old_sum_s = larger_s, sum_s
                if larger_s < best_larger_s or (larger_s == best_larger_s and sum_s < best_sum_s):
                    best_larger_s, best_sum_s, best_offset = larger_s, sum_s, offset
                    tied[stage] = False
                elif larger_s == best_larger_s and sum_s == best_sum_s:
                    tied[stage] = True
                    if not leftmost:
                        best_offset = offset
            if best_offset != old:
                if best_larger_s < old_larger_s or best_sum_s < old_sum_s:
                    quiet_rounds = 0
                cuts[stage] = first + best_offset
                stale[stage - 1] = stale[stage + 1] = True
        if quiet_rounds == 2:  # one in either direction
            return
