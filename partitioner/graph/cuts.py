"""Where to cut: between expensive steps, at the place where the fewest bytes cross."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Crossing", "choose_cuts"]


class Crossing(NamedTuple):
    """The values that would cross a cut after a step.

    Attributes
    ----------
    legal
        The layers after the cut can be run from copies of the values that cross.
    tensors
        How many of the values are tensors.
    nbytes
        Bytes of all the values.
    """

    legal: bool
    tensors: int
    nbytes: int


def choose_cuts(
    costs: Sequence[float],
    heavy: Sequence[bool],
    crossings: Sequence[Crossing],
    *,
    coarse_share: float = 0.10,
    minimum_share: float = 0.005,
) -> tuple[int, ...]:
    """Choose the steps after which a model is cut.

    Between two consecutive heavy steps there is at most one cut, where the fewest bytes cross (of equal places the
    latest, so that trivial steps stay with the heavy one before them):

    1. cuts that one tensor crosses;
    2. a layer with more than ``coarse_share`` of the cost is cut further where several tensors cross that have at most
       twice the bytes of the largest cut of 1; if it is still too coarse four times, eight times, any. Pieces smaller
       than a quarter of ``coarse_share`` are joined again: below that, balance gains less than the extra bytes cost;
    3. a layer with less than ``minimum_share`` of the cost joins a neighbour; the cut with more bytes goes.

    Parameters
    ----------
    costs
        Estimated cost of each step, any unit.
    heavy
        Whether the step is worth a layer of its own.
    crossings
        For each step, what would cross a cut after it (the last step's entry is not used).
    coarse_share, minimum_share
        Shares of the total cost, in ``[0, 1]``.

    Returns
    -------
    tuple of int
        Ascending steps ``p``: a layer ends after step ``p``. The end of the last layer is not in it.

    Examples
    --------
    >>> one = Crossing(True, 1, 8)
    >>> choose_cuts([5, 0, 5, 0], [True, False, True, False], [one, one, one, one])
    (1,)
    """
    total = sum(costs)
    legal = [crossing.legal for crossing in crossings]
    single = _cheapest_between(heavy, [c.legal and c.tensors <= 1 for c in crossings], crossings)
    unit_nbytes = max((crossings[p].nbytes for p in single or range(len(crossings)) if legal[p]), default=0)
    chosen = set(single)
    for factor in (2, 4, 8, math.inf):
        for first, last in _ranges(sorted(chosen), len(costs)):
            if sum(costs[first:last]) <= coarse_share * total:
                continue
            allowed = [legal[p] and crossings[p].nbytes <= factor * unit_nbytes for p in range(first, last)]
            inside = _cheapest_between(heavy[first:last], allowed, crossings[first:last])
            pieces = _join_small(inside, costs[first:last], crossings[first:last], total * coarse_share / 4)
            chosen.update(first + p for p in pieces)
    return tuple(_join_small(sorted(chosen), costs, crossings, total * minimum_share))


def _cheapest_between(heavy: Sequence[bool], allowed: Sequence[bool], crossings: Sequence[Crossing]) -> list[int]:
    """Return for each pair of consecutive heavy steps the allowed cut with the fewest bytes, the latest of equals."""
    places = [index for index, is_heavy in enumerate(heavy) if is_heavy]
    cuts = []
    for here, there in itertools.pairwise(places):
        options = [p for p in range(here, there) if allowed[p]]
        if options:
            cuts.append(min(options, key=lambda p: (crossings[p].nbytes, -p)))
    return cuts


def _join_small(
    cuts: Sequence[int], costs: Sequence[float], crossings: Sequence[Crossing], minimum: float
) -> list[int]:
    """Join the cheapest layer to a neighbour, over the cut with more bytes, until none costs less than ``minimum``."""
    kept = list(cuts)
    sizes = [sum(costs[first:last]) for first, last in _ranges(kept, len(costs))]
    while kept:
        smallest = min(range(len(sizes)), key=lambda layer: (sizes[layer], layer))
        if sizes[smallest] >= minimum:
            break
        sides = [side for side in (smallest - 1, smallest) if 0 <= side < len(kept)]
        joined = {side: sizes[side] + sizes[side + 1] for side in sides}
        # a neighbour that is small itself first: else one large layer swallows a row of small ones
        gone = max(sides, key=lambda side: (joined[side] < 2 * minimum, crossings[kept[side]].nbytes, -joined[side]))
        del kept[gone]
        sizes[gone : gone + 2] = [sizes[gone] + sizes[gone + 1]]
    return kept


def _ranges(cuts: Sequence[int], step_count: int) -> list[tuple[int, int]]:
    starts = [0, *(p + 1 for p in cuts)]
    return list(zip(starts, [*starts[1:], step_count], strict=True))
