"""Cells of a study as tables to read: policies, worst cells, scaling, the reconstructed rule beside LLS."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeVar

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin_lab.report import tables
from odin_lab.report.comparison import order_policies
from odin_lab.report.goals import GOALS, Goal
from odin_lab.report.narrow import NarrowTable
from odin_lab.report.results import SLO_LEVELS, Cell, Validation
from odin_lab.report.summary import scaling_table

__all__ = [
    "PAPER",
    "Worst",
    "mean_of",
    "paper_table",
    "policy_table",
    "render_study",
    "service_table",
    "terminal_table",
    "validation_table",
    "worst_cells",
    "worst_table",
]

K = TypeVar("K", bound=Hashable)
Figure = Callable[[Cell], float]

PAPER = (
    "Soomro, Papadopoulou, Pericas: ODIN: Overcoming Dynamic Interference in iNference pipelines, Euro-Par 2023, arXiv "
    "2306.01679. Its full text was not available: policies, scenarios and grid are reconstructed from published "
    "descriptions, and none of its figures is quoted."
)
_CAPTION = (
    "of ..: throughput over that; fluid: if work could be divided at will, which nothing can beat; delayed: an oracle "
    "that knows scenarios one request late, but no drift, and moves whole layers: what follows the measured times, or "
    "divides otherwise, can beat it; trials, changes of plan: per event; <50%: share of requests below half the peak"
)
_SERVICE_CAPTION = (
    "goodput: answered in time, per second; capacity: what it would be without deadlines; in time: of those taken on; "
    "again: requests sent again; recovery: from a loss to 0.95 of what the others allow"
)
_HZ_WITHIN, _P99_WITHIN = 0.05, 0.15


class Worst(NamedTuple):
    """The cell, its repeats averaged, where a policy does worst by one goal."""

    goal: Goal
    model: str
    policy: str
    devices: int
    period: float
    duration: float
    value: float
    missed: int
    cells: int


def mean_of(cells: Iterable[Cell], figure: Figure) -> float:
    """Mean of a figure over the cells that have it; nan if none has."""
    values = [value for cell in cells if not math.isnan(value := figure(cell))]
    return float(np.mean(values)) if values else math.nan


def policy_table(title: str, cells: Sequence[Cell]) -> NarrowTable:
    """One row per policy: means over all of the cells."""

    def build(columns: Sequence[str]) -> Table:
        table = Table(title=title, title_justify="left", caption=_CAPTION, caption_justify="left")
        for index, column in enumerate(("policy", *columns)):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for policy, own in _by_policy(cells):
            shown = [_COLUMNS[column] for column in columns]
            table.add_row(policy, *(form(mean_of(own, figure)) for figure, form in shown))
        return table

    return NarrowTable(build, tuple(_COLUMNS), _EXPENDABLE)


def service_table(title: str, cells: Sequence[Cell]) -> NarrowTable:
    """One row per policy and rule of admission: what came of deadlines and losses; means over all of the cells."""
    used = [name for name, (figure, _) in _SERVICE.items() if not math.isnan(mean_of(cells, figure))]

    def build(columns: Sequence[str]) -> Table:
        table = Table(title=title, title_justify="left", caption=_SERVICE_CAPTION, caption_justify="left")
        for index, column in enumerate(("policy", *columns)):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for policy, own in _by_policy(cells):
            shown = [_SERVICE[column] for column in columns]
            table.add_row(policy, *(form(mean_of(own, figure)) for figure, form in shown))
        return table

    return NarrowTable(build, tuple(used), tuple(name for name in ("again", "of peak") if name in used))


def _below(level: float) -> Figure:
    index = SLO_LEVELS.index(level)
    return lambda cell: cell.below_peak[index] if cell.below_peak else math.nan


def _of(name: str) -> Figure:
    return attrgetter(name)


def _ratio(value: float, *, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    """Three digits, all of those before the point."""
    if math.isnan(value):
        return "-"
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.3g}" if value < 1 else f"{value:.{digits}f}"


_COLUMNS: dict[str, tuple[Figure, Callable[[float], str]]] = {
    "images/s": (_of("throughput_hz"), _number),
    "of peak": (lambda cell: cell.throughput_hz / cell.peak_hz, _ratio),
    "of fluid": (lambda cell: cell.throughput_hz / cell.fluid_bound_hz, _ratio),
    "of oracle": (_of("of_oracle"), _ratio),
    "of delayed": (_of("of_delayed"), _ratio),
    "of static": (_of("of_static"), _ratio),
    "mean ms": (lambda cell: 1e3 * cell.latency_mean_s, _number),
    "p99 ms": (lambda cell: 1e3 * cell.latency_p99_s, _number),
    "exploring": (_of("exploring"), _percent),
    "trials": (_of("trials_per_event"), partial(_ratio, digits=2)),
    "changes": (_of("changes_per_event"), partial(_ratio, digits=2)),
    **{f"<{level:.0%}": (_below(level), _percent) for level in (0.5, 0.7, 0.9)},
}


_SERVICE: dict[str, tuple[Figure, Callable[[float], str]]] = {
    "images/s": (_of("throughput_hz"), _number),
    "of peak": (lambda cell: cell.throughput_hz / cell.peak_hz, _ratio),
    "goodput": (_of("goodput_hz"), _number),
    "of capacity": (lambda cell: cell.goodput_hz / cell.capacity_hz, _ratio),
    "in time": (_of("in_time"), lambda value: "-" if math.isnan(value) else f"{value:.2%}"),
    "refused": (_of("refused"), _percent),
    "given up": (lambda cell: cell.lost / cell.requests, _percent),
    "p50 ms": (lambda cell: 1e3 * cell.latency_p50_s, _number),
    "p99 ms": (lambda cell: 1e3 * cell.latency_p99_s, _number),
    "again": (_of("sent_again"), partial(_ratio, digits=1)),
    "recovery ms": (lambda cell: 1e3 * cell.recovery_s, _number),
    "at worst": (lambda cell: 1e3 * cell.worst_recovery_s, _number),
}

_EXPENDABLE = ("exploring", "trials", "of peak", "<70%", "mean ms", "<90%", "<50%", "of oracle", "p99 ms")
"""Columns that a narrow terminal does without, the first of them first."""


def worst_cells(cells: Sequence[Cell], policies: Iterable[str], goals: Sequence[Goal] = GOALS) -> tuple[Worst, ...]:
    """Per policy, model and number of devices the worst cell by each goal; a cell's repeats are averaged first."""
    found = []
    for policy in policies:
        mine = [cell for cell in cells if cell.policy == policy]
        for (model, devices), own in _by(mine, lambda cell: (cell.model, cell.devices)):
            for goal in goals:
                values = [
                    (mean_of(repeats, _of(goal.figure)), period, duration)
                    for (period, duration), repeats in _by(own, lambda cell: (cell.period, cell.duration))
                ]
                known = [item for item in values if not math.isnan(item[0])]
                if known:
                    value, period, duration = (min if goal.least else max)(known)
                    missed = sum(not goal.holds(item[0]) for item in known)
                    found.append(Worst(goal, model, policy, devices, period, duration, value, missed, len(known)))
    return tuple(found)


def worst_table(worst: Sequence[Worst]) -> Table:
    """Goals, where they are worst, and whether they hold there."""
    table = Table(title="the worst cell, mean of its repeats", title_justify="left")
    for index, column in enumerate(
        ("policy", "model", "devices", "figure", "goal", "worst", "at period, duration", "cells that miss it")
    ):
        table.add_column(column, justify="right" if index in (2, 4, 5, 7) else "left")
    for goal, model, policy, devices, period, duration, value, missed, count in worst:
        table.add_row(
            policy,
            model,
            str(devices),
            goal.what,
            f"{'>=' if goal.least else '<='} {goal.limit:g}",
            Text(f"{value:.3f}", style="" if goal.holds(value) else "bold red"),
            f"{period:g}, {duration:g}",
            f"{missed} of {count}",
        )
    return table


def paper_table(cells: Sequence[Cell]) -> Table:
    """The paper's rule, as reconstructed, against LLS, which the paper says it beats; trials pipelined and serial."""
    table = Table(title="the paper's rule, as reconstructed, against LLS; the paper says: better", title_justify="left")
    for index, column in enumerate(("model", "policies", "figure", "obtained")):
        table.add_column(column, justify="right" if index == 3 else "left")
    for model, own in _by(cells, lambda cell: cell.model):
        for suffix in ("", " (serial)"):
            for alpha in (2, 10):
                ours, lls = f"odin:alpha={alpha}{suffix}", f"lls{suffix}"
                throughput = _paired_mean(own, ours, lls, _of("throughput_hz"))
                latency = _paired_mean(own, ours, lls, _of("latency_mean_s"))
                if not math.isnan(throughput):
                    table.add_row(model, f"{ours} / {lls}", "throughput", f"{throughput - 1:+.1%}")
                    table.add_row("", "", "mean latency", f"{latency - 1:+.1%}")
    return table


def _paired_mean(cells: Sequence[Cell], policy: str, other: str, figure: Figure) -> float:
    """Mean over conditions of one policy's figure over another's."""
    others = {cell.key[3:]: figure(cell) for cell in cells if cell.policy == other}
    ratios = [figure(cell) / others[cell.key[3:]] for cell in cells if cell.policy == policy and cell.key[3:] in others]
    return float(np.mean(ratios)) if ratios else math.nan


def terminal_table(table: tables.Table) -> Table:
    """A report's table for the terminal."""
    shown = Table(title=table.title, title_justify="left")
    for at, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if at < table.labels else "right", no_wrap=at < table.labels)
    for row in table.rows:
        shown.add_row(*(cell if isinstance(cell, str) else cell.text for cell in row))
    return shown


def validation_table(validations: Sequence[Validation]) -> Table:
    """Live runs beside their simulations; medians of the simulations."""
    table = Table(
        title=f"live and simulated; to be within {_HZ_WITHIN:.0%} in throughput, {_P99_WITHIN:.0%} in p99 latency",
        title_justify="left",
    )
    columns = ("run", "policy", "live images/s", "simulated", "differs by", "live p99 ms", "simulated", "differs by")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index > 1 else "left")
    for name, policy, live_hz, simulated_hz, live_s, simulated_s in map(_values, validations):
        table.add_row(
            name,
            policy,
            _number(live_hz),
            _number(simulated_hz),
            _differs(simulated_hz / live_hz - 1, _HZ_WITHIN),
            _number(1e3 * live_s),
            _number(1e3 * simulated_s),
            _differs(simulated_s / live_s - 1, _P99_WITHIN),
        )
    return table


def _values(item: Validation) -> tuple[str, str, float, float, float, float]:
    return item.name, item.policy, item.live_hz, item.simulated_hz, item.live_p99_s, item.simulated_p99_s


def _differs(value: float, within: float) -> Text:
    return Text(f"{value:+.1%}", style="" if abs(value) <= within else "bold red")


def render_study(cells: Sequence[Cell], policies: Iterable[str]) -> RenderableType:
    """All tables of the paper's study; ``policies`` are those held against the goals."""
    grid = [cell for cell in cells if cell.study == "grid"]
    scaling = [cell for cell in cells if cell.study == "scaling"]
    parts: list[RenderableType] = []
    for (model, devices), own in _by(grid, lambda cell: (cell.model, cell.devices)):
        conditions = len({(cell.period, cell.duration) for cell in own})
        parts.append(policy_table(f"{model} on {devices} devices, mean over {conditions} cells", own))
    if scaling:
        model = ", ".join(dict.fromkeys(cell.model for cell in scaling))
        title = f"{model} of delayed oracle, by devices"
        parts.append(terminal_table(scaling_table(scaling, title, reference="delayed-oracle")))
    once = {(cell.model, cell.devices) for cell in grid}
    if worst := worst_cells([*grid, *(c for c in scaling if (c.model, c.devices) not in once)], policies):
        parts.append(worst_table(worst))
    compared = paper_table(grid)
    if compared.row_count:
        parts.append(compared)
    return Group(*parts)


def _by_policy(cells: Iterable[Cell]) -> list[tuple[str, list[Cell]]]:
    groups = dict(_by(cells, lambda cell: cell.policy))
    return [(policy, groups[policy]) for policy in order_policies(groups)]


def _by(cells: Iterable[Cell], of: Callable[[Cell], K]) -> list[tuple[K, list[Cell]]]:
    """Cells by what they have in common, in order of appearance."""
    groups: dict[K, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(of(cell), []).append(cell)
    return list(groups.items())
