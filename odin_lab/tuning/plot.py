"""The figure of a tuning: latency with its limit, the knob, and throughput, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from odin_lab.report.figures import Layout, Plot, legend, panels
from odin_lab.report.style import INK, Look
from odin_lab.tuning.serving import Serving

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["tuning_plot"]

_REQUEST = Look("#0072b2", "o", "none", 1.0)
_PERIOD = Look("#c25400", "", "solid", 1.6)
_LIMIT = Look(INK, "", (0, (4, 2)), 0.9)
_LOAD = "#9b1b30"
_POINTS = 4000


def tuning_plot(serving: Serving, *, limit_s: float, statistic: str, model: str) -> Plot:
    """The figure; where a load was there the ground is shaded."""

    def draw(layout: Layout) -> Figure:
        looks = [("request", _REQUEST), (f"{statistic} of a period", _PERIOD), (f"limit, {limit_s * 1e3:g} ms", _LIMIT)]
        figure, axes = panels(layout, 1, height_in=2.4, columns=1, entries=[name for name, _ in looks], tick_letters=5)
        lower = _more_panels(figure, axes[0])
        _draw_latency(axes[0], serving, limit_s)
        _draw_knob(lower[0], serving)
        _draw_throughput(lower[1], serving)
        for one in (axes[0], *lower):
            one.set_xlim(0, serving.seconds)
            for begin_s, end_s, _ in serving.spells:
                one.axvspan(begin_s, end_s, color=_LOAD, alpha=0.12, linewidth=0)
        axes[0].set_title(f"{model}: latency (ms)")
        for begin_s, _, load in serving.spells:
            place = axes[0].get_xaxis_transform()
            axes[0].text(begin_s, 0.02, f" load {load}", transform=place, va="bottom", color=_LOAD, fontsize="small")
        legend(figure, layout, looks)
        return figure

    loads = "".join(f"; shaded: {load}" for _, _, load in serving.spells)
    return Plot("tuning", f"{model}: {serving.knob} under a limit of {limit_s * 1e3:g} ms", f"{statistic}{loads}", draw)


def _more_panels(figure: Figure, first: Axes) -> list[Axes]:
    """Two panels below the first one, with scales of their own."""
    width_in, height_in = figure.get_size_inches()
    box, more_in = first.get_position(), 1.5
    whole_in = height_in + 2 * more_in
    figure.set_size_inches(width_in, whole_in)
    first.set_position(
        (box.x0, (box.y0 * height_in + 2 * more_in) / whole_in, box.width, box.height * height_in / whole_in)
    )
    made = []
    for row in (1, 0):
        at_in = box.y0 * height_in + row * more_in
        made.append(figure.add_axes((box.x0, at_in / whole_in, box.width, (more_in - 0.55) / whole_in)))
    return made


def _draw_latency(axes: Axes, serving: Serving, limit_s: float) -> None:
    shown = serving.done[:: max(1, len(serving.done) // _POINTS)]
    axes.plot(
        [one.at_s for one in shown],
        [one.latency_s * 1e3 for one in shown],
        linestyle="none",
        marker=_REQUEST.marker,
        markersize=2.5,
        markeredgewidth=0,
        color=_REQUEST.color,
        alpha=0.5,
    )
    if serving.periods:
        axes.step(
            [0.0, *(period.at_s for period in serving.periods)],
            [serving.periods[0].latency_s * 1e3, *(period.latency_s * 1e3 for period in serving.periods)],
            where="pre",
            color=_PERIOD.color,
            linewidth=_PERIOD.width,
        )
    axes.axhline(limit_s * 1e3, color=_LIMIT.color, linestyle=_LIMIT.dash, linewidth=_LIMIT.width)
    axes.set_ylim(bottom=0)


def _draw_knob(axes: Axes, serving: Serving) -> None:
    from matplotlib.ticker import MaxNLocator

    at_s = [0.0, *(period.at_s for period in serving.periods), serving.seconds]
    values = [serving.start, *(period.after for period in serving.periods)]
    axes.step(at_s, [*values, values[-1]], where="post", color=_PERIOD.color, linewidth=_PERIOD.width)
    axes.set_ylim(0, max(values) + 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_title("batch size" if serving.knob == "batch" else "number of instances")


def _draw_throughput(axes: Axes, serving: Serving) -> None:
    bins = np.arange(0.0, max(1.0, np.floor(serving.seconds)) + 1e-9, max(1.0, serving.seconds // 60))
    counts, edges = np.histogram(
        [one.at_s for one in serving.done], bins=bins, weights=[one.samples for one in serving.done]
    )
    axes.step(edges[1:], counts / np.diff(edges), where="pre", color=_REQUEST.color, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_title("samples per second")
    axes.set_xlabel("time (s)")
