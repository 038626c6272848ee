"""The figures over policies: latency distributions, heat maps, service levels, scaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odin_lab.report.comparison import Place, Score, mean, order_policies, pooled_quantiles
from odin_lab.report.figures import Layout, legend, panels
from odin_lab.report.results import QUANTILES, SLO_LEVELS, Cell
from odin_lab.report.style import INK, LOSS, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["below_peak", "draw_cdfs", "draw_heat", "draw_scaling", "draw_slo"]

Looks = Mapping[str, Look]
Groups = Mapping[str, Sequence[Cell]]
"""Cells by the panel's title."""


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], look: Look, *, marks: Sequence[int] | None = None
) -> None:
    axes.plot(
        x,
        y,
        color=look.color,
        linestyle=look.dash,
        linewidth=look.width,
        marker=look.marker,
        markevery=marks,
        markersize=4.5 if look.width > 2 else 4.0,
        markeredgewidth=0.9 if look.marker in "+x" else 0.4,
        zorder=4 if look.width > 2 else 3,
    )


def _by_policy(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {p: [cell for cell in cells if cell.policy == p] for p in order_policies(cell.policy for cell in cells)}


def draw_cdfs(layout: Layout, groups: Groups, looks: Looks) -> Figure:
    """Latency distributions, a panel per group, logarithmic in latency."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    figure, found = panels(layout, len(groups), height_in=2.6, entries=list(looks))
    for axes, (title, cells) in zip(found, groups.items(), strict=True):
        spread: list[float] = []
        for at, (policy, own) in enumerate(reversed(_by_policy(cells).items())):
            latency_ms = pooled_quantiles(own) * 1e3
            if np.isfinite(latency_ms).all():
                first = 5 + 3 * at % 20  # markers side by side, not on top of each other
                _line(axes, list(latency_ms), QUANTILES, looks[policy], marks=[*range(first, 96, 20), 99])
                spread += [latency_ms[0], latency_ms[-1]]
        axes.set_title(title)
        axes.set_xscale("log")
        wide = max(spread) / min(spread) > 30 if spread else True
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())  # its many small ticks, without numbers, take long
        axes.set_xlabel("latency, ms")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in found[:: 1 if layout.narrow else layout.columns]:
        axes.set_ylabel("requests answered within")
    legend(figure, layout, list(looks.items()))
    return figure


def below_peak(cells: Sequence[Cell]) -> np.ndarray:
    """Mean share of requests below each service level, shape (levels,); nan if no cell tells."""
    told = [cell.below_peak for cell in cells if cell.below_peak]
    return np.mean(told, axis=0) if told else np.full(len(SLO_LEVELS), np.nan)


def draw_slo(layout: Layout, groups: Groups, looks: Looks) -> Figure:
    """Share of requests below each share of the peak throughput, a panel per group."""
    from matplotlib.ticker import PercentFormatter

    figure, found = panels(layout, len(groups), height_in=2.6, entries=list(looks))
    for axes, (title, cells) in zip(found, groups.items(), strict=True):
        for policy, own in reversed(_by_policy(cells).items()):
            _line(axes, SLO_LEVELS, list(below_peak(own)), looks[policy])
        axes.set_title(title)
        axes.set_xlabel("throughput level, share of peak")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xticks(SLO_LEVELS[1::2])
        axes.set_ylim(bottom=0)
    for axes in found[:: 1 if layout.narrow else layout.columns]:
        axes.set_ylabel("requests below the level")
    legend(figure, layout, list(looks.items()))
    return figure


def draw_heat(
    layout: Layout,
    places: Mapping[Place, Mapping[str, Score]],
    policies: Sequence[str],
    value: Callable[[Score], float],
    looks: Looks,
    label: str,
) -> Figure:
    """Period x duration for each policy and model, annotated, all in one colour scale."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    models = sorted({place.model for place in places})
    periods = sorted({place.period for place in places})
    durations = sorted({place.duration for place in places})
    values = [value(found[policy]) for found in places.values() for policy in policies if policy in found]
    finite = [number for number in values if np.isfinite(number)]
    scale = Normalize(np.floor(min(finite) * 20) / 20 - (min(finite) > 0.9) * 0.05, max(1.0, *finite))
    colors = LinearSegmentedColormap.from_list("loss", LOSS)
    shown: list[tuple[str, str] | None]
    if layout.narrow:  # each model begins a line
        shown, across = [], 2
        for model in models:
            shown += [*((policy, model) for policy in policies), *([None] * (len(policies) % 2))]
    else:
        shown = [(policy, model) for policy in policies for model in models]
        across = len(models) if len(models) in (3, 4) else min(4, len(shown))
    # policy and model beside each other, or where there is no room, the model above the policy
    letters = max(len(policy) for policy in policies) + max(len(model) for model in models) + 2
    apart = len(models) > 1 and letters * 0.64 * layout.size_pt / 72 > layout.width_in / across - 0.35
    line_in, bar_in, label_in = layout.size_pt / 72, 0.75, 1.6 * layout.size_pt / 72
    height_in = 0.27 * len(periods) + 0.62 + 0.16 * apart
    down = -(-len(shown) // across)
    whole_in = down * height_in + bar_in
    figure = Figure(figsize=(layout.width_in, whole_in))
    ticks_in = max(len(f"{number:g}") for number in periods) * 0.62 * line_in + 0.08
    each_in = (layout.width_in - label_in) / across

    def corner(at: int) -> tuple[float, float, float, float]:
        row, column = divmod(at, across)
        x_in, y_in = label_in + column * each_in + ticks_in, whole_in - (row + 1) * height_in + 0.36
        own_in = each_in - ticks_in - 0.1
        return x_in / layout.width_in, y_in / whole_in, own_in / layout.width_in, 0.27 * len(periods) / whole_in

    mesh = None
    for at, pair in enumerate(shown):
        if pair is None:
            continue
        axes = figure.add_axes(corner(at))
        policy, model = pair
        cells = np.full((len(periods), len(durations)), np.nan)
        for place, found in places.items():
            if place.model == model and policy in found:
                cells[periods.index(place.period), durations.index(place.duration)] = value(found[policy])
        mesh = axes.pcolormesh(cells, cmap=colors, norm=scale, edgecolors="#ffffff", linewidth=1.0)
        for row, column in np.argwhere(np.isfinite(cells)):
            linear = np.array(colors(scale(cells[row, column]))[:3]) ** 2.2
            text = f"{cells[row, column]:.3f}"
            color = "#ffffff" if linear @ (0.2126, 0.7152, 0.0722) < 0.18 else "#000001"  # whichever contrasts more
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, size=layout.size_pt - 1)
        name = f"{model}\n{policy}" if apart else policy
        axes.set_title(name, color=looks[policy].color, weight="bold" if looks[policy].width > 2 else "normal", pad=3)
        if len(models) > 1 and not apart:
            axes.set_title(model, loc="right", pad=3, size=layout.size_pt - 1)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(len(durations)) + 0.5, [f"{number:g}" for number in durations])
        axes.set_yticks(np.arange(len(periods)) + 0.5, [f"{number:g}" for number in periods])
        if at % across == 0:
            axes.yaxis.set_label_coords(-(ticks_in + 0.1) / (each_in - ticks_in - 0.1), 0.5)
            axes.set_ylabel("period", verticalalignment="top")
        if not any(shown[at + across :: across]):
            axes.xaxis.set_label_coords(0.5, -0.18 / (0.27 * len(periods)))
            axes.set_xlabel("duration")
    assert mesh is not None
    below = figure.add_axes((0.2, 0.42 / whole_in, 0.6, 0.09 / whole_in))
    bar = figure.colorbar(mesh, cax=below, orientation="horizontal")
    bar.set_label(label)
    solids: Any = bar.solids
    solids.set(rasterized=False, edgecolor="face")
    bar.outline.set_linewidth(0.5)
    return figure


def draw_scaling(
    layout: Layout,
    places: Mapping[Place, Mapping[str, Score]],
    cells: Sequence[Cell],
    looks: Looks,
    references: Sequence[tuple[str, Callable[[Score], float], Callable[[Cell], float]]],
) -> Figure:
    """Ratios over devices, a panel per reference: means as lines, least to most of the repeats as bands."""
    figure, found = panels(
        layout,
        len(references),
        height_in=3.0,
        columns=2 if not layout.narrow else 1,
        entries=list(looks),
    )
    counts = sorted({place.devices for place in places})
    for axes, (label, of_score, of_cell) in zip(found, references, strict=True):
        for policy in reversed(order_policies(policy for group in places.values() for policy in group)):
            means, lows, highs = [], [], []
            for count in counts:
                own = [group[policy] for place, group in places.items() if place.devices == count and policy in group]
                told = _by_repeat([c for c in cells if c.devices == count and c.policy == policy], of_cell)
                means.append(mean(of_score(score) for score in own))
                lows.append(min(told, default=np.nan))
                highs.append(max(told, default=np.nan))
            look = looks[policy]
            if np.isfinite(means).any():
                if lows != highs:
                    axes.fill_between(counts, lows, highs, color=look.color, alpha=0.13, linewidth=0)
                _line(axes, counts, means, look)
        axes.axhline(1.0, color=INK, linewidth=0.6)
        axes.set_title(label)
        axes.set_xlabel("devices")
        axes.set_xticks(counts)
    found[0].set_ylabel("throughput ratio")
    legend(figure, layout, list(looks.items()))
    return figure


def _by_repeat(cells: Sequence[Cell], value: Callable[[Cell], float]) -> list[float]:
    """Each repeat's mean over its settings."""
    repeats = sorted({cell.repeat for cell in cells})
    means = [mean(value(cell) for cell in cells if cell.repeat == repeat) for repeat in repeats]
    return [number for number in means if np.isfinite(number)]
