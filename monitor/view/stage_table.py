"""The rows of stages: columns for the width there is, the disturbed ones first where not all fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from odin.monitor.view.colors import DISTURBED, LOST, QUIET
from odin.monitor.view.event_text import factor, seconds, stage_cause
from odin.monitor.view.pipeline_view import PipelineView, StageView
from odin.monitor.view.sparkline import Glyphs
from odin.monitor.view.textfit import clean, fit, fit_end, pad, wrap

__all__ = ["STYLES", "bar", "share_bar", "stage_lines"]

STYLES = {"quiet": QUIET, "disturbed": DISTURBED, "bypassed": "dim", "empty": "dim"} | dict.fromkeys(
    ("hung", "lost"), f"bold {LOST}"
)
_HANDS_OVER = "hands over at"
_LEAST_BAR = 8
_WIDEST_BAR = 64
_DEVICE_WIDTH, _WIDE_DEVICE_WIDTH = 14, 40


class _Column(NamedTuple):
    """A column right of the bar; ``rank`` says which ones go first where the width does not do for all."""

    heading: str
    width: int
    rank: int
    cell: Callable[[StageView, Glyphs], str]
    left: bool = False


def _time(stage: StageView, _: Glyphs) -> str:
    if stage.state in ("empty", "hung", "lost"):
        return stage.state
    return "bypassed" if stage.request_share == 0.0 else seconds(stage.time_s)


def _slowdown(stage: StageView, _: Glyphs) -> str:
    return ("! " if stage.state == "disturbed" else "") + (
        "-" if stage.state in ("hung", "lost") else factor(stage.slowdown)
    )


def _busy(stage: StageView, _: Glyphs) -> str:
    return "-" if math.isnan(stage.utilisation) else f"{stage.utilisation:.0%}"


def _busy_bar(stage: StageView, glyphs: Glyphs) -> str:
    return "" if math.isnan(stage.utilisation) else bar(0, stage.utilisation, 1, 6, glyphs)


def _alone(stage: StageView, _: Glyphs) -> str:
    return seconds(stage.reference_s) if stage.reference_s > 0 and stage.request_share != 0.0 else "-"


def _hand_over(stage: StageView, layer_count: int) -> str:
    if not stage.last_quartiles or stage.request_share == 0.0:
        return "-"
    low, high = stage.last_quartiles
    if low == layer_count:
        return "end"
    at, first, last = ("end" if cut == layer_count else str(cut) for cut in (stage.last, low, high))
    return at if low == high else f"{at} ({first}-{last})"


def _hand_overs(layer_count: int) -> _Column:
    """The layer before which a later stage takes over, and its quartiles, where that differs between requests."""
    return _Column(_HANDS_OVER, 13, 4, lambda stage, _: _hand_over(stage, layer_count))


_COLUMNS = (
    _Column("time", 8, 2, _time),
    _Column("alone", 8, 5, _alone),
    _Column("slowdown", 8, 1, _slowdown),
    _Column("queue", 8, 6, lambda stage, _: seconds(stage.queue_s)),
    _Column("busy", 4, 3, _busy),
    _Column("", 6, 7, _busy_bar, left=True),
    _Column("state", 9, 8, lambda stage, _: stage.state, left=True),
)
_OFTEN, _AT_TIMES = 0.75, 0.25
_CAUSE_WIDTH = 34
_CAUSE_FROM = 130
"""From this width on the cause has a column; below, a line of its own."""
_REMARK_LINES = (6, 3, 1)
"""Lines that a cause has at most below its row, fewer where they do not fit."""
_NAMES_WIDTH = 24
_NAMES_FROM = 170


def stage_lines(view: PipelineView, *, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """At most ``height`` lines, each at most ``width`` wide: a heading if there is room, and a row per stage.

    A disturbed stage has its cause beside it if that has room, or below it. If there are more stages than lines, the
    disturbed and lost ones are kept, then the first ones, and a last line tells how many are hidden.
    """
    if height <= 0:
        return []
    stages, heading = view.stages, height > min(len(view.stages), 2)
    room = height - heading
    shown, hidden = _choose(stages, room)
    layout = _Layout(view, shown, width, glyphs)
    room -= len(shown) + bool(hidden)
    legend = layout.legend()
    for most in _REMARK_LINES:  # long remarks give way to the legend, the legend to short ones
        remarks = [layout.remark(stage, most) for stage in shown]
        if below := sum(map(len, remarks)) <= room - (len(legend) if most > 1 else 0):
            break
    lines = [layout.heading()] if heading else []
    for stage, remark in zip(shown, remarks, strict=True):
        lines.append(layout.row(stage, below=below and remark != []))
        lines += remark if below else []
    if hidden:
        lines.append(fit(Text(f" {glyphs.ellipsis} {_count(hidden)}", style="dim"), width, glyphs))
    return lines + legend if len(lines) + len(legend) <= height else lines[:height]  # half a legend explains nothing


def bar(first: float, last: float, total: float, width: int, glyphs: Glyphs) -> str:
    """Cells of which ``[first, last)`` of ``total`` are filled, to half a cell; at least a half if it is not empty."""
    if total <= 0 or width <= 0:
        return glyphs.free * max(0, width)
    begin, end = round(2 * width * first / total), round(2 * width * last / total)
    if last > first and end == begin:
        begin, end = (begin, begin + 1) if begin < 2 * width else (begin - 1, begin)
    halves = [begin <= half < end for half in range(2 * width)]
    kinds = {
        (True, True): glyphs.held,
        (False, True): glyphs.half_right,
        (True, False): glyphs.half_left,
        (False, False): glyphs.free,
    }
    return "".join(kinds[halves[2 * cell], halves[2 * cell + 1]] for cell in range(width))


def share_bar(shares: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Cells of how often each layer is run, beside that of which it is most often: filled, blurred from a quarter on.

    Examples
    --------
    >>> from odin.monitor.view.sparkline import ASCII
    >>> share_bar([1.0, 1.0, 0.5, 0.0], 8, ASCII), share_bar([0.0, 0.2, 0.1, 0.0], 4, ASCII)
    ('####==..', '.#=.')
    """
    most, count = max(shares, default=0.0), len(shares)
    if most <= 0 or width <= 0:
        return glyphs.free * max(0, width)
    cells = []
    for cell in range(width):
        begin, end = count * cell / width, count * (cell + 1) / width
        parts = [
            (min(end, layer + 1) - max(begin, layer)) * shares[layer] for layer in range(int(begin), math.ceil(end))
        ]
        part = sum(parts) / (end - begin) / most
        cells.append(glyphs.held if part >= _OFTEN else glyphs.blurred if part >= _AT_TIMES else glyphs.free)
    return "".join(cells)


def _choose(stages: Sequence[StageView], room: int) -> tuple[list[StageView], list[StageView]]:
    if len(stages) <= room:
        return list(stages), []
    order = {"lost": 0, "hung": 0, "disturbed": 1}

    def urgency(stage: StageView) -> tuple[int, float, int]:
        slowdown = 0.0 if math.isnan(stage.slowdown) or stage.state != "disturbed" else stage.slowdown
        return order.get(stage.state, 2), -slowdown, stage.stage

    ranked = sorted(stages, key=urgency)
    shown = {stage.stage for stage in ranked[: max(0, room - 1)]}
    return [s for s in stages if s.stage in shown], [s for s in stages if s.stage not in shown]


def _count(hidden: Sequence[StageView]) -> str:
    counts = {state: sum(stage.state == state for stage in hidden) for state in STYLES}
    words = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{len(hidden)} more: " + (", ".join(words) if len(words) > 1 else f"all {hidden[0].state}")


def _cause(stage: StageView) -> str:
    return "no request needed it of late" if stage.state == "bypassed" else stage_cause(stage)


class _Layout:
    """Which columns fit, and how wide the bar is then."""

    def __init__(self, view: PipelineView, shown: Sequence[StageView], width: int, glyphs: Glyphs) -> None:
        self._view, self._width, self._glyphs = view, width, glyphs
        self._index_width = len(str(len(view.stages) - 1))
        wide = width >= _CAUSE_FROM
        longest = max(cell_len(clean(stage.device, glyphs)) for stage in view.stages)
        self._device_width = min(longest, _WIDE_DEVICE_WIDTH if wide else _DEVICE_WIDTH if width >= 60 else 7)
        self.bar_at = 1 + self._index_width + 1 + self._device_width + 2
        left = width - self.bar_at - 1
        self._causes = _CAUSE_WIDTH if wide else 0
        self._names = _NAMES_WIDTH if width >= _NAMES_FROM else 0
        left -= sum(2 + extra for extra in (self._causes, self._names) if extra)
        chosen: list[_Column] = []
        columns = (_hand_overs(view.layer_count), *_COLUMNS) if view.windows else _COLUMNS
        for column in sorted(columns, key=lambda column: column.rank):
            needed = sum(2 + each.width for each in (*chosen, column))
            if left - needed >= (_LEAST_BAR if column.rank <= 3 else 20):
                chosen.append(column)
        self._columns = [column for column in columns if column in chosen]
        left = max(0, left - sum(2 + column.width for column in chosen))
        self._bar_width = min(left, 20)
        left -= self._bar_width
        if self._causes:  # what is to be read goes before a longer bar
            needed = max((self._cause_width(stage) for stage in shown), default=0) - self._causes
            grown = max(0, needed) if needed <= left else 0  # what does not fit goes below
            self._causes, left = self._causes + grown, left - grown
        if self._names:
            needed = max((cell_len(clean(_names(view, stage), glyphs)) for stage in shown), default=0) - self._names
            grown = min(left, max(0, needed))
            self._names, left = self._names + grown, left - grown
        grown = min(left, _WIDEST_BAR - self._bar_width)
        self._bar_width, left = self._bar_width + grown, left - grown
        self._causes += left * bool(self._causes)

    def _cause_width(self, stage: StageView) -> int:
        return cell_len(clean(_cause(stage), self._glyphs))

    def remark(self, stage: StageView, most: int) -> list[Text]:
        """The cause in lines below the row; none if it fits into the row."""
        if self._cause_width(stage) <= self._causes:
            return []
        glyphs = self._glyphs
        text = f"{glyphs.below} {stage.state}: {clean(_cause(stage), glyphs)}"
        broken = wrap(text, max(1, self._width - self.bar_at - 2), lines=most, glyphs=glyphs)
        indents = (" " * (self.bar_at + 2 * (at > 0)) for at in range(len(broken)))
        style = STYLES[stage.state]
        return [
            fit(Text(indent).append(line, style), self._width, glyphs)
            for indent, line in zip(indents, broken, strict=True)
        ]

    def legend(self) -> list[Text]:
        """What bars and cuts mean where requests change hands at cuts of their own; else nothing."""
        if not self._view.windows:
            return []
        glyphs = self._glyphs
        text = f"{glyphs.held} layers that a stage runs of most requests, {glyphs.blurred} of fewer"
        if any(column.heading == _HANDS_OVER for column in self._columns):
            text += "; hands over at: median cut (quartiles), end: nowhere, it answers"
        broken = wrap(text, max(1, self._width - 2), lines=2, glyphs=glyphs)
        return [Text(f" {line}", style="dim") for line in broken]

    def heading(self) -> Text:
        line = pad(Text(" stage"), self.bar_at)
        layers = f"layers 0-{self._view.layer_count - 1}"
        line.append((layers if len(layers) <= self._bar_width else "layers")[: self._bar_width].ljust(self._bar_width))
        if self._names:
            line.append("  " + "from ... to".ljust(self._names))
        for column in self._columns:
            line.append("  " + (column.heading.ljust if column.left else column.heading.rjust)(column.width))
        if self._causes:
            line.append("  cause")
        line.stylize("dim")
        return fit(line, self._width, self._glyphs)

    def row(self, stage: StageView, *, below: bool = False) -> Text:
        """A stage's row; with its cause, unless that is ``below``."""
        glyphs, style = self._glyphs, STYLES[stage.state]
        line = Text(f" {stage.stage:>{self._index_width}} ", style="")
        device = fit_end(clean(stage.device, glyphs), self._device_width, glyphs)
        line.append_text(pad(Text(device), self._device_width))
        line.append("  ")
        held = self._held(stage)
        for is_free, cells in groupby(held, key=lambda cell: cell == glyphs.free):
            line.append("".join(cells), style="dim" if is_free else style)
        if self._names:
            names = fit(Text(clean(_names(self._view, stage), glyphs)), self._names, glyphs)
            line.append("  ").append_text(pad(names, self._names))
        for column in self._columns:
            text = column.cell(stage, glyphs)
            line.append("  ")
            cell = (text.ljust if column.left else text.rjust)(column.width)
            line.append(cell, style=style if column.heading in ("slowdown", "state", "") else "")
        if self._causes and not below:
            line.append("  " + clean(_cause(stage), glyphs), style=style)
        return fit(line, self._width, glyphs)

    def _held(self, stage: StageView) -> str:
        if stage.request_share == 0.0:
            return self._glyphs.free * self._bar_width
        if stage.layer_shares:
            return share_bar(stage.layer_shares, self._bar_width, self._glyphs)
        return bar(stage.first, stage.last, self._view.layer_count, self._bar_width, self._glyphs)


def _names(view: PipelineView, stage: StageView) -> str:
    often = _often(stage)
    if not often:
        return "-"
    first, last = view.layers[often[0]], view.layers[often[-1]]
    return first if first == last else f"{first} ... {last}"


def _often(stage: StageView) -> Sequence[int]:
    """Layers that a stage runs, at least half as often as that which it runs most."""
    if stage.request_share == 0.0:
        return ()
    if not stage.layer_shares:
        return range(stage.first, stage.last)
    most = max(stage.layer_shares)
    return [layer for layer, share in enumerate(stage.layer_shares) if share >= most / 2 and share > 0]
