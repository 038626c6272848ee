"""``odin profile``: its table."""

from __future__ import annotations

import io
import math

from rich.console import Console

from odin.cli.profile import _plain, _table
from odin.family.facts import Facts


def test_the_table_begins_with_the_least_dear():
    facts = [
        Facts("large", 0.03, 0.002, 2.0, 400, 0.9876, 0.03, 66),
        Facts("small", 0.008, 0.002, 1.0, 100, math.nan, 0.008, 250, form="exit-3", lost=0.002),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(_table("digits", facts))
    text = console.export_text()
    assert text.index("small") < text.index("large")
    assert "98.76%" in text
    assert "exit-3" in text
    assert "0.20%" in text
    assert _plain(math.nan) is None
