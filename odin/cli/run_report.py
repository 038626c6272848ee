"""What a run came to, and its rendering: counts, rates, latencies, and a row per stage."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from odin.errors import DeadlineExceededError
from odin.monitor.view.pipeline_view import PipelineView, StageView
from odin.monitor.view.windows_text import windows_text
from odin.monitor.window import percentiles_s
from odin.requests.stream import Outcome

__all__ = ["Ending", "RunReport", "RunTally", "render_report"]

_NAMES_FROM = 76
"""From this width on there is room for the names of a stage's layers."""

Ending = Literal["done", "interrupted", "broken off"]


@dataclass(frozen=True)
class RunReport:
    """A finished or interrupted run, as numbers.

    Attributes
    ----------
    completed, failed
        Images with a result; images without, whether the file or the request was at fault.
    elapsed_s
        From the first image's submission to the last outcome.
    latency_p50_s, latency_p95_s, latency_p99_s
        From submission to result over all completed images; ``nan`` if there are none.
    late, refused
        Those of the failed whose deadline passed, and that were refused at once because it would have.
    ending
        ``"done"``, ``"interrupted"`` by the user, or ``"broken off"`` because the pipeline failed.
    """

    completed: int
    failed: int
    elapsed_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    ending: Ending = "done"
    late: int = 0
    refused: int = 0

    @property
    def throughput_hz(self) -> float:
        """Completed images per second of the run; ``nan`` if nothing was."""
        return self.completed / self.elapsed_s if self.completed and self.elapsed_s > 0 else math.nan


@dataclass
class RunTally:
    """Counts outcomes as they come; eight bytes per image."""

    completed: int = 0
    failed: int = 0
    late: int = 0
    refused: int = 0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))

    def add(self, outcome: Outcome[Any]) -> None:
        """Count one outcome."""
        if outcome.error is not None:
            self.failed += 1
            if isinstance(outcome.error, DeadlineExceededError):
                self.refused += outcome.error.refused
                self.late += not outcome.error.refused
            return
        self.completed += 1
        if outcome.latency_s is not None:
            self.latencies_s.append(outcome.latency_s)

    def report(self, *, elapsed_s: float, ending: Ending = "done") -> RunReport:
        """The run so far, which took ``elapsed_s`` seconds."""
        p50, p95, p99 = percentiles_s(self.latencies_s)
        return RunReport(self.completed, self.failed, elapsed_s, p50, p95, p99, ending, self.late, self.refused)


def render_report(
    report: RunReport, view: PipelineView, layer_names: Sequence[str], *, deadline_ms: float | None = None
) -> RenderableType:
    """Render a run: totals in two lines, then the table of stages.

    Parameters
    ----------
    report
        The run.
    view
        The pipeline at its end; stage times are medians over its last requests.
    layer_names
        Names of the chain's layers, for the ranges.
    deadline_ms
        That of each request, if there was one.
    """
    totals = Text()
    totals.append(f"{report.ending}: ", style="bold")
    totals.append(f"{report.completed} image{'' if report.completed == 1 else 's'} in {report.elapsed_s:.1f} s")
    if report.failed:
        totals.append(f", {report.failed} failed", style="bold red")
    totals.append(
        f"\nthroughput {figure(report.throughput_hz)} images/s, latency p50 {milliseconds(report.latency_p50_s)}"
    )
    totals.append(f", p95 {milliseconds(report.latency_p95_s)}, p99 {milliseconds(report.latency_p99_s)}")
    if deadline_ms is not None:
        totals.append(f"\ndeadline {deadline_ms:g} ms: {report.completed} in time, ")
        totals.append(f"{report.late} late", style="bold red" if report.late else "")
        totals.append(f", {report.refused} refused; goodput {figure(report.throughput_hz)} images/s")
    return Group(totals, StageTable(view, layer_names))


@dataclass(frozen=True)
class StageTable:
    """One row per stage, without the layers' names where the terminal is too narrow for them."""

    view: PipelineView
    layer_names: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield stage_table(self.view, self.layer_names, names=options.max_width >= _NAMES_FROM)


def stage_table(view: PipelineView, layer_names: Sequence[str], *, names: bool = True) -> Table:
    """One row per stage: where it is, what it runs, how long it takes and waits."""
    where = windows_text(view.windows) if view.windows else f"plan {'|'.join(map(str, view.plan))}"
    model = view.model if view.engine == "torch" else f"{view.model} with {view.engine}"
    table = Table(title=f"{model}, {where}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    table.add_column("device", overflow="fold")
    table.add_column("layers", justify="right", no_wrap=True)
    if names:
        table.add_column("from ... to", overflow="fold", min_width=16)
    for heading in ("time", "share", "queue"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in view.stages:
        nothing = stage.first == stage.last and not view.windows
        table.add_row(
            str(stage.stage),
            stage.device,
            f"{sum(stage.layer_shares):.1f}" if stage.layer_shares else str(stage.last - stage.first),
            *([layer_range(stage, layer_names)] if names else []),
            milliseconds(stage.time_s),
            "-" if math.isnan(stage.utilisation) or nothing else f"{stage.utilisation:.0%}",
            milliseconds(stage.queue_s),
        )
    means = ("layers: means; " + "from ... to, " * names) if view.windows else ""
    table.caption = f"{means}time, queue: medians over the last requests; share: busy part of the time"
    table.caption_justify = "left"
    return table


def layer_range(stage: StageView, layer_names: Sequence[str]) -> str:
    """First and last layer of a stage by name."""
    if stage.first == stage.last:
        return "-"
    first, last = layer_names[stage.first], layer_names[stage.last - 1]
    return first if first == last else f"{first} ... {last}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three figures, or a dash."""
    return "-" if math.isnan(seconds) else f"{figure(seconds * 1e3)} ms"


def figure(value: float) -> str:
    """Three significant figures without an exponent."""
    if math.isnan(value):
        return "-"
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"
