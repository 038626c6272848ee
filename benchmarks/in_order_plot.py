"""The share in time of each remedy, by how many cores are busy, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.in_time import Kept
from odin_lab.report.style import DEVICES, GRID, INK

__all__ = ["plot_in_order"]


def plot_in_order(path: Path, kept: Sequence[Kept]) -> str:
    """Draw a panel for each way of measuring; returns what was done, in words."""
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError:
        return "no picture: matplotlib is not installed (pip install 'odin-pipeline[report]')"
    ways = list(dict.fromkeys(one.how for one in kept))
    contenders = list(dict.fromkeys(one.contender for one in kept))
    picture = Picture(figsize=(4.6 * len(ways) + 2.2, 3.6), layout="constrained")
    panels = picture.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    width = 0.8 / len(contenders)
    for axes, how in zip(panels, ways, strict=True):
        for number, name in enumerate(contenders):
            own = [one for one in kept if (one.how, one.contender) == (how, name)]
            places = [one.busy + (number - (len(contenders) - 1) / 2) * width for one in own]
            heights = [one.in_time.median * 100 for one in own]
            below = [(one.in_time.median - one.in_time.low) * 100 for one in own]
            above = [(one.in_time.high - one.in_time.median) * 100 for one in own]
            color = DEVICES[number % len(DEVICES)]
            axes.bar(places, heights, width * 0.92, color=color, label=name)
            axes.errorbar(places, heights, [below, above], fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
        axes.set_xticks(sorted({one.busy for one in kept}))
        axes.set_xlabel("busy cores", color=INK)
        axes.set_title(how, fontsize=10, color=INK)
        axes.set_ylim(0, 102)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("in time, and as accurate as asked for, %", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    picture.savefig(path, dpi=120)
    return f"drawn: {path}"
