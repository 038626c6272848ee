"""Tables of numbers, as Markdown and as HTML; what is ahead of all others in a column, or row, is bold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal

from odin_lab.report.comparison import is_ours
from odin_lab.report.medians import leader

__all__ = ["Better", "Row", "Table", "Value", "code", "html_table", "markdown_table"]

Better = Literal["high", "low", ""]


@dataclass(frozen=True)
class Value:
    """A number, how it is printed, and what stands behind it; nan prints as a dash.

    ``by_repeat`` is what it was in each repeat: by these it is compared with others.
    """

    number: float
    text: str
    extra: str = ""
    by_repeat: Mapping[int, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, number: float, form: str = ".3f", *, extra: str = "", by_repeat: Mapping[int, float] | None = None
    ) -> Value:
        """Print by a format."""
        return cls(number, "-") if math.isnan(number) else cls(number, f"{number:{form}}", extra, by_repeat or {})


Row = tuple[str | Value, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    title, caption
        What it is about, and how to read it.
    columns
        Their names; the first ``labels`` columns are text.
    rows
        As many texts or values each.
    better
        Of each column that holds numbers, whether high or low ones are better. One for all where ``best_by`` is row.
    yardsticks
        Rows (columns where ``best_by`` is row) out of competition.
    best_by
        Whether what is compared stands in a column or in a row.
    folded
        Shown on demand only, in HTML.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    better: tuple[Better, ...] = ()
    yardsticks: frozenset[int] = frozenset()
    labels: int = 1
    best_by: Literal["column", "row"] = "column"
    folded: bool = False

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: give {len(self.columns)} values in each row")

    def without_empty(self) -> Table:
        """The same without columns that hold no number at all."""
        kept = [at for at in range(len(self.columns)) if at < self.labels or any(_number(row[at]) for row in self.rows)]
        better, yardsticks = self.better, self.yardsticks
        if self.best_by == "row":
            yardsticks = frozenset(kept.index(at) for at in yardsticks if at in kept)
        elif better:
            better = tuple(better[at - self.labels] for at in kept if at >= self.labels)
        rows = tuple(tuple(row[at] for at in kept) for row in self.rows)
        columns = tuple(self.columns[at] for at in kept)
        return replace(self, columns=columns, rows=rows, better=better, yardsticks=yardsticks)

    def best(self) -> frozenset[tuple[int, int]]:
        """Row and column of what is bold: what is ahead of all others, see :mod:`odin_lab.report.medians`."""
        lines: list[list[tuple[int, int]]]
        if not self.better:
            return frozenset()
        columns = range(self.labels, len(self.columns))
        if self.best_by == "column":
            rows = [at for at in range(len(self.rows)) if at not in self.yardsticks]
            lines = [[(row, column) for row in rows] for column in columns]
            wanted: Sequence[Better] = self.better
        else:
            lines = [[(row, at) for at in columns if at not in self.yardsticks] for row in range(len(self.rows))]
            wanted = self.better[:1] * len(lines)
        found: set[tuple[int, int]] = set()
        for line, better in zip(lines, wanted, strict=True):
            values = {
                place: value.by_repeat
                for place in line
                if isinstance(value := self.rows[place[0]][place[1]], Value) and math.isfinite(value.number)
            }
            if better and (first := leader(values, lower_is_better=better == "low")) is not None:
                found.add(first)
        return frozenset(found)

    @property
    def whole_caption(self) -> str:
        """The caption, with what is bold and why."""
        if not any(self.better):
            return self.caption
        bold = (
            "Bold is what is ahead of each of the others in the same repeats (95% interval of the median difference)."
            if self.best()
            else "No difference seen that holds for one against each of the others in the same repeats, by an interval "
            "of 95%, which takes six repeats: so nothing is bold."
        )
        return f"{self.caption} {bold}"


def _number(cell: str | Value) -> bool:
    return isinstance(cell, Value) and not math.isnan(cell.number)


def _texts(cell: str | Value) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else (cell.text, cell.extra)


def markdown_table(table: Table) -> str:
    """The table for a Markdown file, with its title before and its caption behind."""

    def clean(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    best = table.best()
    side = ["---" if at < table.labels else "---:" for at in range(len(table.columns))]
    lines = [f"**{table.title}**", "", _line([clean(column) for column in table.columns]), _line(side)]
    for at, row in enumerate(table.rows):
        texts = [clean(" ".join(filter(None, _texts(cell)))) for cell in row]
        if table.best_by == "column" and at in table.yardsticks:
            texts[0] = f"*{texts[0]}*"
        lines.append(_line([f"**{text}**" if (at, column) in best else text for column, text in enumerate(texts)]))
    return "\n".join([*lines, "", table.whole_caption, ""])


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def html_table(table: Table) -> str:
    """The table as HTML; captions may hold `code`, nothing else is marked up."""
    best = table.best()
    lines = ["<table><thead><tr>"]
    lines += [
        f'<th scope="col"{" class=label" if at < table.labels else ""}>{escape(column)}</th>'
        for at, column in enumerate(table.columns)
    ]
    lines.append("</tr></thead><tbody>")
    for at, row in enumerate(table.rows):
        kind = "yardstick" if table.best_by == "column" and at in table.yardsticks else ""
        kind = "ours" if is_ours(str(row[0])) else kind
        lines.append(f'<tr class="{kind}">' if kind else "<tr>")
        for column, cell in enumerate(row):
            text, extra = map(escape, _texts(cell))
            if column < table.labels:
                lines.append(f'<th scope="row">{text}</th>')
            else:
                text = f"<b>{text}</b>" if (at, column) in best else text
                below = ' class="below"' if extra.startswith("[") else ""  # intervals are wide
                lines.append(f"<td>{text}{f' <small{below}>{extra}</small>' if extra else ''}</td>")
        lines.append("</tr>")
    lines.append("</tbody></table>")
    caption = f"<figcaption><b>{escape(table.title)}.</b> {code(table.whole_caption)}</figcaption>"
    whole = f'<figure class="table"><div class="scroll">{"".join(lines)}</div>{caption}</figure>'
    return f"<details><summary>{escape(table.title)}</summary>{whole}</details>" if table.folded else whole


def code(text: str) -> str:
    """Escaped for HTML, what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))
