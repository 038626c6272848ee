"""What every benchmark shares: fair interleaving, robust figures, pinning, memory, tables and result files.

A host that is shared with others drifts by 5-20 % within minutes. So candidates never run one after the other
but in rounds (:func:`interleave`), figures are medians with their quartiles (:func:`summarize`), and two
candidates are compared within each round (:func:`paired_ratio`), where the drift cancels.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from odin.partitioner.files import write_whole
from odin.stages.device import bind_threads
from odin_lab.feeding import keep_in_flight
from odin_lab.live.machine import Environment, StealMeter, process_tree, pss_nbytes, release_memory

__all__ = [
    "Environment",
    "Figure",
    "LoadResult",
    "StealMeter",
    "add_arguments",
    "bind_threads",
    "closed_loop",
    "cpu_seconds",
    "interleave",
    "mib",
    "milliseconds",
    "paired_ratio",
    "percentile",
    "pinned",
    "process_tree",
    "pss_nbytes",
    "release_memory",
    "report",
    "summarize",
    "timed",
    "with_quartiles",
    "write_result",
]

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that every benchmark has: ``--quick``, ``--rounds``, ``--seed`` and ``--output``."""
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs; not for figures")
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved repeats (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="order within rounds and inputs (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")


# ---------------------------------------------------------------- figures
class Figure(NamedTuple):
    """Median and quartiles of repeated measurements, in whatever unit they had."""

    median: float
    low: float
    high: float
    repeats: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median: how far the repeats disagree."""
        return (self.high - self.low) / self.median if self.median else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Value below which ``share`` (0..1) of ``values`` lie, linear between neighbours.

    Raises
    ------
    ValueError
        If there are no values, or the share lies outside 0..1.
    """
    if not values:
        raise ValueError("no values: measure at least once")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share {share} lies outside 0..1; the median is 0.5")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Sequence[float]) -> Figure:
    """Median and quartiles of ``values``; ValueError if there are none."""
    return Figure(percentile(values, 0.5), percentile(values, 0.25), percentile(values, 0.75), len(values))


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> Figure:
    """Ratio to the reference within each round, so that what both shared in that round cancels.

    Raises
    ------
    ValueError
        If the two do not have one value per round each.
    """
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} values, {len(reference)} of the reference: pair them round by round")
    return summarize([value / base for value, base in zip(values, reference, strict=True)])


def interleave(
    candidates: Mapping[str, Callable[[], T]], *, rounds: int, warmup: int = 1, seed: int = 0
) -> dict[str, list[T]]:
    """Call every candidate once a round, in an order drawn anew for each round, and keep the answers.

    Parameters
    ----------
    candidates
        Name -> one measurement.
    rounds
        Rounds that are kept, >= 1.
    warmup
        Rounds before those whose answers are dropped.
    seed
        Of the order, so that a run can be repeated.

    Returns
    -------
    dict
        Name -> answers, one per round, in the candidates' order.

    Raises
    ------
    ValueError
        If ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one round is needed")
    order = random.Random(seed)
    kept: dict[str, list[T]] = {name: [] for name in candidates}
    for round_index in range(-warmup, rounds):
        for name in order.sample(sorted(candidates), len(candidates)):
            answer = candidates[name]()
            if round_index >= 0:
                kept[name].append(answer)
    return kept


def timed(call: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Turn a call into a measurement for :func:`interleave`: the seconds that it took."""

    def measure() -> float:
        begin = clock()
        call()
        return clock() - begin

    return measure


# ---------------------------------------------------------------- load
class LoadResult(NamedTuple):
    """One closed loop: requests per second, and each request's seconds from submit to result."""

    throughput_hz: float
    latency_s: tuple[float, ...]

    @property
    def p50_s(self) -> float:
        """Median latency in seconds."""
        return percentile(self.latency_s, 0.50)

    @property
    def p99_s(self) -> float:
        """99th percentile of latency in seconds."""
        return percentile(self.latency_s, 0.99)


def closed_loop(
    submit: Callable[[int], Future[Any]],
    *,
    count: int,
    in_flight: int,
    warmup: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> LoadResult:
    """Keep ``in_flight`` requests in flight until ``count`` have completed after the warm-up.

    Throughput runs from the last warm-up completion to the last completion, so that filling the pipe is not
    in it when ``warmup >= in_flight``. The first failure is raised once nothing is in flight any more.

    Parameters
    ----------
    submit
        Request index -> future of its result. Waiting inside (backpressure) counts as latency.
    count
        Requests that are measured, >= 1.
    in_flight
        Bound on requests without a result, >= 1.
    warmup
        Requests before those that are measured.

    Raises
    ------
    ValueError
        If ``count`` or ``in_flight`` is below 1.
    """
    if count < 1 or in_flight < 1:
        raise ValueError(f"count={count}, in_flight={in_flight}: both must be at least 1")
    total = warmup + count
    completed_s = [0.0] * total
    submitted_s = [0.0] * total
    failures: list[BaseException] = []

    def on_done(index: int, begin_s: float, end_s: float, error: BaseException | None) -> None:
        submitted_s[index], completed_s[index] = begin_s, end_s
        if error is not None:
            failures.append(error)

    begin = clock()
    keep_in_flight(
        submit,
        in_flight=in_flight,
        more=lambda index: index < total and not failures,
        on_done=on_done,
        clock=clock,
    )
    if failures:
        raise failures[0]
    if warmup:
        begin = max(completed_s[:warmup])
    latency_s = tuple(completed_s[index] - submitted_s[index] for index in range(warmup, total))
    return LoadResult(count / (max(completed_s) - begin), latency_s)


# ---------------------------------------------------------------- cores and memory
@contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """Bind the calling thread, and threads that it starts meanwhile, to ``cores``; undone at the end."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each process so far, all its threads together; those that have ended are left out.

    By the kernel's clock of the process, ``clock_getcpuclockid(3)``, which counts nanoseconds; ``/proc`` counts ticks
    of 10 ms.
    """
    found = {}
    for pid in pids:
        with suppress(OSError):
            found[pid] = time.clock_gettime(~pid << 3 | 2)
    return found


# ---------------------------------------------------------------- how it is shown and kept
def milliseconds(value_s: float) -> str:
    """Seconds as milliseconds with three significant digits or one decimal: ``"0.123"``, ``"118.0"``."""
    value_ms = value_s * 1e3
    return f"{value_ms:.1f}" if value_ms >= 10 else f"{value_ms:.3g}"


def with_quartiles(figure: Figure, form: Callable[[float], str]) -> str:
    """Median and quartiles in one cell: ``"118.0 (117.2..119.5)"``."""
    return f"{form(figure.median)} ({form(figure.low)}..{form(figure.high)})"


def mib(nbytes: float) -> str:
    """Bytes as whole MiB."""
    return f"{nbytes / 2**20:,.0f}"


def report(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    environment: Environment,
    *,
    console: Console | None = None,
) -> None:
    """Print one table, first column left and the others right aligned, with the environment under it."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(str(environment), style="dim", highlight=False, soft_wrap=True, markup=False)


def write_result(path: Path | None, *, environment: Environment, parameters: object, results: object) -> None:
    """Write a benchmark's result as JSON, atomically; nothing if ``path`` is None.

    Dataclasses, structs and named tuples become objects with their fields' names, so units stay visible in the file.
    """
    if path is None:
        return
    content = {"environment": environment, "parameters": parameters, "results": results}
    write_whole(path, f"{json.dumps(plain(content), indent=1)}\n".encode())


def plain(value: Any) -> Any:
    """``value`` out of dicts, lists, strings and numbers only, as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, msgspec.Struct):
        return {name: plain(item) for name, item in msgspec.structs.asdict(value).items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)
