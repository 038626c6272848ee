"""A timing table as text for a terminal: what each scenario does, and how sure that is."""

from __future__ import annotations

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from odin_lab.timings.table import TimingTable

__all__ = ["render_timings"]


def render_timings(table: TimingTable) -> Group:
    """What was measured: a line per scenario, and one about passes alone."""
    view = Table(title=f"{table.model} on {table.device}", title_justify="left", title_style="bold")
    view.add_column("scenario")
    view.add_column("load")
    for heading in ("slowdown", "rounds", "passes", "layers"):
        view.add_column(heading, justify="right")
    for scenario, load in zip(table.scenarios, table.loads, strict=True):
        low, _, high = table.spread(scenario)
        rounds, layers = table.round_slowdowns(scenario), table.slowdown(scenario)
        view.add_row(
            scenario,
            load,
            f"{np.median(rounds):.2f}",
            f"{rounds.min():.2f} .. {rounds.max():.2f}",
            f"{low:.2f} .. {high:.2f}",
            f"{layers.min():.2f} .. {layers.max():.2f}",
        )
    low, high = np.exp(np.quantile(table.residuals(), (0.25, 0.75)))
    by_round = [
        np.median(table.passes_s()[table.pass_rounds() == number].sum(axis=1)) for number in range(table.rounds)
    ]
    about = (
        f"slowdown: mean seconds of a pass / alone just before and after, median of {table.rounds} rounds of "
        f"{table.passes} passes; rounds: least and most; passes: quartiles; layers: least and most. Alone a pass takes "
        f"{table.alone_s * 1e3:.1f} ms, quartiles {low - 1:+.1%} and {high - 1:+.1%} within blocks, "
        f"{min(by_round) * 1e3:.1f} to {max(by_round) * 1e3:.1f} ms between rounds. {table.cpu_model}, torch "
        f"{table.torch_version}, {table.created}."
    )
    trial = " A trial of few passes: not for conclusions." if table.quick else ""
    return Group(view, Text(about + trial, style="dim"))
