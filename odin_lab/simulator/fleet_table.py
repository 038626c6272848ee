"""A table of a fleet's schedulers: predicting, and loading on demand, under several loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from statistics import mean

from rich.table import Table

from odin_lab.simulator.fleet import FleetResult, run_fleet, small_models, zipf_trace

__all__ = ["fleet_rows", "fleet_table"]

_MODELS, _MEMORY_MIB, _DEADLINE_S, _SECONDS = 1000, 2048, 0.1, 40.0
_LOADS = (0.3, 0.6, 0.9)
"""Rate over what the executors could run if all models were in memory."""
_SCHEDULERS = (("predicting", True), ("on demand", False))


def fleet_rows() -> int:
    """How many rows there are."""
    return len(_LOADS) * len(_SCHEDULERS)


def fleet_table(*, seeds: Sequence[int], executors: int = 2, on_row: Callable[[], object] = lambda: None) -> Table:
    """A row for each load and scheduler: means over the seeds; ``on_row`` is called after each."""
    table = Table(
        title=f"{_MODELS:,} models on {executors} executors, {_MEMORY_MIB:,} MiB, {_SECONDS:g} s of a skewed trace "
        f"with bursts, {_DEADLINE_S * 1e3:g} ms for each request, mean of {len(seeds)} seeds",
        title_justify="left",
        header_style="bold",
    )
    columns = ("scheduler", "load", "requests", "in time", "refused", "late", "in memory", "cold starts", "loads",
               "evictions", "within prediction")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="left" if name == "scheduler" else "right")
    for load, (title, predicts) in product(_LOADS, _SCHEDULERS):
        found = [_run(load, executors, predicts, seed) for seed in seeds]
        requests = mean(one.requests for one in found)
        taken = mean(one.hits + one.cold for one in found)
        shares = [mean(getattr(one, name) for one in found) / requests for name in ("in_time", "refused", "late")]
        counts = [mean(getattr(one, name) for one in found) for name in ("cold", "loads", "evictions")]
        kept = mean(mean(action.took_s <= action.expected_s for action in one.measured) for one in found)
        table.add_row(
            title,
            f"{load:g}",
            f"{requests:,.0f}",
            *(f"{share:.1%}" for share in shares),
            f"{mean(one.hits for one in found) / taken:.1%}",
            *(f"{count:,.0f}" for count in counts),
            f"{kept:.0%}" if predicts else "-",
        )
        on_row()
    return table


def _run(load: float, executors: int, predicts: bool, seed: int) -> FleetResult:
    models = small_models(_MODELS, seed=seed)
    run_s = mean(facts.baseline_of(1) for facts in models)
    trace = zipf_trace(_MODELS, rate_hz=load * executors / run_s, duration_s=_SECONDS, seed=seed)
    return run_fleet(
        models,
        trace,
        executors=executors,
        memory_mib=_MEMORY_MIB,
        deadline_s=_DEADLINE_S,
        predicts=predicts,
        refuses=predicts,
        seed=seed,
    )
