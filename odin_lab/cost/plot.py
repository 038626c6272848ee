"""The figure of costs: dollars per million requests of each model alone and together, and the rates behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from odin_lab.cost.outcome import Outcome
from odin_lab.cost.rule import cost_per_million
from odin_lab.report.figures import Layout, Plot, legend, panels
from odin_lab.report.style import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cost_plot"]

_ALONE = Look("#6b7075", "o", "-", 1.4)
_TOGETHER = Look("#0072b2", "o", "-", 1.4)
_WIDTH = 0.38


def cost_plot(outcome: Outcome) -> Plot:
    """The figure."""

    def draw(layout: Layout) -> Figure:
        looks = [("alone on the devices", _ALONE)]
        sharing = outcome.sharing
        if sharing is not None:
            looks.append(("all models together", _TOGETHER))
        figure, (axes,) = panels(
            layout, 1, height_in=2.7, entries=[name for name, _ in looks], tick_letters=5, x_label=False
        )
        names = list(outcome.dedicated_hz)
        if sharing is None:
            costs = {name: cost_per_million(outcome.price_per_hour, hz) for name, hz in outcome.dedicated_hz.items()}
            _bars(axes, names, costs, 0.0, _ALONE)
        else:
            _bars(axes, names, sharing.dedicated, -_WIDTH / 2, _ALONE)
            _bars(axes, names, sharing.shared, _WIDTH / 2, _TOGETHER)
        axes.set_xticks(range(len(names)), names)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("dollars per million requests")
        axes.set_title(f"at ${outcome.price_per_hour:g} an hour for {outcome.stages}")
        legend(figure, layout, looks, lines=False)
        return figure

    return Plot("cost", "Cost per million requests", "each model alone, and all together", draw)


def _bars(axes: Axes, names: list[str], costs: dict[str, float], shift: float, look: Look) -> None:
    places = [at + shift for at in range(len(names))]
    bars = axes.bar(places, [costs[name] for name in names], _WIDTH, color=look.color)
    axes.bar_label(bars, [f"{costs[name]:.3g}" for name in names], padding=1)
