"""What ``odin tune`` shows: tables and sentences, of values."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin.monitor.view.event_text import figure
from odin.tuning.choice import Choice, Probe
from odin_lab.tuning.serving import Serving

__all__ = ["probe_table", "served_lines", "sweep_line"]


def probe_table(probes: Sequence[Probe], *, limit_s: float, statistic: str, choice: Choice | None, title: str) -> Table:
    """What was measured: a row for each value; none is marked without a choice."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("mode", "batch / instances", "samples/s", "p95 ms", "mean ms", "requests", "keeps the limit"):
        table.add_column(name, justify="left" if name in ("mode", "keeps the limit") else "right")
    for probe in probes:
        keeps = probe.latency_s(statistic) <= limit_s
        chosen = choice is not None and (probe.knob, probe.value) == (choice.knob, choice.start)
        table.add_row(
            "batching" if probe.knob == "batch" else "instances",
            str(probe.value),
            figure(probe.throughput_hz),
            figure(probe.p95_s * 1e3),
            figure(probe.mean_s * 1e3),
            str(probe.requests),
            f"{'yes' if keeps else 'no'}{', chosen' if chosen else ''}",
            style="bold" if chosen else None if keeps else "dim",
        )
    return table


def sweep_line(best: Probe, part: float, value: int) -> str:
    """How far the choice is from the best of a sweep."""
    what = f"a batch of {best.value}" if best.knob == "batch" else f"{best.value} instances"
    return (
        f"The best of all values that keep the limit is {what} with {figure(best.throughput_hz)} samples/s; "
        f"the tuner's {value} has {part:.2f} of that"
    )


def served_lines(serving: Serving, *, limit_s: float, statistic: str) -> RenderableType:
    """What came of serving with the tuner."""
    turns = sum(period.after != period.before for period in serving.periods)
    settled = serving.settled_s
    lines = [
        f"served {len(serving.done)} requests in {serving.seconds:.0f} s: {figure(serving.throughput_hz)} samples/s",
        f"{serving.knob} {serving.start} -> {serving.value}, changed {turns} time{'' if turns == 1 else 's'}, "
        + ("not settled" if settled is None else f"settled after {settled:.1f} s"),
    ]
    if serving.periods:
        lines.append(f"{statistic} within {limit_s * 1e3:g} ms for {serving.within(limit_s):.0%} of the time")
    lines += [f"load {load} from {begin_s:.0f} to {end_s:.0f} s" for begin_s, end_s, load in serving.spells]
    return Group(*(Text(line) for line in lines))
