"""What came of a run in which devices are lost or requests have deadlines.

- *goodput*: requests answered in time, per second from the first arrival to the last.
- *capacity*: throughput of the same policy under the same interference and losses with as many clients as it takes, no
  deadlines, and as many requests as were answered here.
- *recovery* from a loss, in the same run without noise, which would hide it: throughput is taken over windows of as
  many answers as devices live, two or more times that, at least 8. Of those that begin before three median latencies
  after the gateway knew, the slowest is looked for. If it is below 0.9 of what the devices that live allow, recovery is
  the time from the loss to the beginning of the first one after it that is at 0.95; else 0. What they allow is the
  throughput of a run, without its first and last fifth, in which as many devices are lost from the beginning. nan under
  interference, under which it is not one number, and where another device is lost, or one is back, too early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.deadlines import DROPPED, FAILED, REFUSED
from odin_lab.simulator.losses import Loss, Losses
from odin_lab.simulator.run import Run

__all__ = ["Again", "Service", "recoveries_s", "serve", "steady_hz"]

FloatArray = NDArray[np.float64]

_DIP, _RECOVERED = 0.9, 0.95
_HORIZON = 3.0
_LEAST_WINDOW = 8
_LEAST_REQUESTS = 200


@dataclass(frozen=True)
class Service:
    """Figures of a run; see the module. Shares are nan where there is nothing to share.

    Attributes
    ----------
    in_time
        Share of the requests that were not refused which were answered in time.
    refused
        Share of all requests.
    given_up
        Requests that were taken on and not answered.
    sent_again
        How many times requests were sent again.
    recovery_s
        From each loss.
    """

    goodput_hz: float
    capacity_hz: float
    in_time: float
    refused: float
    given_up: int
    sent_again: int
    recovery_s: tuple[float, ...]


class Again(Protocol):
    """Runs so many requests with other arrivals, and then without deadlines, other losses, or no noise."""

    def __call__(self, requests: int, losses: Losses | None, *, arrivals: str = "", quiet: bool = False) -> Run:
        """Other things being equal; without ``arrivals`` they are the same."""


def serve(run: Run, again: Again, *, devices: int) -> Service:
    """Sum up a run."""
    if run.outcome is None or run.deadline_s is None or run.attempts is None:
        raise ValueError("this run had neither losses nor deadlines; give it some")
    goodput_hz = capacity_hz = in_time = math.nan
    losses = Losses(tuple(seen.loss for seen in run.losses)) if run.losses else None
    recovery_s = (math.nan,) * len(run.losses)
    if losses is not None and not run.interference.events:
        quiet = again(len(run.finished_s), losses, quiet=True)
        recovery_s = recoveries_s(quiet, again, devices=devices)
    if np.isfinite(run.deadline_s).any():
        kept = run.outcome != REFUSED
        good = run.finished_s <= run.deadline_s
        first_s, last_s = float(run.arrived_s[0]), float(run.arrived_s[-1])
        if last_s > first_s:
            goodput_hz = float((good & (run.finished_s <= last_s)).sum()) / (last_s - first_s)
        in_time = float(good[kept].mean()) if kept.any() else math.nan
        answered = int(run.answered.sum())
        capacity_hz = again(max(answered, _LEAST_REQUESTS, 10 * devices), losses, arrivals="closed").throughput_hz
    return Service(
        goodput_hz,
        capacity_hz,
        in_time,
        float((run.outcome == REFUSED).mean()),
        int(np.isin(run.outcome, (DROPPED, FAILED)).sum()),
        int(run.attempts.sum()),
        recovery_s,
    )


def recoveries_s(run: Run, again: Again, *, devices: int) -> tuple[float, ...]:
    """Seconds from each loss to recovery, in a run without noise and interference."""
    if not run.answered.any():
        return (math.nan,) * len(run.losses)
    answered_s = np.sort(run.finished_s[run.answered])
    horizon_s = _HORIZON * float(np.median(run.latency_s[run.answered]))
    changes_s = np.sort([at_s for seen in run.losses for at_s in (seen.loss.at_s, seen.back_s)])
    allowed_hz: dict[int, float] = {}  # by how many are lost: which ones makes little difference
    found = []
    for seen in run.losses:
        at_s = seen.loss.at_s
        lost = {other.loss.device for other in run.losses if other.loss.at_s <= at_s < other.back_s}
        if len(lost) not in allowed_hz:
            hz = 0.0
            if len(lost) < devices:
                gone = Losses(tuple(Loss(device, 0.0) for device in sorted(lost)))
                hz = steady_hz(again(max(_LEAST_REQUESTS, 10 * devices), gone, quiet=True))
            allowed_hz[len(lost)] = hz
        live = max(1, devices - len(lost))
        window = live * max(2, math.ceil(_LEAST_WINDOW / live))
        later = changes_s[changes_s > at_s]
        until_s = float(later[0]) if len(later) else math.inf
        dip_s = min(until_s, (seen.noticed_s if seen.noticed_s < math.inf else at_s) + horizon_s)
        found.append(_recovered_s(answered_s, at_s, dip_s, until_s, window, allowed_hz[len(lost)]))
    return tuple(found)


def _recovered_s(
    answered_s: FloatArray, at_s: float, dip_s: float, until_s: float, window: int, allowed_hz: float
) -> float:
    first = max(0, int(np.searchsorted(answered_s, at_s, side="right")) - 1)
    begin_s, end_s = answered_s[first:-window], answered_s[first + window :]
    begin_s, end_s = begin_s[end_s <= until_s], end_s[end_s <= until_s]
    early = int(np.searchsorted(begin_s, dip_s, side="right"))
    if allowed_hz == 0.0 or early == 0:
        return math.nan
    share = window / (np.maximum(end_s - begin_s, 1e-12) * allowed_hz)
    slowest = int(np.argmin(share[:early]))
    if share[slowest] >= _DIP:
        return 0.0
    back = np.flatnonzero(share[slowest:] >= _RECOVERED)
    return float(begin_s[slowest + back[0]]) - at_s if len(back) else math.nan


def steady_hz(run: Run) -> float:
    """Throughput without the first and the last fifth of the answers; 0 if there are too few."""
    answered_s = np.sort(run.finished_s[run.answered])
    first, last = len(answered_s) // 5, len(answered_s) - 1 - len(answered_s) // 5
    if last <= first:
        return 0.0
    taken_s = float(answered_s[last] - answered_s[first])
    return (last - first) / taken_s if taken_s > 0 else math.inf
