"""The named scenarios as a table, with what they were measured to do here."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from odin_lab.inject.calibration import Calibration
from odin_lab.inject.named import NAMED

__all__ = ["named_table"]


def named_table(calibrations: Sequence[Calibration]) -> Table:
    """Render the scenarios, with a column of slowdowns for each calibration."""
    table = Table(box=None, pad_edge=False)
    table.add_column("scenario", no_wrap=True)
    table.add_column("load")
    table.add_column("busy", justify="right")
    table.add_column("processes per core", justify="right")
    for calibration in calibrations:
        table.add_column(Text(f"{calibration.model} on {calibration.device}"), justify="right")
    for name, load in NAMED.items():
        row = [name, load.kind, f"{load.intensity:.0%}", str(load.threads)]
        for calibration in calibrations:
            effect = calibration.effect(name)
            row.append("-" if effect is None else f"{effect.slowdown:.2f} ({effect.low:.2f} to {effect.high:.2f})")
        table.add_row(*row)
    return table
