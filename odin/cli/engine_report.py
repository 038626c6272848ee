"""What ``odin engines`` tells: a row for each engine and precision, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["EngineReport", "EngineRow", "Measured", "render_engines"]

_LEGEND = (
    "ms per image: median ± half the distance of the quartiles; ratio to the best; MB of weights; error: largest, of "
    "the largest output, against PyTorch in float32; images with the same class first, and with the right one"
)


@dataclass(frozen=True)
class Measured:
    """One engine in one precision.

    Attributes
    ----------
    image_s
        Median seconds for one image.
    quartile_s
        Half the distance between the quartiles.
    least_s
        Least seconds for one image: what is least disturbed.
    weight_nbytes
        Bytes of the weights that it computes with.
    largest_error
        Largest difference from PyTorch's float32 outputs, of their largest magnitude.
    same_top
        For how many of the images the same class is first as in float32; None if outputs are no scores.
    right
        For how many it is the true class; None where these are not known.
    """

    image_s: float
    quartile_s: float
    least_s: float
    weight_nbytes: float
    largest_error: float
    same_top: int | None
    right: int | None


@dataclass(frozen=True)
class EngineRow:
    """An engine in a precision: what was measured, or why it cannot be."""

    engine: str
    precision: str
    measured: Measured | None = None
    problem: str = ""


@dataclass(frozen=True)
class EngineReport:
    """All rows.

    Attributes
    ----------
    images
        How many were compared.
    notes
        What the images are, and other things to know.
    """

    model: str
    device: str
    processor: str
    batch: int
    rounds: int
    images: int
    rows: tuple[EngineRow, ...]
    notes: tuple[str, ...]

    @property
    def best_s(self) -> float:
        """Least median for one image."""
        return min((row.measured.image_s for row in self.rows if row.measured), default=float("nan"))

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain JSON values."""
        return asdict(self)


def render_engines(report: EngineReport) -> RenderableType:
    """Render a report; readable from 80 columns on."""
    header = Text(
        f"{report.model} on {report.device} ({report.processor}), {_count(report.batch, 'image')} per request, "
        f"{_count(report.rounds, 'round')}, engines in turn"
    )
    return Group(header, Text(), _table(report), Text(_LEGEND), *_problems(report.rows), *map(Text, report.notes))


def _table(report: EngineReport) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    accuracy = any(row.measured and row.measured.right is not None for row in report.rows)
    for name in ("engine", "precision"):
        table.add_column(name, no_wrap=True)
    headers = ("ms", "±", "ratio", "MB", "error", "same", *(("right",) * accuracy))
    for name in headers:
        table.add_column(name, justify="right", no_wrap=True)
    measured = [row for row in report.rows if row.measured]
    for row in sorted(measured, key=lambda row: row.measured.image_s if row.measured else 0.0):
        found = row.measured
        assert found is not None
        cells = [
            f"{found.image_s * 1e3:.2f}",
            f"{found.quartile_s * 1e3:.2f}",
            f"{found.image_s / report.best_s:.2f}",
            f"{found.weight_nbytes / 1e6:.1f}",
            f"{found.largest_error:.1g}",
            "-" if found.same_top is None else f"{found.same_top}/{report.images}",
        ]
        if accuracy:
            cells.append("-" if found.right is None else f"{found.right / report.images:.1%}")
        table.add_row(row.engine, row.precision, *cells, style="bold" if found.image_s == report.best_s else "")
    return table


def _problems(rows: Sequence[EngineRow]) -> list[RenderableType]:
    problems = [row for row in rows if not row.measured]
    if not problems:
        return [Text()]
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in problems:
        table.add_row(row.engine, row.precision, escape(row.problem), style="dim")
    return [Text(), Text("not measured:"), table, Text()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
