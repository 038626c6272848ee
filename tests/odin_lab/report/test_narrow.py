"""Tables on narrow terminals: fewer columns, none cut off."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from odin_lab.report.narrow import NarrowTable


def build(columns):
    table = Table("", *columns)
    table.add_row("a policy", *("123.456" for _ in columns))
    return table


def lines(width):
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(NarrowTable(build, ("images/s", "of static", "p99 ms"), ("p99 ms", "of static")))
    return console.export_text().splitlines()


def test_all_columns_where_there_is_room():
    assert "p99 ms" in lines(80)[1]
    assert "left out" not in "".join(lines(80))


def test_the_least_important_go_first_and_are_named():
    shown = lines(40)
    assert "p99" not in shown[1]
    assert all(text in shown[1] for text in ("images/s", "of static"))
    assert not any("…" in line for line in shown)
    assert "left out for want of width: p99 ms" in " ".join(shown)
    assert "left out for want of width: of static, p99 ms" in " ".join(" ".join(lines(26)).split())
