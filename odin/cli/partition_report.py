"""A chain, its baselines and a plan as numbers, and their rendering as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from odin.partitioner.plan import Plan

__all__ = ["LayerRow", "PartitionReport", "StageRow", "render_partition"]

_BAR = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class LayerRow:
    """One layer; ``layer_s`` has its baseline on each device type, sizes are those of one request."""

    index: int
    name: str
    layer_s: tuple[float, ...]
    output_nbytes: int
    flops: int
    parameter_nbytes: int
    stage: int


@dataclass(frozen=True)
class StageRow:
    """One stage under the plan: half-open range of layers, seconds per request."""

    index: int
    device: str
    device_type: str
    first: int
    last: int
    compute_s: float
    transfer_s: float

    @property
    def total_s(self) -> float:
        """Seconds per request, passing on included."""
        return self.compute_s + self.transfer_s


@dataclass(frozen=True)
class PartitionReport:
    """A model, its layers' baselines, and a plan for given stages.

    Attributes
    ----------
    model
        Its name.
    batch
        Images per request.
    device_types
        In the order of each layer's ``layer_s``.
    layers, stages
        Rows of the tables.
    best_plan
        The plan with the least bottleneck; ``plan`` may be another that the user asked for.
    bottleneck_s, best_bottleneck_s
        Seconds per request of the slowest stage under the plan, under the best plan.
    fluid_hz
        Requests per second if work could be divided without granularity.
    spread
        Median over layers and device types of (median - minimum) / minimum: the noise while profiling.
    engine
        What computes the layers.
    """

    model: str
    batch: int
    device_types: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    stages: tuple[StageRow, ...]
    plan: Plan
    best_plan: Plan
    bottleneck_s: float
    best_bottleneck_s: float
    fluid_hz: float
    spread: float
    engine: str = "torch"

    @property
    def throughput_hz(self) -> float:
        """Predicted requests per second; infinite if no stage takes time."""
        return 1.0 / self.bottleneck_s if self.bottleneck_s > 0 else float("inf")

    @property
    def efficiency(self) -> float:
        """Predicted throughput / fluid bound."""
        return self.throughput_hz / self.fluid_hz if self.fluid_hz > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain JSON values, plans as text."""
        return {
            "model": self.model,
            "batch": self.batch,
            "device_types": list(self.device_types),
            "layers": [asdict(row) for row in self.layers],
            "stages": [asdict(row) | {"total_s": row.total_s} for row in self.stages],
            "plan": str(self.plan),
            "best_plan": str(self.best_plan),
            "bottleneck_s": self.bottleneck_s,
            "best_bottleneck_s": self.best_bottleneck_s,
            "throughput_hz": self.throughput_hz,
            "fluid_hz": self.fluid_hz,
            "efficiency": self.efficiency,
            "spread": self.spread,
            "engine": self.engine,
        }


def render_partition(report: PartitionReport) -> RenderableType:
    """Render a report: layers, stages, and what the plan promises; readable from 80 columns on."""
    return Group(_layers_table(report), Text(), _stages_table(report), Text(), *_summary(report))


def _layers_table(report: PartitionReport) -> Table:
    several = len(report.device_types) > 1
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("layer", overflow="ellipsis")  # the one column that may shrink
    for index in range(len(report.device_types)):
        table.add_column(f"ms {_letter(index)}" if several else "ms", justify="right", no_wrap=True)
    table.add_column("share", no_wrap=True, width=10)
    for header in ("out MB", "MFLOP", "par MB", "stage"):
        table.add_column(header, justify="right", no_wrap=True)
    totals_s = [sum(row.layer_s[index] for row in report.layers) for index in range(len(report.device_types))]
    # A layer's share of the model is shown for the device type that runs it.
    types = {stage.index: report.device_types.index(stage.device_type) for stage in report.stages}
    shares = [_ratio(row.layer_s[types[row.stage]], totals_s[types[row.stage]]) for row in report.layers]
    largest = max(shares)
    for row, share, following in zip(report.layers, shares, (*report.layers[1:], None), strict=True):
        table.add_row(
            str(row.index),
            escape(row.name),
            *(f"{seconds * 1e3:.2f}" for seconds in row.layer_s),
            f"{_bar(_ratio(share, largest), 4)} {share:5.1%}",
            f"{row.output_nbytes / 1e6:.2f}",
            f"{row.flops / 1e6:.0f}",
            f"{row.parameter_nbytes / 1e6:.2f}",
            str(row.stage),
            end_section=following is not None and following.stage != row.stage,
        )
    table.add_section()
    table.add_row(
        "",
        "total",
        *(f"{seconds * 1e3:.2f}" for seconds in totals_s),
        "",
        "",
        f"{sum(row.flops for row in report.layers) / 1e6:.0f}",
        f"{sum(row.parameter_nbytes for row in report.layers) / 1e6:.2f}",
        "",
        style="bold",
    )
    return table


def _stages_table(report: PartitionReport) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("layers", justify="right", no_wrap=True)
    for header in ("first", "last"):  # the columns that may shrink
        table.add_column(header, overflow="ellipsis")
    for header in ("run ms", "hop ms", "total ms"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=6)
    for row in report.stages:
        slowest = row.total_s == max(stage.total_s for stage in report.stages)
        count = row.last - row.first
        ends = (report.layers[row.first].name, report.layers[row.last - 1].name) if count else ("-", "-")
        table.add_row(
            str(row.index),
            escape(row.device),
            str(count),
            *map(escape, ends),
            f"{row.compute_s * 1e3:.2f}",
            f"{row.transfer_s * 1e3:.2f}",
            f"{row.total_s * 1e3:.2f}",
            _bar(_ratio(row.total_s, report.bottleneck_s), 6),
            style="bold" if slowest else "",
        )
    return table


def _summary(report: PartitionReport) -> Sequence[RenderableType]:
    lines = [f"plan {report.plan}: bottleneck {report.bottleneck_s * 1e3:.2f} ms"]
    lines[0] += f", predicted {report.throughput_hz * report.batch:.2f} images/s"
    lines.append(
        f"fluid bound {report.fluid_hz * report.batch:.2f} images/s, efficiency {report.efficiency:.1%}; "
        f"noise while profiling {report.spread:.0%}"
    )
    if report.plan != report.best_plan:
        lines.append(f"best plan {report.best_plan}: bottleneck {report.best_bottleneck_s * 1e3:.2f} ms")
    several = len(report.device_types) > 1
    lines += [f"{_letter(index)} = {name}" if several else name for index, name in enumerate(report.device_types)]
    lines.append(f"engine {report.engine}")
    return [Text(line) for line in lines]


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"T{index}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _bar(share: float, width: int) -> str:
    """Draw a bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BAR[rest] if rest else "")).ljust(width)
