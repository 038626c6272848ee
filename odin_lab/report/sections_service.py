"""The report's section on deadlines and lost devices: a table per study, model and number of devices."""

from __future__ import annotations

import math
from collections.abc import Callable

from odin_lab.report.comparison import mean, order_policies
from odin_lab.report.parts import Data, Section, study_name
from odin_lab.report.results import Cell
from odin_lab.report.summary import yardsticks
from odin_lab.report.tables import Better, Row, Table, Value

__all__ = ["service"]

_CAPTION = (
    "Means. Goodput: requests answered in time, over what could be answered per second were there no deadlines; in "
    "time: of the requests taken on; recovery: from the loss of a device until throughput is back at 0.95 of what the "
    "others allow, median and largest."
)
_COLUMNS: tuple[tuple[str, Callable[[Cell], float], Better, str], ...] = (
    ("images/s", lambda cell: cell.throughput_hz, "high", ".1f"),
    ("goodput / capacity", lambda cell: cell.goodput_hz / cell.capacity_hz, "high", ".3f"),
    ("in time", lambda cell: cell.in_time, "high", ".2%"),
    ("refused", lambda cell: cell.refused, "", ".1%"),
    ("p99 ms", lambda cell: 1e3 * cell.latency_p99_s, "low", ".0f"),
    ("sent again", lambda cell: cell.sent_again, "", ".1f"),
    ("recovery ms", lambda cell: 1e3 * cell.recovery_s, "low", ".0f"),
    ("at worst", lambda cell: 1e3 * cell.worst_recovery_s, "low", ".0f"),
)


def service(data: Data) -> Section | None:
    """What came of deadlines and losses, where there were any."""
    told = [cell for cell in data.whole.cells if not (math.isnan(cell.goodput_hz) and math.isnan(cell.sent_again))]
    places: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in told:
        places.setdefault((cell.study, cell.model, cell.devices), []).append(cell)
    tables = tuple(
        _table(f"{model} on {devices} devices, {study_name(study)}", cells)
        for (study, model, devices), cells in places.items()
    )
    return Section("service", "Deadlines and lost devices", (), tables) if tables else None


def _table(title: str, cells: list[Cell]) -> Table:
    policies = order_policies(cell.policy for cell in cells)
    rows: tuple[Row, ...] = tuple(
        (
            policy,
            *(
                Value.of(mean(figure(cell) for cell in cells if cell.policy == policy), form)
                for _, figure, _, form in _COLUMNS
            ),
        )
        for policy in policies
    )
    columns = ("policy", *(name for name, *_ in _COLUMNS))
    return Table(
        title, _CAPTION, columns, rows, tuple(better for _, _, better, _ in _COLUMNS), yardsticks(policies)
    ).without_empty()
