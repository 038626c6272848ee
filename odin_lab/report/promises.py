"""Predictability: expected against actual latency of every request of a run, and how its deadlines were kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from odin.monitor.events import RequestDone, RequestFailed, RequestsRefused, RunStarted
from odin.monitor.logreader import read_log
from odin.monitor.window import percentiles_s
from odin_lab.report.figures import Layout, panels
from odin_lab.report.results import Promises
from odin_lab.report.style import INK
from odin_lab.report.tables import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_promises", "from_log", "promises_table"]

_SHOWN = 0.995
"""Part of the points that lie within the axes."""
_MOST = 2_000
"""Points that a run keeps: every so-manieth request of a longer one, and the quantiles of all."""


def from_log(path: Path) -> Promises:
    """Read what an event log tells of expected and actual completions.

    Raises
    ------
    ValueError
        If it is no event log.
    """
    run: RunStarted | None = None
    points: list[tuple[float, float, float]] = []
    in_time = late = refused = 0
    for event in read_log(path):
        match event:
            case RunStarted():
                run = event
            case RequestDone(timeline=timeline):
                in_time += timeline.in_time
                if math.isfinite(timeline.expected_s):
                    sent_s = timeline.submitted_s
                    points.append((event.at_s, timeline.expected_s - sent_s, timeline.completed_s - sent_s))
            case RequestFailed():
                late += event.error.startswith("DeadlineExceededError")
            case RequestsRefused():
                refused += event.requests
    if run is None:
        raise ValueError(f"{path} has no run")
    off_s = [actual_s - expected_s for _, expected_s, actual_s in points]
    p50_s, p99_s = percentiles_s(off_s, (50, 99))
    kept = points[:: max(1, -(-len(points) // _MOST))]
    return Promises(
        run.model,
        run.policy,
        path.name,
        len(points),
        tuple(round(at_s - run.at_s, 4) for at_s, *_ in kept),
        tuple(round(expected_s, 6) for _, expected_s, _ in kept),
        tuple(round(actual_s, 6) for *_, actual_s in kept),
        p50_s,
        p99_s,
        in_time,
        late,
        refused,
    )


def promises_table(runs: Sequence[Promises], title: str) -> Table:
    """How far completions were from what was expected, and how deadlines were kept."""
    rows: tuple[Row, ...] = tuple(
        (
            run.title,
            run.model,
            run.policy,
            str(run.requests),
            f"{run.off_p50_s * 1e3:+.1f}",
            f"{run.off_p99_s * 1e3:+.1f}",
            str(run.in_time),
            str(run.late),
            str(run.refused),
        )
        for run in runs
    )
    caption = (
        "Actual minus expected completion, over all finished requests; of those with deadlines, how many were done in "
        "time, how many were accepted and not, and how many were refused at once."
    )
    columns = ("run", "model", "policy", "requests", "off p50, ms", "off p99, ms", "in time", "late", "refused")
    return Table(title, caption, columns, rows, labels=len(columns))


def draw_promises(layout: Layout, runs: Sequence[Promises]) -> Figure:
    """Actual over expected latency, a panel per run: on the line all is as expected, above it later."""
    figure, found = panels(layout, len(runs), height_in=2.8)
    told_ms = np.concatenate([np.array(values) for run in runs for values in (run.expected_s, run.actual_s)]) * 1e3
    end_ms = 1.05 * float(np.quantile(told_ms, _SHOWN)) if len(told_ms) else 1.0
    for axes, run in zip(found, runs, strict=True):
        expected_ms, actual_ms = np.array(run.expected_s) * 1e3, np.array(run.actual_s) * 1e3
        axes.scatter(expected_ms, actual_ms, s=5, color="#0072b2", alpha=0.35, linewidths=0, zorder=3, rasterized=True)
        axes.plot([0, end_ms], [0, end_ms], color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
        axes.set_xlim(0, end_ms)
        axes.set_ylim(0, end_ms)
        axes.set_title(f"{run.title}: {run.model}, {run.policy}")
        axes.set_xlabel("expected latency, ms")
    for axes in found[:: 1 if layout.narrow else layout.columns]:
        axes.set_ylabel("actual latency, ms")
    return figure
