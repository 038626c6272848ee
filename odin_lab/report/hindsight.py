"""What moves came to, in hindsight: requests that ran under a new plan, beside what they would have taken without it.

Each request tells by how much every stage was slower than its baselines. The plan before is taken to have been slowed
down as much, and to have paid for its transfers what they cost undisturbed. With ``rho`` = measured / baseline seconds
of stage i, and ``hand`` = seconds to receive at its first cut and to send at its last (as the policies reckon)::

    gain of a move = mean of max_i (rho_i * baseline_i(before) + hand_i(before))
                   / mean of max_i (rho_i * baseline_i(after)  + hand_i(after))   -  1

over the requests that ran under it. Measured ``transfer_s`` is no use here: it holds the wait for a slower stage too.
A move whose gain is below 0 was in vain: it came too late, or was an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.monitor.events import PlanChanged
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline
from odin.partitioner.balance.costs import stage_times
from odin.partitioner.plan import Plan

__all__ = ["gains_in_hindsight"]

FloatArray = NDArray[np.float64]


def gains_in_hindsight(
    baseline_s: ArrayLike,
    moves: Sequence[PlanChanged],
    timelines: Iterable[RequestTimeline],
    *,
    send_s: ArrayLike | None = None,
    receive_s: ArrayLike | None = None,
    times: SampleTimes | None = None,
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
    send_s, receive_s
        Seconds to send, to receive, what crosses each cut, shape (layers + 1,), as in
        :class:`odin.partitioner.policies.Setting`; default: transfers cost nothing.
    times
        What to expect of micro-batches of fewer samples than ``baseline_s`` is for; default: all are full.

    Returns
    -------
    list of float
        One for each move; ``nan`` if no request ran under it.
    """
    layers = np.asarray(baseline_s, dtype=np.float64)
    ran: dict[int, list[np.ndarray]] = {move.epoch: [] for move in moves}
    for timeline in timelines if times is None else map(times.as_full, timelines):
        told = [timing.wall_s for timing in timeline.stages if timing.last > timing.first]
        if timeline.epoch in ran and len(told) == len(layers):
            ran[timeline.epoch].append(np.array(told))
    gains = []
    for move in moves:
        if not ran[move.epoch]:
            gains.append(math.nan)
            continue
        before, after = Plan(move.before), Plan(move.after)
        rho = np.array(ran[move.epoch]) / stage_times(after, layers)
        without_s, with_s = (
            np.max(rho * stage_times(plan, layers) + _hand_over_s(plan, layers, send_s, receive_s), axis=1).mean()
            for plan in (before, after)
        )
        gains.append(float(without_s / with_s) - 1)
    return gains


def _hand_over_s(
    plan: Plan, baseline_s: FloatArray, send_s: ArrayLike | None, receive_s: ArrayLike | None
) -> FloatArray:
    """Seconds that each stage spends receiving and sending."""
    return np.array(stage_times(plan, baseline_s, send_s, receive_s)) - stage_times(plan, baseline_s)
