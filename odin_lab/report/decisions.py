"""Decisions of runs as a table, and knobs that are turned to keep a latency as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from odin_lab.report.figures import Layout, Plot, legend, panels
from odin_lab.report.parts import Data, Section, slug
from odin_lab.report.results import Decision, Timeline
from odin_lab.report.style import INK, Look
from odin_lab.report.tables import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["decisions", "decisions_table", "draw_knob"]

_KNOBS = ("batch", "instances")
_MOST_ROWS = 200
_FEW_ROWS = 30
"""A longer table is shown on demand."""
_MEAN = Look("#0072b2", "", "-", 1.2)
_TURN = Look("#c25400", "D", "none", 1.0)
_LIMIT = Look(INK, "", (0, (4, 2)), 0.9)


def decisions(data: Data) -> Section | None:
    """What runs decided: where requests change hands, how large batches are, how many instances, who shares what."""
    found = data.whole.decisions
    if not found:
        return None
    lines = {line.title: line for line in data.whole.timelines}
    plots = []
    for run in dict.fromkeys(one.run for one in found if one.what in _KNOBS):
        turns = [one for one in found if one.run == run and one.what in _KNOBS]
        times = f"turned {len(turns)} time{'s' if len(turns) != 1 else ''}"
        caption = (
            f"{turns[0].what} of {turns[0].model}, {times}: the latency that was held against the limit then "
            "(diamonds, with the knob's new value), the limit, and the mean latency over time."
        )
        draw = partial(draw_knob, turns=turns, line=lines.get(run))
        plots.append(Plot(slug("knob", run), f"A knob turned: {run}", caption, draw, data.having("decisions")))
    return Section("decisions", "Decisions", (), (decisions_table(found, "Decisions of runs"),), tuple(plots))


def decisions_table(found: Sequence[Decision], title: str) -> Table:
    """A row for each, by run and time."""
    order = {run: at for at, run in enumerate(dict.fromkeys(one.run for one in found))}
    kept = sorted(found, key=lambda one: (order[one.run], one.at_s))[:_MOST_ROWS]
    rows: tuple[Row, ...] = tuple(
        (one.run, f"{one.at_s:.1f}", one.model, one.what, one.before, one.after, one.why) for one in kept
    )
    left = len(found) - len(kept)
    caption = (
        "`plan`: where requests change hands; `batch`, `instances`: a knob that is turned so that a latency is kept; "
        "`together`: plans made for several pipelines at once; `variant`: how many requests of a family got it until "
        "the end, and why: `asked` is the preferred one that is accurate enough, which else is too slow for the "
        "`deadline` even undisturbed, would have been late by `interference`, or was `unloaded`."
        + (f" The first {len(kept)} of {len(found)}." if left else "")
    )
    columns = ("run", "at, s", "model", "what", "before", "after", "why")
    return Table(title, caption, columns, rows, labels=len(columns), folded=len(rows) > _FEW_ROWS)


def draw_knob(layout: Layout, turns: Sequence[Decision], line: Timeline | None) -> Figure:
    """Latency and limit over time; each turn with the value that the knob then has."""
    looks = [("mean latency", _MEAN), ("when a knob was turned", _TURN), ("limit", _LIMIT)]
    figure, (axes,) = panels(layout, 1, height_in=2.6, columns=1, entries=[name for name, _ in looks])
    if line is not None:
        axes.plot(line.at_s, [value * 1e3 for value in line.latency_s], color=_MEAN.color, linewidth=_MEAN.width)
    at_s, told_ms = [one.at_s for one in turns], [one.latency_s * 1e3 for one in turns]
    axes.plot(at_s, told_ms, _TURN.marker, color=_TURN.color, markersize=4.0, zorder=3)
    limits_ms = [one.limit_s * 1e3 for one in turns]
    end_s = max([*at_s, *(() if line is None else line.at_s)])
    axes.step(
        [0.0, *at_s, end_s],
        [limits_ms[0], *limits_ms, limits_ms[-1]],
        where="post",
        color=_LIMIT.color,
        linestyle=_LIMIT.dash,
        linewidth=_LIMIT.width,
    )
    for one in turns:
        if math.isfinite(one.latency_s):
            axes.annotate(
                one.after,
                (one.at_s, one.latency_s * 1e3),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                size=layout.size_pt - 2,
            )
    axes.set_xlim(0, end_s)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency, ms")
    legend(figure, layout, looks)
    return figure
