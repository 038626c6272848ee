"""From a run to the figures of a report: throughput, latency, what is below a service level, what policies cost.

Formulas, for requests finished at f_1 <= f_2 <= ..:

- *latency* of request i: from its coming, which is its submission unless the pipeline is full, to f_i.
- *momentary throughput* of request i: w / (f_i - f_(i-w)), over a window of w = 4 requests; from request w + 1 on. As
  many requests as a trial has; short enough to see interference that lasts for a few requests, and long enough that
  one request's noise is no breach. Open arrivals that come slower than the pipeline could serve count as they come.
- *below_peak* at level q: share of those requests whose momentary throughput is below q * peak, the peak being the
  throughput of the best plan with nothing else running.
- *event*: one onset of interference together with its end, or with what replaces it. Changes at an event's end
  (moving back) count for that event, so the undisturbed plan left and taken again is 2 changes per event.
- *changes*: decisions that moved layers, trials and probes included: each of them was a plan change to the pipeline.
  *Trials*: those of kind ``trial`` or ``probe``, but for the way back to the plan before.
- *exploring*: share of requests that ran under a plan on trial.
- *fluid_bound_hz*: see :mod:`odin_lab.simulator.fluid`; nothing can beat it, as it can the oracles.
- *of_oracle*, *of_delayed*, *of_static*: throughput over that policy's, with the same noise and events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision
from odin_lab.report.results import QUANTILES, SLO_LEVELS, Cell, Timeline
from odin_lab.simulator.deadlines import DROPPED, FAILED
from odin_lab.simulator.interference import Event
from odin_lab.simulator.run import Run
from odin_lab.simulator.service import Service

__all__ = [
    "REFERENCES",
    "WINDOW",
    "below_peak",
    "count_changes",
    "momentary_hz",
    "paired",
    "seen_events",
    "to_cell",
    "to_timeline",
    "with_service",
]

FloatArray = NDArray[np.float64]

WINDOW = 4
"""Requests over which momentary throughput is taken."""

REFERENCES = {"of_oracle": "oracle", "of_delayed": "delayed-oracle", "of_static": "static"}
"""Which policy each ratio of a :class:`odin_lab.report.results.Cell` is held against."""

_TRIALS = ("trial", "probe")
_POINTS = 400


def momentary_hz(finished_s: FloatArray, *, window: int = WINDOW) -> FloatArray:
    """Requests per second over the last ``window`` requests, for each request from ``window`` + 1 on.

    Parameters
    ----------
    finished_s
        When each request finished, in order, shape (requests,).

    Returns
    -------
    FloatArray
        Shape (requests - window,); ``inf`` where all finished at one moment, empty for so few requests.

    Examples
    --------
    >>> momentary_hz(np.array([0.0, 0.5, 1.0, 2.0]), window=2).tolist()
    [2.0, 1.3333333333333333]
    """
    if window < 1:
        raise ValueError(f"a window of {window} requests; throughput is taken over 1 request at least")
    taken_s = finished_s[window:] - finished_s[:-window]
    with np.errstate(divide="ignore"):
        rate_hz: FloatArray = window / taken_s
    return rate_hz


def below_peak(finished_s: FloatArray, peak_hz: float, *, window: int = WINDOW) -> tuple[float, ...]:
    """Share of requests whose momentary throughput is below each of ``SLO_LEVELS`` times the peak.

    Empty where there are too few requests for one window.
    """
    rate_hz = np.sort(momentary_hz(np.sort(finished_s), window=window))
    if len(rate_hz) == 0:
        return ()
    below = np.searchsorted(rate_hz, np.array(SLO_LEVELS) * peak_hz, side="left")
    return tuple(float(count) / len(rate_hz) for count in below)


def count_changes(start: Plan, decisions: Iterable[Decision]) -> tuple[int, int]:
    """Return plan changes in all, and how many of them tried a plan out.

    A decision for the present plan is no change, and a return to the plan from before the trials (which a policy may
    call by their kind) is no trial.
    """
    changes = trials = 0
    present = steady = start
    for decision in decisions:
        if decision.plan == present:
            continue
        present = decision.plan
        changes += 1
        if decision.kind in _TRIALS and present != steady:
            trials += 1
        else:
            steady = present
    return changes, trials


def seen_events(run: Run) -> tuple[Event, ...]:
    """Interference events that began before the run's last request was answered."""
    answered_s = run.finished_s[run.answered]
    if not len(answered_s):
        return ()
    end = len(answered_s) if run.interference.unit == "requests" else float(answered_s.max())
    return tuple(event for event in run.interference.events if event.start < end)


def to_cell(
    run: Run,
    *,
    study: str,
    model: str,
    policy: str,
    devices: int,
    period: float = 0.0,
    duration: float = 0.0,
    repeat: int = 0,
) -> Cell:
    """Sum up a run, without the ratios to other policies, which :func:`paired` adds.

    Parameters
    ----------
    policy
        What the report calls it: its text form, with ``(serial)`` after it where trials were serial.
    period, duration
        Of the interference, in requests; 0 where there was none, or where it came from a file.

    Raises
    ------
    ValueError
        If no request finished.
    """
    answered = run.answered
    if not answered.any():
        raise ValueError(
            f"{policy} on {model}: no request finished; simulate at least 1, with devices that live and deadlines "
            "that can be kept"
        )
    events = len(seen_events(run))
    changes, trials = count_changes(run.plans[0], (decision for _, decision in run.decisions))
    latency_s = run.latency_s[answered]
    quantiles_s = np.quantile(latency_s, QUANTILES)
    return Cell(
        study=study,
        model=model,
        policy=policy,
        devices=devices,
        period=float(period),
        duration=float(duration),
        repeat=repeat,
        requests=len(run.finished_s),
        lost=0 if run.outcome is None else int(np.isin(run.outcome, (DROPPED, FAILED)).sum()),
        events=events,
        throughput_hz=float(run.throughput_hz),
        peak_hz=float(run.peak_hz),
        latency_mean_s=float(latency_s.mean()),
        latency_p50_s=float(quantiles_s[50]),
        latency_p99_s=float(quantiles_s[99]),
        latency_quantiles_s=tuple(float(value) for value in quantiles_s),
        below_peak=below_peak(run.finished_s[answered], run.peak_hz),
        exploring=float(run.trial.mean()),
        trials_per_event=trials / events if events else math.nan,
        changes_per_event=changes / events if events else math.nan,
    )


def with_service(cell: Cell, service: Service) -> Cell:
    """Add what came of deadlines and losses."""
    recovery_s = np.array([value for value in service.recovery_s if not math.isnan(value)])
    return replace(
        cell,
        goodput_hz=service.goodput_hz,
        capacity_hz=service.capacity_hz,
        in_time=service.in_time,
        refused=math.nan if math.isnan(service.in_time) else service.refused,
        sent_again=float(service.sent_again) if service.recovery_s else math.nan,
        recovery_s=float(np.median(recovery_s)) if len(recovery_s) else math.nan,
        worst_recovery_s=float(recovery_s.max()) if len(recovery_s) else math.nan,
    )


def paired(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Add each cell's throughput over that of the oracle, the delayed oracle and static under the same conditions.

    Cells are held against those that differ from them in the policy only; nan where there is none.
    """
    by_policy = {(_conditions(cell), cell.policy): cell.throughput_hz for cell in cells}

    def share(cell: Cell, figure: str) -> float:
        reference_hz = by_policy.get((_conditions(cell), REFERENCES[figure]), math.nan)
        return cell.throughput_hz / reference_hz if reference_hz else math.nan

    return tuple(
        replace(
            cell,
            of_oracle=share(cell, "of_oracle"),
            of_delayed=share(cell, "of_delayed"),
            of_static=share(cell, "of_static"),
        )
        for cell in cells
    )


def _conditions(cell: Cell) -> tuple[object, ...]:
    return cell.study, cell.model, cell.devices, cell.period, cell.duration, cell.repeat


def to_timeline(
    run: Run, *, study: str, model: str, policy: str, title: str, first: int = 0, last: int | None = None
) -> Timeline:
    """Show a stretch of a run over time, requests ``[first, last)`` by index; seconds count from the stretch's start.

    Throughput and latency are means over up to 400 equal parts of the stretch, of at least 4 requests each: stages that
    take a request each may answer at nearly the same moment.

    Raises
    ------
    ValueError
        If there are not two requests in the stretch.
    """
    order = np.argsort(run.finished_s, kind="stable")  # in a relay requests overtake one another
    answered_s = run.finished_s[order]
    finished_s = answered_s[first:last]
    if len(finished_s) < 2:
        raise ValueError(f"requests {first} to {last} of {len(run.finished_s)} are too few for a timeline; take 2")
    begin_s, end_s = float(finished_s[0]), float(finished_s[-1])
    stop = first + len(finished_s)
    parts = min(_POINTS, max(1, (len(finished_s) - 1) // WINDOW))
    bounds = np.linspace(0, len(finished_s) - 1, parts + 1).astype(np.int64)
    latency_s = run.latency_s[order][first:stop]
    at_s, rate_hz, mean_s = [], [], []
    for low, high in pairwise(bounds.tolist()):
        taken_s = float(finished_s[high] - finished_s[low])
        at_s.append(float(finished_s[high]) - begin_s)
        rate_hz.append((high - low) / taken_s if taken_s > 0 else math.inf)
        mean_s.append(float(latency_s[low + 1 : high + 1].mean()))
    spans = ((*_span_s(run, event), event) for event in seen_events(run))
    return Timeline(
        study=study,
        model=model,
        policy=policy,
        title=title,
        at_s=tuple(at_s),
        throughput_hz=tuple(rate_hz),
        latency_s=tuple(mean_s),
        interference=tuple(
            (max(start_s, begin_s) - begin_s, min(stop_s, end_s) - begin_s, event.device, event.scenario)
            for start_s, stop_s, event in spans
            if start_s < end_s and stop_s > begin_s
        ),
        changes=tuple(
            (float(answered_s[request - 1]) - begin_s, str(decision.plan))
            for request, decision in run.decisions
            if first <= request - 1 < stop
        ),
        peak_hz=float(run.peak_hz),
    )


def _span_s(run: Run, event: Event) -> tuple[float, float]:
    """Seconds from and to which an event lasts; one in requests begins and ends as they are answered."""
    if run.interference.unit == "seconds":
        return event.start, event.end

    def answered_s(requests: float) -> float:
        count = min(math.ceil(requests), len(run.finished_s))
        return float(np.sort(run.finished_s)[count - 1]) if count > 0 else 0.0

    return answered_s(event.start), answered_s(event.end)
