"""The figures of runs: throughput over time, live bars, detection delays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from odin_lab.report.comparison import is_ours, order_policies
from odin_lab.report.figures import Layout, legend, panels
from odin_lab.report.measured import LIVE_VALUES
from odin_lab.report.medians import median_of
from odin_lab.report.results import Cell, DetectionPoint, Timeline
from odin_lab.report.style import DEVICES, INK, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["POINTS", "axis_end_hz", "beyond", "draw_detection", "draw_live", "draw_timelines", "mean_hz", "thinned"]

POINTS = 500
"""Points that a line over time has at most: more than a page can show."""
_LABELLED = 8
_USUAL = 0.95
"""Share of all points that the axis is made for ..."""
_ROOM = 1.5
"""... and it ends at this multiple of what they come to, if single points are beyond."""

FloatArray = NDArray[np.float64]


def thinned(at_s: Sequence[float], values: Sequence[float], points: int = POINTS) -> tuple[FloatArray, FloatArray]:
    """Means of neighbours, so that at most so many points are left; what is not finite is left out."""
    x, y = np.asarray(at_s, dtype=float), np.asarray(values, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if x.size <= points:
        return x, y
    parts = np.linspace(0, x.size, points + 1).astype(int)
    counts = np.diff(parts)
    return np.add.reduceat(x, parts[:-1]) / counts, np.add.reduceat(y, parts[:-1]) / counts


def mean_hz(timeline: Timeline) -> float:
    """Mean throughput over the time shown; the mean of the points alone would favour where requests are quick.

    A point's throughput holds since the point before it. nan if there is none.
    """
    at_s, rate_hz = np.asarray(timeline.at_s, dtype=float), np.asarray(timeline.throughput_hz, dtype=float)
    since_s = np.diff(at_s, prepend=0.0)
    kept = np.isfinite(rate_hz) & (since_s > 0)
    return float(np.average(rate_hz[kept], weights=since_s[kept])) if kept.any() else float("nan")


def axis_end_hz(timelines: Sequence[Timeline]) -> float:
    """Where an axis of throughput for all of these ends: single points far above the others do not set it.

    Everything up to 1.5 times what 95% of the points, or the best plan undisturbed, come to is on it, and there is room
    for the marks above.
    """
    values = sorted(value for timeline in timelines for value in _finite(timeline.throughput_hz))
    peaks = _finite([timeline.peak_hz for timeline in timelines])
    if not values:
        return 1.28 * (max(peaks, default=1.0) or 1.0)
    usual = max([values[int(_USUAL * (len(values) - 1))], *peaks])
    return 1.28 * (max(min(values[-1], _ROOM * usual) if usual > 0 else values[-1], *peaks, 0.0) or 1.0)


def beyond(timeline: Timeline, top: float) -> list[tuple[float, float]]:
    """Second and throughput of the points above ``top``."""
    points = zip(timeline.at_s, timeline.throughput_hz, strict=True)
    return [(at_s, value) for at_s, value in points if np.isfinite(value) and value > top]


def draw_timelines(layout: Layout, timelines: Sequence[Timeline], looks: Mapping[str, Look]) -> Figure:
    """Throughput over time, a panel per policy; below each the interference, a lane per device."""
    devices = sorted({event[2] for timeline in timelines for event in timeline.interference})
    figure, rows = _stacked(layout, len(timelines), lanes_in=min(0.13 * len(devices), 0.8))
    top = axis_end_hz(timelines)
    end_s = max(max(_finite(t.at_s), default=1.0) for t in timelines)
    for at, timeline in enumerate(timelines):
        axes, lanes = rows[at]
        look = looks[timeline.policy]
        x, y = thinned(timeline.at_s, timeline.throughput_hz)
        if np.isfinite(timeline.peak_hz):
            axes.axhline(timeline.peak_hz, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.plot(x, y, color=look.color, linewidth=1.3, zorder=3)
        shown = timeline.changes
        times = [time_s for time_s, _ in shown]
        axes.plot(
            times, [top * 0.96] * len(times), "v", color=INK, markersize=4.0 if len(times) < 60 else 2.5, zorder=4
        )
        turned = [time_s for time_s, _ in timeline.turns]
        axes.plot(turned, [top * 0.96] * len(turned), "D", color=INK, markersize=3.0, fillstyle="none", zorder=4)
        if len(times) <= 30:
            axes.vlines(times, 0, top * 0.94, color=INK, linewidth=0.6, alpha=0.6, zorder=2)
        _label_changes(axes, timeline, end_s=end_s, top=top, layout=layout)
        _mark_beyond(axes, beyond(timeline, top), end_s=end_s, top=top, layout=layout)
        axes.set_ylim(0, top)
        axes.set_xlim(0, end_s)
        axes.set_title(timeline.policy, color=look.color, weight="bold" if look.width > 2 else "normal", pad=3)
        changes = f"{len(times)} plan change{'s' if len(times) != 1 else ''}"
        if turned:
            changes += f", {len(turned)} other decision{'s' if len(turned) != 1 else ''}"
        rate = f"mean {mean_hz(timeline):.3g}/s, " if y.size else ""
        axes.set_title(f"{rate}{changes}", loc="right", pad=3, size=layout.size_pt - 1)
        axes.tick_params(labelbottom=False, length=2)
        for color, spans in _spans(timeline, devices, end_s):
            axes.broken_barh(
                spans, (0, 1), transform=axes.get_xaxis_transform(), color=color, alpha=0.16, linewidth=0, zorder=0
            )
        _draw_lanes(lanes, timeline, devices, end_s=end_s, layout=layout)
        last = at == len(timelines) - 1
        lanes.tick_params(labelbottom=last, bottom=last)
        lanes.spines["bottom"].set_visible(last)
    rows[-1][1].set_xlabel("seconds")
    figure.text(0.005, 0.5, "throughput, requests/s", rotation="vertical", va="center", size=layout.size_pt)
    return figure


def _stacked(layout: Layout, count: int, *, lanes_in: float) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Panels of the same size below each other, lanes close to each; made by hand, as all of it is known."""
    from matplotlib.figure import Figure

    left_in, right_in, title_in, panel_in, gap_in, bottom_in = 0.72, 0.12, 0.24, 0.95, 0.05, 0.42
    lanes_in = max(lanes_in, 0.02)
    each_in = title_in + panel_in + gap_in + lanes_in + 0.06
    height_in = count * each_in + bottom_in
    figure = Figure(figsize=(layout.width_in, height_in))
    width = (layout.width_in - left_in - right_in) / layout.width_in

    def place(bottom_in: float, own_in: float, share: Axes | None) -> Axes:
        where = (left_in / layout.width_in, bottom_in / height_in, width, own_in / height_in)
        return figure.add_axes(where, sharex=share)

    found: list[tuple[Axes, Axes]] = []
    for at in range(count):
        top_in = height_in - at * each_in - title_in
        axes = place(top_in - panel_in, panel_in, found[0][0] if found else None)
        found.append((axes, place(top_in - panel_in - gap_in - lanes_in, lanes_in, axes)))
    return figure, found


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _label_changes(axes: Axes, timeline: Timeline, *, end_s: float, top: float, layout: Layout) -> None:
    """What was decided beside each mark, where there is room for all of them."""
    size = layout.size_pt - 2.5
    marks = sorted((*timeline.changes, *timeline.turns))
    if not marks or len(marks) > _LABELLED:
        return
    widths_s = [(len(label) * 0.62 + 1.5) * size / 72 / (layout.width_in * 0.9) * end_s for _, label in marks]
    begins = [time_s for time_s, _ in marks]
    if any(b + w > n for b, w, n in zip(begins, widths_s, [*begins[1:], end_s], strict=True)):
        return
    for (time_s, label), width_s in zip(marks, widths_s, strict=True):
        axes.text(time_s + width_s * 0.12, top * 0.955, label, size=size, va="center", zorder=4)


def _mark_beyond(
    axes: Axes, points: Sequence[tuple[float, float]], *, end_s: float, top: float, layout: Layout
) -> None:
    """Arrows where the line leaves the axes, and how far the farthest one goes."""
    if not points:
        return
    axes.plot([at_s for at_s, _ in points], [top * 0.86] * len(points), "^", color=INK, markersize=4.0, zorder=4)
    at_s, value = max(points, key=itemgetter(1))
    right = at_s > 0.8 * end_s  # the text goes where there is room
    axes.text(
        at_s + (-0.008 if right else 0.008) * end_s,
        top * 0.86,
        f"{value:.3g}/s",
        size=layout.size_pt - 2.5,
        ha="right" if right else "left",
        va="center",
        zorder=4,
    )


def _draw_lanes(lanes: Axes, timeline: Timeline, devices: Sequence[int], *, end_s: float, layout: Layout) -> None:
    size = layout.size_pt - 2.5
    lanes.grid(visible=False)
    lanes.spines["left"].set_visible(False)
    lanes.set_ylim(len(devices) - 0.5 if devices else 0.5, -0.5)
    shown = list(range(len(devices))) if len(devices) <= 6 else []
    lanes.set_yticks(shown, [f"device {devices[at]}" for at in shown], size=size)
    lanes.tick_params(axis="y", length=0, pad=2)
    gap_s = end_s * 0.001  # those that follow at once are apart
    for at, (color, spans) in enumerate(_spans(timeline, devices, end_s)):
        lanes.broken_barh(
            [(s, max(width - gap_s, 0.0)) for s, width in spans], (at - 0.4, 0.8), color=color, linewidth=0
        )
    for start_s, stop_s, device, label in timeline.interference if shown else ():
        at, stop_s = devices.index(device), min(stop_s, end_s)
        room_in = (stop_s - start_s) / end_s * layout.width_in * 0.9
        if (len(label) + 1) * 0.66 * size / 72 < room_in:
            lanes.text((start_s + stop_s) / 2, at, label, size=size, ha="center", va="center_baseline", color="#ffffff")


def _spans(timeline: Timeline, devices: Sequence[int], end_s: float) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Colour, and begin and length of each interference, by device: an artist for each event would take very long."""
    for at, device in enumerate(devices):
        own = [
            (begin, max(min(end, end_s) - begin, 0.0)) for begin, end, on, _ in timeline.interference if on == device
        ]
        yield DEVICES[at % len(DEVICES)], own


def draw_live(layout: Layout, cells: Sequence[Cell], looks: Mapping[str, Look]) -> Figure:
    """Medians as bars with their intervals, a panel per quantity."""
    from matplotlib.ticker import MaxNLocator

    policies = order_policies(cell.policy for cell in cells)
    shown = [
        (name, [median_of(value(cell) for cell in cells if cell.policy == policy)[:3] for policy in policies], form)
        for name, value, _, form in LIVE_VALUES
    ]
    shown = [(name, values, form) for name, values, form in shown if any(np.isfinite(value[0]) for value in values)]
    longest = max(map(len, policies))
    height_in = 0.24 * len(policies) + 0.6
    figure, found = panels(layout, len(shown), height_in=height_in, tick_letters=longest, x_label=False, y_label=False)
    for axes, (name, values, form) in zip(found, shown, strict=True):
        middles = [value[0] for value in values if np.isfinite(value[0])]
        most = min(max(np.nanmax(value) for value in values if np.isfinite(value[0])), _ROOM * max(middles))
        most = most if most > 0 else max(middles)
        for at, (policy, (middle, low, high)) in enumerate(zip(policies, values, strict=True)):
            if not np.isfinite(middle):
                axes.text(0, at, " not measured", va="center", size=layout.size_pt - 2)
                continue
            look = looks[policy]
            axes.barh(at, middle, height=0.68, color=look.color, alpha=1.0 if look.width > 2 else 0.7)
            end = middle
            if np.isfinite(low):
                axes.errorbar(middle, at, xerr=[[middle - low], [high - middle]], color=INK, linewidth=1, capsize=2)
                end = min(high, most)
            told = f"{middle:{form}}" + (f" (to {high:{form}})" if high > most else "")
            axes.text(end + most * 0.03, at, told, va="center", size=layout.size_pt - 1.5)
        axes.set_title(name)
        axes.set_xlim(0, most * 1.3 if most > 0 else 1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_yticks(range(len(policies)), policies)
        axes.set_ylim(len(policies) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    for label in (label for axes in found for label in axes.get_yticklabels() if is_ours(label.get_text())):
        label.set_fontweight("bold")
    return figure


def draw_detection(layout: Layout, points: Sequence[DetectionPoint]) -> Figure:
    """Delay over slowdown, a panel per noise, beside the least there can be; medians where some changes were missed."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    detectors = sorted({point.detector for point in points}, key=lambda name: ("cusum" not in name.lower(), name))
    marks = dict(zip(detectors, _detector_looks(len(detectors)), strict=True))
    noises = sorted({point.noise_cv for point in points})
    bound = Look(INK, "", (0, (4, 2)), 1.0)
    shown = [*marks.items(), ("bound", bound)]
    figure, found = panels(layout, len(noises), height_in=2.5, entries=[name for name, _ in shown])
    for axes, noise in zip(found, noises, strict=True):
        for detector in reversed(detectors):
            own = sorted((p for p in points if (p.detector, p.noise_cv) == (detector, noise)), key=lambda p: p.slowdown)
            x = [point.slowdown for point in own]
            look = marks[detector]
            axes.plot(x, [p.bound for p in own], color=INK, linestyle=bound.dash, linewidth=bound.width, zorder=2)
            axes.plot(
                x,
                [p.typical if np.isfinite(p.typical) else np.nan for p in own],
                color=look.color,
                marker=look.marker,
                linestyle=look.dash,
                linewidth=look.width,
                zorder=3,
            )
        axes.set_title(f"noise {noise:.0%}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.axhline(1.0, color=INK, linewidth=0.5)
        axes.set_xlabel("slowdown")
    for axes in found[:: 1 if layout.narrow else layout.columns]:
        axes.set_ylabel("observations until the alarm")
    legend(figure, layout, shown)
    return figure


def _detector_looks(count: int) -> list[Look]:
    colors = ("#c25400", "#0072b2", "#007d5b", "#b0508c", "#857000", "#007f98", "#7a5c3a")
    dashes = ("-", (0, (3, 1.2)), (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.2, 1.2)), (0, (8, 2)), (0, (2, 2)))
    markers = "os^vDPX"
    return [Look(colors[at % 7], markers[at % 7], dashes[at % 7], 2.2 if at == 0 else 1.4) for at in range(count)]
