"""The lines of a fleet: memory, requests and how good predictions are, and a row per executor."""

from __future__ import annotations

import math

from rich.text import Text

from odin.monitor.view.colors import DISTURBED, LOST, QUIET
from odin.monitor.view.event_text import factor, figure, seconds
from odin.monitor.view.fleet_view import FleetState
from odin.monitor.view.sparkline import Glyphs
from odin.monitor.view.textfit import clean, fit

__all__ = ["fleet_lines"]

_DISTURBED = 1.2
"""An executor that is slower than this is shown as disturbed."""
_DEVICE_WIDTH = 14


def fleet_lines(view: FleetState, *, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """At most so many lines; rows of executors that do not fit are counted in the last one."""
    lines = [_memory(view), _requests(view), *_deadlines(view), *_predictions(view)]
    if view.last_used:
        names = ", ".join(clean(name, glyphs) for name in view.last_used)
        lines.append(_line("last used", names))
    lines += _executors(view, max(1, height - len(lines)), glyphs)
    return [fit(line, width, glyphs) for line in lines[: max(0, height)]]


def _line(heading: str, text: str, style: str = "bold") -> Text:
    return Text(f" {heading} ", style="dim").append(text, style=f"not dim {style}".rstrip())


def _memory(view: FleetState) -> Text:
    line = _line("in memory", f"{view.resident:,} of {view.models:,} models")
    return line.append(f"  {figure(view.resident_mib)} of {figure(view.memory_mib)} MiB", style="not dim").append(
        f"  {view.loads:,} loads  {view.evictions:,} evictions", style="not dim"
    )


def _requests(view: FleetState) -> Text:
    taken = view.hits + view.cold
    share = f"{view.hits / taken:.1%}" if taken else "-"
    line = _line("requests", f"{view.hits:,} hits ({share})")
    line.append(f"  {view.cold:,} cold starts", style="not dim")
    return line.append(f"  {view.waiting:,} waiting", style="not dim")


def _deadlines(view: FleetState) -> list[Text]:
    if not (view.in_time or view.late or view.refused):
        return []
    line = _line("deadlines", f"{view.in_time:,} in time").append(f"  {view.refused:,} refused", style="not dim")
    return [line.append(f"  {view.late:,} late", style=f"not dim {f'bold {LOST}' if view.late else ''}".rstrip())]


def _predictions(view: FleetState) -> list[Text]:
    told = [
        f"{one.kind} {seconds(one.actual_s)}, {one.within:.0%} within {seconds(one.predicted_s)}"
        for one in view.predictions
        if math.isfinite(one.predicted_s)
    ]
    return [_line("of late", "  ".join(told), style="")] if told else []


def _executors(view: FleetState, room: int, glyphs: Glyphs) -> list[Text]:
    heading = Text(
        f" {'executor':<9}{'device':<{_DEVICE_WIDTH}}{'pid':>8}  {'state':<9}{'slowdown':>8}{'open':>7}", "dim"
    )
    rows = []
    for number, one in enumerate(view.executors):
        lost = one.state != "serving"
        slow = one.slowdown > _DISTURBED
        style = f"bold {LOST}" if lost else DISTURBED if slow else QUIET
        slowdown = "-" if lost else ("! " if slow else "") + factor(one.slowdown)
        row = Text(f" {number:<9}{clean(one.device, glyphs)[:_DEVICE_WIDTH]:<{_DEVICE_WIDTH}}{one.pid:>8}  ")
        rows.append(row.append(f"{one.state:<9}", style=style).append(f"{slowdown:>8}{one.models:>7}"))
    shown = rows[: room - 1]
    if len(shown) < len(rows):
        shown = [*rows[: room - 2], Text(f" and {len(rows) - max(0, room - 2)} more", style="dim")]
    return [heading, *shown][:room]
