"""The figure of a load: each request's latency, their distribution, and the rates that were tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from odin_lab.load.campaign import Finished
from odin_lab.load.figures import Request
from odin_lab.report.figures import Layout, Plot, legend, panels
from odin_lab.report.style import INK, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["load_plot"]

FloatArray = NDArray[np.float64]

_ANSWERED = Look("#0072b2", "o", "none", 1.4)
_FAILED = Look("#9b1b30", "x", "none", 1.4)
_MISSED = Look("#c25400", "v", "none", 1.4)
_BOUND = Look(INK, "", (0, (4, 2)), 0.9)
_POINTS = 4000
_SHARES = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.logspace(-1, -5, 120)])
_TICKS = (0, 0.5, 0.9, 0.99, 0.999, 0.9999)


def load_plot(finished: Sequence[Finished], *, chosen: Finished, bound_ms: float | None, model: str) -> Plot:
    """The figure.

    Parameters
    ----------
    finished
        All trials.
    chosen
        The one whose requests are shown.
    """

    def draw(layout: Layout) -> Figure:
        tried = [one for one in finished if one.figures.rate_hz is not None and one.figures.p99_s is not None]
        several = len(tried) > 1
        looks = [("answered", _ANSWERED), ("failed, at the time of its failure", _FAILED)]
        if several:
            looks += [("rate that missed the bound", _MISSED)]
        if bound_ms is not None:
            looks += [(f"bound, {bound_ms:g} ms", _BOUND)]
        looks = [look for look in looks if look[1] is not _FAILED or any(one.failure for one in chosen.requests)]
        figure, axes = panels(
            layout, 2 + several, height_in=2.7, columns=3, entries=[name for name, _ in looks], tick_letters=5
        )
        _draw_time(axes[0], chosen.requests)
        _draw_distribution(axes[1], chosen.requests)
        if several:
            _draw_rates(axes[2], tried)
        for one in axes:
            if bound_ms is not None:
                one.axhline(bound_ms, color=_BOUND.color, linestyle=_BOUND.dash, linewidth=_BOUND.width)
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[0].yaxis.set_minor_formatter(_between(axes[0]))
        for one in axes[1:]:
            one.tick_params(which="both", labelleft=False)
        axes[0].set_ylabel("latency (ms), from when it was due")
        axes[0].set_title(f"{model}: {chosen.title}")
        legend(figure, layout, looks)
        return figure

    return Plot("load", f"Latency of {model}", f"{chosen.title}", draw)


def _draw_time(axes: Axes, requests: Sequence[Request]) -> None:
    step = max(1, len(requests) // _POINTS)
    for look, shown in (
        (_ANSWERED, [one for one in requests if not one.failure][::step]),
        (_FAILED, [one for one in requests if one.failure][::step]),
    ):
        axes.plot(
            [one.due_s for one in shown],
            [max(one.latency_s * 1e3, 1e-3) for one in shown],
            linestyle="none",
            marker=look.marker,
            markersize=2.5 if look is _ANSWERED else 4.0,
            markeredgewidth=0 if look is _ANSWERED else 1.0,
            color=look.color,
            alpha=0.6 if look is _ANSWERED else 0.9,
        )
    axes.set_xlabel("time (s)")


def _draw_distribution(axes: Axes, requests: Sequence[Request]) -> None:
    """Latency below which a share of all requests was answered; failed ones are never."""
    latency_s = np.sort([one.latency_s if not one.failure else np.inf for one in requests])
    highest = 1 - 1 / max(1, latency_s.size)
    shares = np.append(_SHARES[: int(np.searchsorted(_SHARES, highest))], highest)
    if latency_s.size:
        values = latency_s[np.minimum((shares * latency_s.size + 0.5).astype(int), latency_s.size - 1)] * 1e3
        kept = np.isfinite(values)
        axes.plot(_nines(shares[kept]), values[kept], color=_ANSWERED.color, linewidth=2.0)
    ticks = [share for share in _TICKS if share <= 1 - 1 / max(2, latency_s.size)]
    axes.set_xticks(_nines(np.array(ticks)), [f"{share * 100:g}%" for share in ticks])
    axes.set_xlabel("share of requests")
    axes.set_title("answered within")


def _nines(shares: FloatArray) -> FloatArray:
    """Each nine more is as wide as the one before."""
    return np.asarray(-np.log10(1 - shares), np.float64)


def _draw_rates(axes: Axes, tried: Sequence[Finished]) -> None:
    best_hz = max((one.figures.rate_hz or 0.0 for one in tried if one.figures.keeps(0.99)), default=0.0)
    for one in tried:
        figures = one.figures
        look = _ANSWERED if (figures.rate_hz or 0.0) <= best_hz else _MISSED
        axes.plot(figures.rate_hz or 0.0, 1e3 * (figures.p99_s or 0.0), look.marker, color=look.color, markersize=5.0)
    axes.set_xlim(left=0)
    axes.set_xlabel("requests per second")
    axes.set_title("p99 of the answers, by rate")


def _between(axes: Axes) -> Callable[[float, float], str]:
    """Labels between powers of ten, where there are few of these."""

    def label(value: float, _: float) -> str:
        low, high = axes.get_ylim()
        digit = round(value / 10 ** np.floor(np.log10(value)))
        return f"{value:g}" if digit in ((2, 5) if high / low < 300 else ()) else ""

    return label
