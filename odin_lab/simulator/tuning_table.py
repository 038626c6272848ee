"""A table of knob policies in the standard worlds of :mod:`odin_lab.simulator.tuning`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from rich.table import Table

from odin.tuning.policy import POLICIES
from odin_lab.simulator.tuning import TuningOutcome, simulate_tuning, standard_worlds

__all__ = ["tuning_rows", "tuning_table"]

_SECONDS = 420.0


def tuning_rows() -> int:
    """How many rows there are."""
    return len(standard_worlds()) * len(POLICIES)


def tuning_table(
    *, seeds: Sequence[int], seconds: float = _SECONDS, on_row: Callable[[], object] = lambda: None
) -> Table:
    """A row for each world and policy: medians over the seeds; ``on_row`` is called after each."""
    table = Table(
        title=f"a knob turned to keep a latency, {seconds:.0f} s, median of {len(seeds)} seeds; loads of 1.8 and 1.4 "
        "times for a minute each",
        title_justify="left",
        header_style="bold",
    )
    for name in (
        "device",
        "knob",
        "limit ms",
        "policy",
        "settled after",
        "within",
        "samples/s",
        "of the best",
        "turns",
    ):
        table.add_column(name, justify="left" if name in ("device", "knob", "policy") else "right")
    for world in standard_worlds():
        for policy in POLICIES:
            found = [simulate_tuning(world, policy, seconds=seconds, seed=seed) for seed in seeds]
            table.add_row(
                world.name,
                world.knob,
                policy,
                f"{world.limit_s * 1e3:g}",
                _settled(found),
                f"{median(one.within for one in found):.1%}",
                f"{median(one.throughput_hz for one in found):.1f}",
                f"{median(one.of_best for one in found):.3f}",
                f"{median(one.turns for one in found):g}",
            )
            on_row()
    return table


def _settled(found: Sequence[TuningOutcome]) -> str:
    """Periods until the knob stood still, in the calm before the first load."""
    known = [one.settled_periods for one in found if not math.isnan(one.settled_periods)]
    return f"{median(known):g} periods" if len(known) > len(found) / 2 else "never"
