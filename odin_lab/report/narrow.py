"""Tables on narrow terminals: whole columns are left out, the least important first, rather than every cell cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["NarrowTable"]

_UNBOUNDED = 10_000


class NarrowTable:
    """A table that leaves out columns until it fits, and says which.

    Parameters
    ----------
    build
        Makes the table with these columns, beside the one that names the rows.
    columns
        All columns, in the order in which they are shown.
    expendable
        Columns that may be left out, the least important first.
    """

    def __init__(
        self, build: Callable[[Sequence[str]], Table], columns: Sequence[str], expendable: Sequence[str]
    ) -> None:
        self._build, self._columns, self._expendable = build, tuple(columns), tuple(expendable)

    @property
    def table(self) -> Table:
        """The table with all columns."""
        return self._build(self._columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table as wide as there is room for."""
        shown, left_out = list(self._columns), list(self._expendable)
        table = self._build(shown)
        unbounded = options.update(max_width=_UNBOUNDED)
        while left_out and Measurement.get(console, unbounded, table).maximum > options.max_width:
            shown.remove(left_out.pop(0))
            table = self._build(shown)
        yield table
        if missing := [column for column in self._columns if column not in shown]:
            yield Text(f"left out for want of width: {', '.join(missing)}; widen the terminal to see them", "dim")
