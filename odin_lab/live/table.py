"""The live benchmark as a table: medians over repeats with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin.monitor.view.event_text import figure, seconds
from odin_lab.live.outcome import Run, peak_hz, to_cells
from odin_lab.report.medians import interval_text, median_of
from odin_lab.report.results import SLO_LEVELS, Cell

__all__ = ["live_table"]

_SHOWN_LEVELS = (0.5, 0.8)
_MUCH_STEAL = 0.05


def live_table(runs: Sequence[Run]) -> RenderableType:
    """What was served, and what it took: a row per contender each; below it what needs a word of warning."""
    cells = to_cells(runs)
    model = ", ".join(dict.fromkeys(cell.model for cell in cells))
    repeats = len({cell.repeat for cell in cells})
    served = _table(
        f"{model} live, " + (f"medians ({interval_text(repeats)})" if repeats > 1 else "one repeat"),
        ("images/s", "of static", "undisturbed", "p50", "p99", "lost", *(f"< {level:.0%}" for level in _SHOWN_LEVELS)),
    )
    took = _table("What it took", ("changes/event", "exploring", "MiB", "without Ray's MiB", "steal, most"))
    for title in dict.fromkeys(cell.policy for cell in cells):
        own = [cell for cell in cells if cell.policy == title]
        records = [run.record for run in runs if run.task.title == title]
        served.add_row(
            title,
            _told([cell.throughput_hz for cell in own], figure),
            _told([cell.of_static for cell in own], "{:.2f}".format),
            _told([cell.peak_hz for cell in own], figure),
            _told([cell.latency_p50_s for cell in own], seconds),
            _told([cell.latency_p99_s for cell in own], seconds),
            str(sum(cell.lost for cell in own)),
            *(_told([below(cell, level) for cell in own], "{:.0%}".format) for level in _SHOWN_LEVELS),
        )
        moves = any(record.plan for record in records)
        took.add_row(
            title,
            _told([cell.changes_per_event for cell in own], "{:.1f}".format) if moves else "-",
            _told([cell.exploring for cell in own], "{:.0%}".format) if moves else "-",
            _told([record.memory_nbytes for record in records], _mib),
            _told([record.model_nbytes for record in records], _mib),
            f"{max(record.steal for record in records):.1%}",
        )
    lines = Text("<: share of requests at a momentary throughput below so much of the run's own undisturbed one\n")
    if (worst := max(run.record.steal for run in runs)) > _MUCH_STEAL:
        lines.append(f"the host took up to {worst:.0%} of the cores' time: repeat on a calmer machine\n", "red")
    if any(math.isnan(peak_hz(run)) for run in runs):
        lines.append("too few requests before the first load: lengthen --period and --seconds\n", "red")
    return Group(served, took, lines)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _told(values: Sequence[float], form: Callable[[float], str]) -> str:
    return median_of(values).told(form)


def _mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.0f}"


def below(cell: Cell, level: float) -> float:
    """Share of requests below a level of the peak; nan if it is not known."""
    return cell.below_peak[SLO_LEVELS.index(level)] if cell.below_peak else math.nan
