"""What moves came to, in hindsight: requests that ran under a new plan, beside what they would have taken without it.

Each request tells by how much every stage was slower than its baselines. The plan before is taken to have been slowed
down as much, so with ``rho`` = measured / baseline seconds of stage i::

    gain of a move = mean of max_i rho_i * baseline_i(before)  /  mean of max_i rho_i * baseline_i(after)  -  1

over the requests that ran under it. A move whose gain is below 0 was in vain: it came too late, or was an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from monitor.events import PlanChanged
from monitor.timing import RequestTimeline
from partitioner.costs import stage_times
from partitioner.plan import Plan

__all__ = ["gains_in_hindsight"]


def gains_in_hindsight(
    baseline_s: ArrayLike, moves: Sequence[PlanChanged], timelines: Iterable[RequestTimeline]
) -> list[float]:
    """Gain in throughput of each move while its plan was in force; 0.1 is 10%.

    Requests of which a stage without layers tells nothing are left out.

    Parameters
    ----------
    baseline_s
        Seconds of each layer on each stage's device, undisturbed, shape (stages, layers).
    moves
        As logged.
    timelines
        Finished requests.

    Returns
    -------
    list of float
        One for each move; ``nan`` if no request ran under it.
    """
    layers = np.asarray(baseline_s, dtype=np.float64)
    ran: dict[int, list[np.ndarray]] = {move.epoch: [] for move in moves}
    for timeline in timelines:
        told = [timing.wall_s for timing in timeline.stages if timing.last > timing.first]
        if timeline.epoch in ran and len(told) == len(layers):
            ran[timeline.epoch].append(np.array(told))
    gains = []
    for move in moves:
        if not ran[move.epoch]:
            gains.append(math.nan)
            continue
        stage_s = np.array(ran[move.epoch])
        before_s = stage_s * stage_times(Plan(move.before), layers) / stage_times(Plan(move.after), layers)
        gains.append(float(before_s.max(axis=1).mean() / stage_s.max(axis=1).mean()) - 1)
    return gains
