"""A table of dynamic batching: requests one by one, joined, and held back to be joined, under several loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from statistics import mean

import numpy as np
from rich.table import Table

from odin_lab.simulator.batching import BatchingOutcome, BatchingWorld, simulate_batching

__all__ = ["WORLDS", "batching_rows", "batching_table"]

WORLDS = (
    BatchingWorld("gains", fixed_s=0.012, each_s=0.008),
    BatchingWorld("gains little", fixed_s=0.010, each_s=0.055),
)
"""About EfficientNet-B0 (a batch has much to gain) and ResNet50 (little), on two stages."""
_LOADS = (0.5, 0.9, 1.2, 1.8)
"""Rate over what is answered one by one."""
_WAYS = (("one by one", False, 0.0), ("joined", True, 0.0), ("joined, held back", True, 0.5))
"""What it is called, whether requests are joined, and for how long one waits for others, as a part of ``t(1)``."""
_DEADLINE_TIMES = 6.0
_SECONDS = 60.0


def batching_rows() -> int:
    """How many rows there are."""
    return len(WORLDS) * len(_LOADS) * len(_WAYS)


def batching_table(*, seeds: Sequence[int], on_row: Callable[[], object] = lambda: None) -> Table:
    """A row for each device, load and way: means over the seeds; ``on_row`` is called after each."""
    table = Table(
        title=f"dynamic batching on 2 stages, up to {WORLDS[0].batch} samples, {_SECONDS:g} s, mean of {len(seeds)} "
        "seeds; load: rate / what is answered one by one; deadline: six times one request's time",
        title_justify="left",
        header_style="bold",
    )
    labels = ("device", "requests")
    for name in ("device", "load", "requests", "wait ms", "requests/s", "in a micro-batch", "p50 ms", "p99 ms",
                 "in time"):  # fmt: skip
        table.add_column(name, justify="left" if name in labels else "right")
    for world, load, (name, joins, wait) in product(WORLDS, _LOADS, _WAYS):
        wait_s = wait * world.seconds(1)
        found = [_run(world, load, joins, wait_s, seed) for seed in seeds]
        table.add_row(
            world.name,
            f"{load:g}",
            name,
            f"{wait_s * 1e3:.0f}" if joins else "",
            f"{mean(one.throughput_hz for one in found):.1f}",
            f"{mean(one.mean_samples for one in found):.2f}",
            *(f"{mean(np.percentile(one.latency_s, part) for one in found) * 1e3:.0f}" for part in (50, 99)),
            f"{mean(one.in_time for one in found):.1%}",
        )
        on_row()
    return table


def _run(world: BatchingWorld, load: float, joins: bool, wait_s: float, seed: int) -> BatchingOutcome:
    rate_hz = load * world.alone_hz
    random = np.random.default_rng(seed)  # the same arrivals for each way
    arrivals_s = np.cumsum(random.exponential(1 / rate_hz, round(rate_hz * _SECONDS))).tolist()
    deadline_s = _DEADLINE_TIMES * world.seconds(1)
    return simulate_batching(world, arrivals_s, joins=joins, wait_s=wait_s, deadline_s=deadline_s, seed=seed)
