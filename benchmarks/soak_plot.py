"""A soak run as a picture: memory, descriptors and throughput over time, with what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.resources import Sample
from odin_lab.report.style import DEVICES, GRID, INK

__all__ = ["plot_soak"]

_KINDS = {"kill": "#9b1b30", "stop": "#c25400", "load": "#6b7075"}


class IncidentLike(Protocol):
    """What is drawn of an incident."""

    @property
    def at_s(self) -> float:
        """Seconds since the begin."""

    @property
    def kind(self) -> str:
        """What happened."""


def plot_soak(
    path: Path, samples: Sequence[Sample], throughput_hz: Sequence[float], incidents: Sequence[IncidentLike]
) -> str:
    """Draw it into a file; returns what was done, in words."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: matplotlib is not installed (pip install 'odin[report]')"
    minutes = [one.at_s / 60 for one in samples]
    figure = Figure(figsize=(8.0, 7.0), layout="constrained")
    memory, held, rate = figure.subplots(3, 1, sharex=True)
    curves = (
        (memory, "driver, RSS", [one.driver_rss_nbytes / 2**20 for one in samples]),
        (memory, "stages, PSS", [one.stages_pss_nbytes / 2**20 for one in samples]),
        (memory, "Ray's processes, PSS", [one.others_pss_nbytes / 2**20 for one in samples]),
        (held, "driver, descriptors", [one.driver_fds for one in samples]),
        (held, "driver, threads", [one.driver_threads for one in samples]),
        (held, "stages at work", [one.stages for one in samples]),
        (rate, "requests/s", list(throughput_hz)),
    )
    for number, (axes, label, values) in enumerate(curves):
        axes.plot(minutes, values, label=label, color=DEVICES[number % len(DEVICES)], linewidth=1.4)
    for kind, color in _KINDS.items():
        moments = [one.at_s / 60 for one in incidents if one.kind == kind]
        rate.plot(moments, [0.0] * len(moments), "|", color=color, label=kind, markersize=8)
    for axes, title in ((memory, "MiB"), (held, "count"), (rate, "requests/s")):
        axes.set_ylabel(title, color=INK)
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    rate.set_xlabel("minutes", color=INK)
    figure.savefig(path, dpi=120)
    return f"drawn: {path}"
