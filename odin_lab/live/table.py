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
from odin_lab.report.medians import interval_text, median_of, verdict
from odin_lab.report.narrow import NarrowTable
from odin_lab.report.results import SLO_LEVELS, Cell

__all__ = ["live_table"]

_MUCH_STEAL = 0.05


_SERVED: dict[str, Callable[[Sequence[Cell]], str]] = {
    "images/s": lambda cells: _told([cell.throughput_hz for cell in cells], figure),
    "of static": lambda cells: _told([cell.of_static for cell in cells], "{:.2f}".format),
    "beside static": lambda cells: "" if cells[0].policy == "static" else verdict(cell.of_static for cell in cells),
    "undisturbed": lambda cells: _told([cell.peak_hz for cell in cells], figure),
    "p50": lambda cells: _told([cell.latency_p50_s for cell in cells], seconds),
    "p99": lambda cells: _told([cell.latency_p99_s for cell in cells], seconds),
    "lost": lambda cells: str(sum(cell.lost for cell in cells)),
    "< 50%": lambda cells: _told([below(cell, 0.5) for cell in cells], "{:.0%}".format),
    "< 80%": lambda cells: _told([below(cell, 0.8) for cell in cells], "{:.0%}".format),
}


_TOOK = ("changes/event", "exploring", "MiB", "without Ray's MiB", "steal, most")


def live_table(runs: Sequence[Run]) -> RenderableType:
    """What was served, and what it took: a row per contender each; below it what needs a word of warning."""
    cells = to_cells(runs)
    model = ", ".join(dict.fromkeys(cell.model for cell in cells))
    repeats = len({cell.repeat for cell in cells})
    titles = tuple(dict.fromkeys(cell.policy for cell in cells))
    own = {title: [cell for cell in cells if cell.policy == title] for title in titles}
    records = {title: [run.record for run in runs if run.task.title == title] for title in titles}

    def served(columns: Sequence[str]) -> Table:
        table = _table(
            f"{model} live, " + (f"medians ({interval_text(repeats)})" if repeats > 1 else "one repeat"), columns
        )
        for title, found in own.items():
            table.add_row(title, *(_SERVED[column](found) for column in columns))
        return table

    def took(columns: Sequence[str]) -> Table:
        table = _table("What it took", columns)
        for title, found in own.items():
            moves = any(record.plan for record in records[title])
            row = {
                "changes/event": _told([cell.changes_per_event for cell in found], "{:.1f}".format) if moves else "-",
                "exploring": _told([cell.exploring for cell in found], "{:.0%}".format) if moves else "-",
                "MiB": _told([record.memory_nbytes for record in records[title]], _mib),
                "without Ray's MiB": _told([record.model_nbytes for record in records[title]], _mib),
                "steal, most": f"{max(record.steal for record in records[title]):.1%}",
            }
            table.add_row(title, *(row[column] for column in columns))
        return table

    tables = (
        NarrowTable(served, tuple(_SERVED), ("< 80%", "undisturbed", "p50", "< 50%")),
        NarrowTable(
            took, ("changes/event", "exploring", "MiB", "without Ray's MiB", "steal, most"), ("exploring", "MiB")
        ),
    )
    lines = Text(
        "of static: throughput / static's in the same repeat; ahead, behind: an interval of at least 95% leaves out 1\n"
        "undisturbed: images/s before the first load; <: share of requests while throughput was below so much of that\n"
    )
    if (worst := max(run.record.steal for run in runs)) > _MUCH_STEAL:
        lines.append(f"the host took up to {worst:.0%} of the cores' time: repeat on a calmer machine\n", "red")
    if any(math.isnan(peak_hz(run)) for run in runs):
        lines.append("too few requests before the first load: lengthen --period and --seconds\n", "red")
    return Group(*tables, lines)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _told(values: Sequence[float], form: Callable[[float], str]) -> str:
    return median_of(values).told(form)


def _mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.0f}"


def below(cell: Cell, level: float) -> float:
    """Share of requests below a level of the peak; nan if it is not known."""
    return cell.below_peak[SLO_LEVELS.index(level)] if cell.below_peak else math.nan
