"""The tables of what was measured: live runs, detection delays, simulated against live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from odin_lab.report.comparison import SLO, order_policies
from odin_lab.report.medians import interval_text, median_of, verdict
from odin_lab.report.results import SLO_LEVELS, Cell, DetectionPoint, Validation
from odin_lab.report.summary import yardsticks
from odin_lab.report.tables import Better, Row, Table, Value

__all__ = ["LIVE_VALUES", "detection_table", "live_table", "order_table", "validation_table"]

_AT = SLO_LEVELS.index(SLO)
LIVE_VALUES: tuple[tuple[str, Callable[[Cell], float], Better, str], ...] = (
    ("throughput / static", lambda cell: cell.of_static, "high", ".3f"),
    ("throughput, /s", lambda cell: cell.throughput_hz, "high", ".2f"),
    ("p50 latency, ms", lambda cell: cell.latency_p50_s * 1e3, "low", ".0f"),
    ("p99 latency, ms", lambda cell: cell.latency_p99_s * 1e3, "low", ".0f"),
    ("requests at 80% of peak", lambda cell: 1 - cell.below_peak[_AT] if cell.below_peak else math.nan, "high", ".3f"),
    ("changes per event", lambda cell: cell.changes_per_event, "low", ".2f"),
    ("memory, MiB", lambda cell: cell.memory_bytes / 2**20, "low", ".0f"),
)
"""What is shown of live runs: name, value, whether high or low is better, format."""


def live_table(cells: Iterable[Cell], title: str) -> Table:
    """Medians with their intervals over the repeats of one place."""
    cells = list(cells)
    policies = order_policies(cell.policy for cell in cells)

    def interval(policy: str, value: Callable[[Cell], float], form: str) -> Value:
        by_repeat = {cell.repeat: value(cell) for cell in cells if cell.policy == policy}
        middle, low, high, *_ = median_of(by_repeat.values())
        extra = "" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"
        return Value.of(middle, form, extra=extra, by_repeat=by_repeat)

    beside = {policy: verdict(cell.of_static for cell in cells if cell.policy == policy) for policy in policies}
    beside["static"] = ""
    told = any(beside.values())

    rows: tuple[Row, ...] = tuple(
        (
            policy,
            *((beside[policy],) if told else ()),
            *(interval(policy, value, form) for _, value, _, form in LIVE_VALUES),
            Value.of(sum(cell.lost for cell in cells if cell.policy == policy), ".0f"),
        )
        for policy in policies
    )
    repeats = max(sum(cell.policy == policy for cell in cells) for policy in policies)
    caption = f"Median, and the {interval_text(repeats)}." if repeats > 1 else "One repeat: no interval."
    beside_name = ("throughput beside static's",) if told else ()
    columns = ("policy", *beside_name, *(name for name, *_ in LIVE_VALUES), "lost in all")
    better = (*(better for _, _, better, _ in LIVE_VALUES), "")
    return Table(title, caption, columns, rows, better, yardsticks(policies), labels=1 + told).without_empty()


def detection_table(points: Iterable[DetectionPoint], title: str) -> Table:
    """Delays beside their bounds."""
    rows: tuple[Row, ...] = tuple(
        (
            point.detector,
            f"{point.noise_cv:.0%}",
            f"{point.slowdown:g}",
            # Results from before medians were kept have a mean of those seen alone.
            Value.of(point.delay, ".2f", extra="(of those seen)" if point.missed and math.isnan(point.median) else ""),
            f"> {point.limit}" if math.isinf(point.median) else Value.of(point.median, ".0f"),
            Value.of(point.bound, ".2f"),
            Value.of(point.delay / max(point.bound, 1.0), ".2f"),
            Value.of(point.missed * 100, ".1f"),
            Value.of(point.false_alarms, ".2f"),
        )
        for point in sorted(points, key=lambda point: (point.noise_cv, point.slowdown, point.detector))
    )
    caption = (
        "Observations until the alarm: their mean where no change was missed, and their median, where a missed one "
        "counts as longer than all others. Missed is what was not told within the limit of the measurement. "
        "The bound is ln(ARL)/KL (Lorden), ARL the mean run between false alarms. "
        "No detector alarms before the first observation, so delays are compared with the bound or 1, if that is more."
    )
    columns = (
        "detector",
        "noise, CV",
        "slowdown",
        "mean delay",
        "median",
        "bound",
        "mean / max(bound, 1)",
        "missed, %",
        "false alarms per 1,000",
    )
    return Table(title, caption, columns, rows, labels=3, folded=True).without_empty()


def validation_table(found: Iterable[Validation], title: str) -> Table:
    """Simulated against live, with the difference and whether it is within what is asked."""

    def off(simulated: float, live: float, most: float) -> Value:
        error = simulated / live - 1 if live > 0 else math.nan
        return Value.of(error * 100, "+.1f", extra="" if abs(error) <= most else "(missed)")

    rows: tuple[Row, ...] = tuple(
        (
            item.name,
            item.policy,
            Value.of(item.live_hz, ".2f"),
            Value.of(item.simulated_hz, ".2f"),
            off(item.simulated_hz, item.live_hz, 0.05),
            Value.of(item.live_p99_s * 1e3, ".0f"),
            Value.of(item.simulated_p99_s * 1e3, ".0f"),
            off(item.simulated_p99_s, item.live_p99_s, 0.15),
        )
        for item in found
    )
    columns = (
        "run",
        "policy",
        "live, /s",
        "simulated, /s",
        "off, %",
        "live p99, ms",
        "simulated p99, ms",
        "p99 off, %",
    )
    caption = "Asked are 5% in throughput and 15% in p99 latency; what is farther off is marked as missed."
    return Table(title, caption, columns, rows, labels=2).without_empty()


def order_table(found: Iterable[Validation], title: str) -> Table:
    """Whether the simulator puts the policies in the order that they have live."""
    names: dict[str, list[Validation]] = {}
    for item in found:
        names.setdefault(item.name, []).append(item)
    rows: list[Row] = []
    for name, items in names.items():
        if len(items) > 1:
            live = sorted(items, key=lambda item: -item.live_hz)
            simulated = sorted(items, key=lambda item: -item.simulated_hz)
            pairs = [(a, b) for at, a in enumerate(items) for b in items[at + 1 :]]
            alike = sum((a.live_hz - b.live_hz) * (a.simulated_hz - b.simulated_hz) > 0 for a, b in pairs)
            order = (" > ".join(item.policy for item in items) for items in (live, simulated))
            rows.append((name, *order, f"{alike} of {len(pairs)}"))
    caption = "Policies from the highest throughput to the lowest, and how many pairs of them are in the same order."
    return Table(title, caption, ("run", "live", "simulated", "pairs alike"), tuple(rows), labels=4)
