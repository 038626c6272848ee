"""A picture of a pipeline for a terminal: a view in, a renderable out, nothing else.

From top to bottom: what runs, throughput and latency with their last two minutes, a row per stage, what happened.
Every line is cut to the width and the lines fill the height, so nothing wraps and nothing scrolls.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from odin.monitor.view.colors import DISTURBED, LATENCY, LOAD, LOST, QUIET, THROUGHPUT
from odin.monitor.view.event_text import figure, plan_text, seconds, tenants_text, tuned_text
from odin.monitor.view.fleet_table import fleet_lines
from odin.monitor.view.fleet_view import FleetState, View
from odin.monitor.view.pipeline_view import EventLine, PipelineView
from odin.monitor.view.sparkline import ASCII, UNICODE, Glyphs, calm_top, chart, per_cell, sparkline, thin_out
from odin.monitor.view.stage_table import stage_lines
from odin.monitor.view.textfit import clean, fit, pad, wrap

__all__ = ["Picture", "plain", "plain_width", "render"]

_LABEL_WIDTH = 20
"""Cells left of a chart; more where figures are long."""
_HISTORY_S = 120
_TALL = 12
"""From this height on there are headings, charts and a footer."""
_LEAST_ROWS = 3
_MOST_OF_BOUND = 1.1
"""The bound is an estimate, and late where throughput is above it by more: then no share of it is told."""
_SIDE_BY_SIDE = 150
"""From this width on latency stands beside throughput."""
_PLAIN_EVENTS = 30
_EVENT_LINES = 4
"""Lines that an event has at most."""
_EVENT_STYLES = {
    "slowdown": DISTURBED,
    "attribution": DISTURBED,
    "plan": THROUGHPUT,
    "verified": THROUGHPUT,
    "together": THROUGHPUT,
    "restored": QUIET,
    "load": LOAD,
    "failure": LOST,
    "fault": LOST,
    "missing": LOST,
    "move-failed": LOST,
    "stage-lost": LOST,
    "stage-back": QUIET,
    "end": "bold",
    "knob": THROUGHPUT,
}


@dataclass(frozen=True)
class Picture:
    """A view that takes the size of the terminal it is drawn on, with a line at its foot.

    Parameters
    ----------
    view
        What to draw.
    keys
        What the keys do, at the left of the last line.
    status
        What the viewer itself does, such as ``paused``, at the right.
    height
        Lines; default: those of the terminal.
    """

    view: View
    keys: str = ""
    status: str = ""
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield render(
            self.view,
            width=options.max_width,
            height=self.height or options.height or console.height,
            ascii_only=options.ascii_only,
            keys=self.keys,
            status=self.status,
        )


def render(
    view: View,
    *,
    width: int,
    height: int,
    ascii_only: bool = False,
    keys: str = "",
    status: str = "",
) -> Text:
    """Draw a view.

    Parameters
    ----------
    view
        What to draw.
    width, height
        Cells and lines there are; no line is longer, and there are at most so many.
    ascii_only
        Draw with ASCII characters. Colour is the console's business: nothing is told by colour alone.
    keys, status
        Left and right part of the last line.

    Returns
    -------
    rich.text.Text
        The lines.
    """
    glyphs = ASCII if ascii_only else UNICODE
    tall = height >= _TALL
    blank = [Text()] if height >= 20 else []
    footer = [*blank, _both_ends(Text(f" {keys}", style="dim"), Text(f"{status} "), width, glyphs)] if tall else []
    if isinstance(view, FleetState):
        heading = [_fleet_header(view, width, glyphs), *blank]
        room = height - len(heading) - len(footer) - len(blank)
        own = fleet_lines(view, width=width, height=max(1, room - min(6, room // 4)), glyphs=glyphs)
        lines = [*heading, *own, *blank]
        lines += _events(view.events, width, height - len(lines) - len(footer), glyphs, heading=tall)
        lines += [Text()] * (height - len(lines) - len(footer))
        return _join([*lines[: max(0, height - len(footer))], *footer][:height])
    promises = [*_promises(view, width, glyphs), *_tuned(view, width, glyphs)] if tall else []
    top = [_header(view, width, glyphs), *blank, *_measures(view, width, height, glyphs), *promises, *blank]
    loads = [*_tenants(view, width, glyphs), *_loads(view, width, glyphs)] if tall else []
    room = height - len(top) - len(loads) - len(footer)
    least_events = min(6, room // 4)
    stages = stage_lines(view, width=width, height=room - least_events - len(blank), glyphs=glyphs)
    lines = [*top, *stages, *loads, *blank]
    lines += _events(view.events, width, height - len(lines) - len(footer), glyphs, heading=tall)
    lines += [Text()] * (height - len(lines) - len(footer))
    return _join([*lines[: max(0, height - len(footer))], *footer][:height])


def plain(view: View, *, width: int = 100, ascii_only: bool = False) -> str:
    """Draw a view as plain text without escape codes: every stage, and the last events.

    Parameters
    ----------
    view
        What to draw.
    width
        Cells of the longest line.
    ascii_only
        Draw with ASCII characters.
    """
    glyphs = ASCII if ascii_only else UNICODE
    if isinstance(view, FleetState):
        lines = [_fleet_header(view, width, glyphs), Text()]
        lines += [*fleet_lines(view, width=width, height=len(view.executors) + 20, glyphs=glyphs), Text()]
    else:
        lines = [_header(view, width, glyphs), Text(), *_measures(view, width, 24, glyphs)]
        lines += [*_promises(view, width, glyphs), *_tuned(view, width, glyphs), Text()]
        height = 2 * len(view.stages) + 1 + 2 * bool(view.windows)
        lines += stage_lines(view, width=width, height=height, glyphs=glyphs)
        lines += [*_tenants(view, width, glyphs), *_loads(view, width, glyphs), Text()]
    lines += _events(view.events[-_PLAIN_EVENTS:], width, _PLAIN_EVENTS + 1, glyphs, heading=True)
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(_join(lines), no_wrap=True, overflow="crop", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip() + "\n"


def plain_width() -> int:
    """Cells of a line of plain text: those of the terminal it goes to, or 100 for a file or a pipe."""
    return Console().width if sys.stdout.isatty() else 100


def _join(lines: list[Text]) -> Text:
    joined = Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
    joined.no_wrap, joined.overflow = True, "crop"
    return joined


def _both_ends(left: Text, right: Text, width: int, glyphs: Glyphs) -> Text:
    """Put one text at the left and one at the right edge; the left one gives way."""
    right = fit(right, width, glyphs)
    left = fit(left, max(0, width - right.cell_len - 1), glyphs)
    return pad(left, width - right.cell_len).append_text(right)


def _header(view: PipelineView, width: int, glyphs: Glyphs) -> Text:
    left = Text(" ").append(clean(view.model, glyphs), style="bold")
    if view.engine != "torch":
        left.append(f" {clean(view.engine, glyphs)}")
    left.append(f"  {_layers_per_stage(view)}", style=f"bold {THROUGHPUT}")
    left.append(f"  {clean(view.policy, glyphs)}")
    return _with_counts(left, view, width, glyphs)


def _fleet_header(view: FleetState, width: int, glyphs: Glyphs) -> Text:
    left = Text(" ").append(f"fleet {clean(view.name, glyphs)}", style="bold").append(f"  {clean(view.policy, glyphs)}")
    return _with_counts(left, view, width, glyphs)


def _with_counts(left: Text, view: View, width: int, glyphs: Glyphs) -> Text:
    """The first line: what runs, and at the right how many requests it has done, and for how long it runs."""
    right = Text()
    if view.ended is not None:
        right.append("ended", style="bold")
    if width >= 60:
        right.append(f"  {view.completed:,} done")
        if view.failed:
            right.append(f"  {view.failed:,} failed", style=f"bold {LOST}")
        if view.in_flight is not None:
            right.append(f"  {view.in_flight} in flight")
    elif view.failed:
        right.append(f"  {view.failed:,} failed", style=f"bold {LOST}")
    return _both_ends(left, right.append(f"  {_clock(view.uptime_s)} "), width, glyphs)


def _layers_per_stage(view: PipelineView) -> str:
    """The plan, or means of what stages run of a request where that varies."""
    if not view.windows or not all(stage.layer_shares for stage in view.stages):
        return plan_text(view.plan)
    return f"about {plan_text([round(sum(stage.layer_shares)) for stage in view.stages])}"


def _clock(elapsed_s: float) -> str:
    minutes, second = divmod(int(elapsed_s), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


# -- throughput and latency -----------------------------------------------------------------------------------------


def _measures(view: PipelineView, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    if height < _TALL:
        return _measures_low(view, width, height, glyphs)
    rows = _LEAST_ROWS + min(5, max(0, (height - len(view.stages) - 20) // 4))  # stages first
    beside = width >= _SIDE_BY_SIDE
    across = (width - 2) // 2 if beside else width
    charts = [_throughput_chart(view, rows, glyphs), *_latency_charts(view, rows if beside else 2, glyphs)]
    longest = max(label.cell_len for one in charts for label in one.labels)
    label_width = max(_LABEL_WIDTH, min(longest + 2, across // 2))
    left, *latency = [one.lines(across, label_width, glyphs) for one in charts]
    right = [line for lines in latency for line in lines]
    if not beside:
        return [*left, *right]
    return [
        fit(pad(one or Text(), across + 2).append_text(other or Text()), width, glyphs)
        for one, other in zip_longest(left, right)
    ]


def _measures_low(view: PipelineView, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    rate = Text(" ").append(_rate(view), style="bold")
    rate.append(f" of {figure(view.fluid_bound_hz)} ")
    history = view.history
    cells = max(0, width - rate.cell_len - 1)
    values = list(history.throughput_hz[-cells:]) if cells else []
    top = calm_top(values, at_least=history.fluid_bound_hz)
    rate.append(sparkline(values, top=top, glyphs=glyphs), style=THROUGHPUT)
    lines = [fit(rate, width, glyphs)]
    if height >= 8:
        text = f" p50 {seconds(view.latency_p50_s)}  p99 {seconds(view.latency_p99_s)}"
        lines.append(fit(Text(text), width, glyphs))
    return lines


def _promises(view: PipelineView, width: int, glyphs: Glyphs) -> list[Text]:
    """How deadlines were kept, and how far completions were from what was expected; nothing without deadlines."""
    if not (view.in_time or view.late or view.refused):
        return []
    line = Text(" deadlines ", style="dim").append(f"{view.in_time:,} in time", style="not dim bold")
    line.append(f"  {view.late:,} late", style=f"not dim {f'bold {LOST}' if view.late else ''}".rstrip())
    line.append(f"  {view.refused:,} refused", style="not dim")
    if math.isfinite(view.off_p99_s):
        off = f"p50 {_signed(view.off_p50_s)}, p99 {_signed(view.off_p99_s)} off what was expected"
        line.append(f"  {off}")
    return [fit(line, width, glyphs)]


def _tuned(view: PipelineView, width: int, glyphs: Glyphs) -> list[Text]:
    """The setting that is adjusted to a latency limit; nothing if none is."""
    if view.tuned is None:
        return []
    return [fit(Text(" tuning ", style="dim").append(tuned_text(view.tuned), "not dim"), width, glyphs)]


def _signed(value_s: float) -> str:
    return f"{'+' if value_s >= 0 else '-'}{seconds(abs(value_s))}"


class _Chart(NamedTuple):
    """A history beside its labels, one a line.

    Attributes
    ----------
    labels
        The figures at the left.
    past, bounds
        A value for each second, and what they are bounded by.
    end
        Second after the last of them.
    top
        The value that fills it.
    rows
        Height.
    style
        Colour.
    """

    labels: list[Text]
    past: Sequence[float]
    bounds: Sequence[float]
    end: int
    top: float
    rows: int
    style: str

    def lines(self, width: int, label_width: int, glyphs: Glyphs) -> list[Text]:
        """Draw it, the labels in ``label_width`` cells."""
        cells = max(0, width - label_width - 2)
        count = per_cell(_HISTORY_S, cells)
        values, bounds = (
            thin_out(series, count, end=self.end)[-cells:] if cells else [] for series in (self.past, self.bounds)
        )
        drawn = chart(values, bounds=bounds, top=self.top, height=self.rows, glyphs=glyphs)
        rows = zip_longest(self.labels, drawn, [None, *drawn[:-1]])
        return [
            _labelled(label, row or "", above, self.style, width, label_width, glyphs) for label, row, above in rows
        ]


def _rate(view: PipelineView) -> str:
    """Requests per second, and samples where these are others."""
    rate = f"{figure(view.throughput_hz)}/s"
    if not math.isfinite(view.samples_hz) or math.isclose(view.samples_hz, view.throughput_hz, rel_tol=0.005):
        return rate
    return f"{rate}, {figure(view.samples_hz)} samples/s"


def _throughput_chart(view: PipelineView, rows: int, glyphs: Glyphs) -> _Chart:
    history = view.history
    top = calm_top(history.throughput_hz, at_least=history.fluid_bound_hz)
    share = view.throughput_hz / view.fluid_bound_hz if view.fluid_bound_hz > 0 else math.nan
    percent = f" {share:.0%}" if share <= _MOST_OF_BOUND else ""
    most = _beyond(history.throughput_hz, top)
    labels = [
        Text("throughput" + (f" {glyphs.beyond} {figure(most)}/s" if most else ""), style="dim"),
        Text(_rate(view), style="bold"),
        Text(f"{glyphs.bound} bound {figure(view.fluid_bound_hz)}/s{percent}", style="dim"),
    ]
    return _Chart(labels, history.throughput_hz, history.fluid_bound_hz, history.seconds, top, rows, THROUGHPUT)


def _latency_charts(view: PipelineView, rows: int, glyphs: Glyphs) -> list[_Chart]:
    history, charts = view.history, []
    top = 1.1 * calm_top(history.latency_p99_s)  # one scale for both
    for name, now_s, past_s, height in (
        ("p50", view.latency_p50_s, history.latency_p50_s, rows // 2),
        ("p99", view.latency_p99_s, history.latency_p99_s, rows - rows // 2),
    ):
        label = Text(f"latency {name} " if height > 1 else f"{name} ", style="dim").append(
            seconds(now_s), style="not dim bold"
        )
        labels = [label]
        if most := _beyond(past_s, top):
            told = f"{glyphs.beyond} {seconds(most)}"
            labels = [label, Text(told, style="dim")] if height > 1 else [label.append(f" {told}", style="dim")]
        charts.append(_Chart(labels, past_s, (), history.seconds, top, height, LATENCY))
    return charts


def _beyond(past: Sequence[float], top: float) -> float:
    """The highest value if it is above the top of its chart, else 0."""
    most = max((value for value in past if math.isfinite(value)), default=0.0)
    return most if most > top else 0.0


def _labelled(
    label: Text | None, row: str, above: str | None, style: str, width: int, label_width: int, glyphs: Glyphs
) -> Text:
    """A line of a chart: the columns' tops stand out from what is below them."""
    line = pad(Text(" ").append_text(fit(label or Text(), label_width - 1, glyphs)), label_width + 1)
    covered = [above is not None and above[index] not in (glyphs.levels[0], glyphs.bound) for index in range(len(row))]
    styles = [
        "dim" if cell == glyphs.bound else f"dim {style}" if under else style
        for cell, under in zip(row, covered, strict=True)
    ]
    for chosen, cells in groupby(zip(row, styles, strict=True), key=itemgetter(1)):
        line.append("".join(cell for cell, _ in cells), style=chosen)
    return fit(line, width, glyphs)


# -- what happened --------------------------------------------------------------------------------------------------


def _tenants(view: PipelineView, width: int, glyphs: Glyphs) -> list[Text]:
    """Those that are planned together, and what share of each device this one has at most; nothing of one alone."""
    lines = []
    if len(view.together) > 1:
        lines.append(Text(" together ", style="dim").append(clean(tenants_text(view.together), glyphs), "not dim"))
    elif view.share < 1:
        lines.append(Text(" share ", style="dim").append(f"at most {view.share:.0%} of each device", "not dim"))
    return [fit(line, width, glyphs) for line in lines]


def _loads(view: PipelineView, width: int, glyphs: Glyphs) -> list[Text]:
    if not view.loads:
        return []
    loads = ", ".join(f"{load.name} on {load.on} at {load.intensity:.0%}" for load in view.loads)
    return [fit(Text(f" injected: {clean(loads, glyphs)}", style=LOAD), width, glyphs)]


def _events(events: tuple[EventLine, ...], width: int, height: int, glyphs: Glyphs, *, heading: bool) -> list[Text]:
    """The last events, oldest first."""
    if height <= 0:
        return []
    lines = [fit(Text(" events", style="dim"), width, glyphs)] if heading and height > 1 else []
    told: list[Text] = []
    for event in reversed(events):
        room = height - len(lines) - len(told)
        if room <= 0:
            break
        own = _event_lines(event, width, glyphs, most=_EVENT_LINES if heading else 1)
        if len(own) > room:
            own = _event_lines(event, width, glyphs, most=room)
        told = [*own, *told]
    return [*lines, *told]


def _event_lines(event: EventLine, width: int, glyphs: Glyphs, *, most: int) -> list[Text]:
    at = f" {event.at_s:7.1f} s  "
    style = f"not dim {_EVENT_STYLES.get(event.kind, '')}".rstrip()
    text = clean(event.text, glyphs)
    broken = wrap(text, width - len(at), lines=most, glyphs=glyphs) if width >= 2 * len(at) else [text]
    first, *rest = broken or [""]
    lines = [Text(at, style="dim").append(first, style=style)]
    lines += [Text(" " * (len(at) + 2)).append(more, style=style.replace("not dim", "")) for more in rest]
    return [fit(line, width, glyphs) for line in lines]
