"""What processes hold: memory, descriptors, threads, shared memory, files; and whether that grows."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import NormalDist, median
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.common import process_tree, pss_nbytes

__all__ = ["Sample", "Slope", "fd_kinds", "left_behind", "medians_over", "sample", "shared_entries", "slope_of"]

_SHARED = Path("/dev/shm")
_CONFIDENCE = 0.95


class Sample(NamedTuple):
    """One moment.

    Attributes
    ----------
    at_s
        On ``time.perf_counter``.
    driver_rss_nbytes, driver_pss_nbytes, driver_fds, driver_threads
        This process.
    stages, stages_pss_nbytes, stages_fds, stages_threads
        The stages that live, all together.
    processes, others_pss_nbytes
        All that this process has started, itself included, and those that are neither it nor a stage (Ray's); without
        injected loads.
    shared_nbytes, shared_entries
        In use in ``/dev/shm``, by whomever.
    log_nbytes
        The event log, all its parts.
    """

    at_s: float
    driver_rss_nbytes: int
    driver_pss_nbytes: int
    driver_fds: int
    driver_threads: int
    stages: int
    stages_pss_nbytes: int
    stages_fds: int
    stages_threads: int
    processes: int
    others_pss_nbytes: int
    shared_nbytes: int
    shared_entries: int
    log_nbytes: int


def sample(stage_pids: Iterable[int], *, log: Path | None = None) -> Sample:
    """Look at this moment; processes that end meanwhile count nothing."""
    own = psutil.Process()
    tree = set(process_tree()) - _loads(own)
    fds = threads = living = 0
    stages = []
    for pid in stage_pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            fds, threads = fds + process.num_fds(), threads + process.num_threads()
            living += 1
            stages.append(pid)
    shared = os.statvfs(_SHARED)
    parts = log.parent.glob(f"{log.name}*") if log is not None else ()
    return Sample(
        at_s=time.perf_counter(),
        driver_rss_nbytes=own.memory_info().rss,
        driver_pss_nbytes=pss_nbytes([own.pid]),
        driver_fds=own.num_fds(),
        driver_threads=own.num_threads(),
        stages=living,
        stages_pss_nbytes=pss_nbytes(stages),
        stages_fds=fds,
        stages_threads=threads,
        processes=len(tree),
        others_pss_nbytes=pss_nbytes(tree - {own.pid, *stages}),
        shared_nbytes=(shared.f_blocks - shared.f_bfree) * shared.f_frsize,
        shared_entries=len(shared_entries()),
        log_nbytes=sum(_size(part) for part in parts),
    )


def _loads(own: psutil.Process) -> set[int]:
    """Processes of injected loads, with what they have started."""
    found: set[int] = set()
    for child in own.children():
        with suppress(psutil.Error):
            if any("/odin_lab/inject/" in word for word in child.cmdline()):
                found.update(process_tree(child.pid))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed just now
        return 0


def shared_entries() -> frozenset[str]:
    """Names in ``/dev/shm``."""
    return frozenset(entry.name for entry in _SHARED.iterdir()) if _SHARED.is_dir() else frozenset()


def fd_kinds() -> dict[str, int]:
    """Open descriptors of this process by what they lead to: ``socket``, ``/memfd:odin-queue (deleted)``, a path."""
    kinds: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            kinds[
                re.sub(r"^/tmp/.*/session_.*", "a file of Ray's", re.sub(r":\[\d+\]$", "", str(link.readlink())))
            ] += 1
    return dict(kinds)


def left_behind(pids: Iterable[int], *, since: Iterable[str], wait_s: float = 10.0) -> tuple[list[str], list[str]]:
    """Those of these processes that still live, and new names in ``/dev/shm``, after some time to end."""
    _, alive = psutil.wait_procs([process for pid in pids if (process := _process(pid))], timeout=wait_s)
    names = []
    for process in alive:
        with suppress(psutil.Error):
            names.append(f"{process.pid} {process.name()}")
    return names, sorted(shared_entries() - frozenset(since))


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


class Slope(NamedTuple):
    """Growth per hour, and the 95% interval within which it lies."""

    per_hour: float
    low: float
    high: float
    points: int


def slope_of(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """The median of the slopes between all pairs of points (Theil and Sen), with Sen's interval.

    A robust line: moments with a stage less do not tilt it. Sen, "Estimates of the regression coefficient based on
    Kendall's tau", JASA 1968: the interval is between the slopes of rank ``(n +- c) / 2`` of ``n``, where ``c`` is the
    normal quantile times the standard deviation of Kendall's statistic. It takes points as independent: give it
    medians of some time (:func:`medians_over`) rather than every sample.

    Raises
    ------
    ValueError
        If there are fewer than 4 points, or times and values differ in number.

    Examples
    --------
    >>> slope_of([0.0, 900.0, 1800.0, 2700.0, 3600.0], [1.0, 2.0, 3.0, 4.0, 5.0]).per_hour
    4.0
    """
    if len(at_s) != len(values) or len(values) < 4:
        raise ValueError(f"{len(at_s)} times, {len(values)} values: a slope needs 4 points, so measure longer")
    times, heights = np.asarray(at_s, dtype=float), np.asarray(values, dtype=float)
    first, second = np.triu_indices(len(times), k=1)
    slopes = np.sort(3600.0 * (heights[second] - heights[first]) / (times[second] - times[first]))
    count = len(times)
    deviation = (count * (count - 1) * (2 * count + 5) / 18) ** 0.5
    reach = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2) * deviation
    low = max(0, int((len(slopes) - reach) / 2))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[len(slopes) - 1 - low]), count)


def medians_over(
    at_s: Sequence[float], values: Sequence[float], *, span_s: float, since_s: float
) -> tuple[list[float], list[float]]:
    """Medians of values in spans of ``span_s`` from ``since_s`` on, with the middle of each span; empty ones left out.

    Examples
    --------
    >>> medians_over([0.0, 10.0, 20.0, 70.0], [9.0, 1.0, 2.0, 5.0], span_s=60.0, since_s=5.0)
    ([35.0, 95.0], [1.5, 5.0])
    """
    spans: dict[int, list[float]] = {}
    for moment_s, value in zip(at_s, values, strict=True):
        if moment_s >= since_s:
            spans.setdefault(int((moment_s - since_s) / span_s), []).append(value)
    return [since_s + (number + 0.5) * span_s for number in spans], [median(own) for own in spans.values()]
