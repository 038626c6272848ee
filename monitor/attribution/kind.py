"""What kind of interference slows a stage down, from its own timings.

Added time is what a request takes now beyond an undisturbed one of the same layers. It consists of

===========  =================================================================  =======================
part         added seconds                                                      called
===========  =================================================================  =======================
throttled    the part of the added run-queue delay that a CPU quota explains    ``throttling``
waiting      the rest of the added run-queue delay                              ``CPU share``
computing    added CPU time                                                     ``memory`` ..., see below
elsewhere    added (wall - CPU time - run-queue delay)                          ``unknown``
===========  =================================================================  =======================

each at least 0, then divided by their sum. Now and undisturbed are both means over requests (ratios of sums). Means,
since interference comes in bursts: a load that runs for a third of the time leaves the median where it was. On both
sides, since times are skewed: the mean of one side lies above the median of the other with nothing added at all. From
eight requests on the slowest one of a side counts as much as the second slowest, so that a single hiccup tells nothing.

The largest part is named, and others from a quarter of the added time
that is also 15% of the undisturbed time (CPU time drifts that much on shared machines, and a CPU stressor's cache
misses alone add a tenth). If ``elsewhere`` is the largest the kind is ``unknown``. Below 5% added time nothing is said.

A thread that a CPU quota stops counts as runnable, so throttling shows as run-queue delay, and as pressure (PSI),
though nobody competes (measured: 3.89 of 3.92 s of the delay were throttled time). If the quota was used up it explains
as much as the kernel counted for it, and at least what the use of the stage's core by others leaves of the delay: a
thread that no quota stops waits only while something else runs. While both happen the parts are an estimate.

Being off the core *without* queueing for it is waiting for a disk or for swapped-out memory, or the virtual machine's
host running something else ("steal").

More CPU time for the same work has causes that look alike: another program fills the cache or the memory's bandwidth,
or the core itself is slower (a busy sibling hyper-thread, a lower clock). Layers tell them apart if their arithmetic
intensity differs. Layers are divided in two halves of equal undisturbed time, ``low`` and ``high`` intensity, and for
every request ``g = log(low / undisturbed low) - log(high / undisturbed high)``, over those of these layers that it ran
(requests that ran less than half of either do not count). With Welch's t of the g now against those before:

* mean difference >= 0.04 and t >= 3: memory-bound layers suffer more, ``memory``;
* mean difference <= -0.04 and t <= -3: compute-bound layers suffer more, ``core speed``;
* otherwise ``memory or core speed``.

Preemption hits layers at random, which widens the spread of g and so lowers t.

A stage with several threads spins or sleeps at barriers while one of them waits, and schedstat shows its calling
thread only. There the added ``threads * wall - CPU time`` beyond what grew in proportion with the wall time, at most
the added wall time, counts as waiting; the rest of the added wall time is computing.

A GPU stage's CPU time is time between CUDA events. Programs take turns on a GPU, and wait between the events or before
them. So the kind is ``GPU`` if another process uses the GPU, else ``unknown``; then the note says whether the added
time lies between the events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.monitor.timing import StageTiming

__all__ = ["UNKNOWN", "Interference", "classify"]

FloatArray = NDArray[np.float64]

CPU_SHARE = "CPU share"
THROTTLING = "throttling"
MEMORY = "memory"
CORE_SPEED = "core speed"
MEMORY_OR_CORE_SPEED = "memory or core speed"
GPU = "GPU"
UNKNOWN = "unknown"

_LEAST_ADDED = 0.05  # of the undisturbed time; machines' noise looks like anything
_LEAST_NAMED = 0.25  # of the added time
_LEAST_NAMED_ADDED = 0.15  # of the undisturbed time
_LEAST_SHOWN = 0.05
_LEAST_REQUESTS = 5  # on each side, for the comparison of layers
_LEAST_FOR_HICCUP = 8
"""Requests of a side of which one may be a hiccup; of fewer it may be the burst that is looked for."""
_LEAST_CONTRAST, _LEAST_T = 0.04, 3.0
_LEAST_GPU_SHARE = 0.05


class Interference(NamedTuple):
    """What slows a stage down; its text is the short form for a terminal, such as ``CPU share + memory``.

    Attributes
    ----------
    kind
        ``CPU share``, ``throttling``, ``memory``, ``core speed``, ``memory or core speed``, several of these joined
        by ``" + "``, ``GPU`` or ``unknown``.
    slowdown
        Time per request now / undisturbed, both for the same layers; ``nan`` without timings.
    parts
        What the added time consists of, largest first: name and part, 0 to 1, from 0.05. Empty if nothing can be said.
    note
        Why something is unknown, or what to know about it; may be empty.
    """

    kind: str
    slowdown: float
    parts: tuple[tuple[str, float], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return self.kind

    @property
    def shares(self) -> str:
        """The parts in one line: ``CPU share 70%, memory 30%``."""
        return ", ".join(f"{name} {part:.0%}" for name, part in self.parts)


def classify(
    before: Sequence[StageTiming],
    now: Sequence[StageTiming],
    *,
    threads: int = 1,
    baseline_s: Sequence[float] | None = None,
    intensity: Sequence[float] | None = None,
    throttled_share: float | None = None,
    others_share: float = 1.0,
    on_gpu: bool = False,
    gpu_share: float | None = None,
) -> Interference:
    """Tell the kind of interference.

    Parameters
    ----------
    before
        Timings of undisturbed requests of one stage.
    now
        Timings of its disturbed requests.
    threads
        Compute threads of the stage.
    baseline_s
        Seconds of each layer of the chain on the stage's device with nothing else running. With it, timings under
        different plans can be compared; without it only those count that ran the layers of the last of ``now``.
    intensity
        Arithmetic intensity of each layer of the chain, floating-point operations per byte; ``nan`` where unknown.
    throttled_share
        Part of the time in which a CPU quota stopped the stage's core, see :mod:`odin.monitor.machine.throttling`; None
        where the system does not tell.
    others_share
        Part of the time in which the core ran anything but the stage, 0 to 1; 1 where that is not known.
    on_gpu
        Whether the stage computes on a GPU.
    gpu_share
        Part of the GPU that other processes use, 0 to 1; ``nan`` if there are some and their use is not known; None
        if there are none or nothing is known.

    Raises
    ------
    ValueError
        If ``threads`` is less than one, or ``baseline_s`` or ``intensity`` has no value for a layer of the timings.
    """
    if threads < 1:
        raise ValueError(f"{threads} threads compute nothing; give the number of the stage's cores")
    before, now = _usable(before), _usable(now)
    layers = max((timing.last for timing in (*before, *now)), default=0)
    for name, values in (("baseline_s", baseline_s), ("intensity", intensity)):
        if values is not None and len(values) < layers:
            raise ValueError(f"{name} has {len(values)} values and a timing has layer {layers - 1}; give the chain's")
    if baseline_s is not None:
        if not all(0 <= value < math.inf for value in baseline_s):
            raise ValueError(f"baseline_s is {list(baseline_s)}; give seconds, each at least 0")
        before, now = ([t for t in timings if sum(baseline_s[t.first : t.last]) > 0] for timings in (before, now))
    elif now:
        before = [timing for timing in before if timing[1:3] == now[-1][1:3]]
        now = [timing for timing in now if timing[1:3] == now[-1][1:3]]
    if not before or not now:
        missing = "of these layers undisturbed" if now else "disturbed"
        return Interference(UNKNOWN, math.nan, note=f"no request is known {missing}")

    undisturbed = _mean_per_work(before, baseline_s)
    wall, cpu, delay = _mean_per_work(now, baseline_s) / undisturbed[0]
    wall_before, cpu_before, delay_before = undisturbed / undisturbed[0]
    added = wall - wall_before
    if added < _LEAST_ADDED:
        little = (
            f"{added:+.0%} time is too little" if added > 0 else "when looked at it was no slower than before: nothing"
        )
        return Interference(UNKNOWN, float(wall), note=f"{little} to tell a cause from")
    if on_gpu:
        return _classify_gpu(float(wall), (cpu - cpu_before) / added, gpu_share)

    if threads == 1:
        waiting = max(delay - delay_before, 0.0)
        computing = max(cpu - cpu_before, 0.0)
        elsewhere = max((wall - cpu - delay) - (wall_before - cpu_before - delay_before), 0.0)
    else:
        off = threads * wall - cpu
        off_before = threads * wall_before - cpu_before
        waiting = min(max(off - off_before * wall, delay - delay_before, 0.0), added)
        computing, elsewhere = added - waiting, 0.0
    throttled = 0.0
    if throttled_share is not None and throttled_share > 0:
        throttled = min(max(throttled_share * wall, waiting - others_share * wall), waiting)
    slower = _contrast(before, now, intensity) if computing else MEMORY_OR_CORE_SPEED
    return _name(
        float(wall), {CPU_SHARE: waiting - throttled, THROTTLING: throttled, slower: computing, UNKNOWN: elsewhere}
    )


def _name(slowdown: float, added: dict[str, float]) -> Interference:
    """Name what matters of the added time, given in units of the undisturbed time."""
    total = sum(added.values())
    shown = sorted(((n, float(a / total)) for n, a in added.items() if a >= _LEAST_SHOWN * total), key=lambda p: -p[1])
    largest = shown[0][0]
    least = max(_LEAST_NAMED * total, _LEAST_NAMED_ADDED)
    named = [name for name, value in added.items() if name == largest or value >= least]
    notes = []
    if THROTTLING in named:
        notes.append("the CPU quota of this container or service is used up")
    if UNKNOWN in named:
        notes.append("off its core without queueing for it: disk, swapped-out memory, or the virtual machine's host")
        named.remove(UNKNOWN)
    kind = UNKNOWN if largest == UNKNOWN else " + ".join(named)
    return Interference(kind, slowdown, tuple(shown), "; ".join(notes))


def _classify_gpu(slowdown: float, on_device: float, gpu_share: float | None) -> Interference:
    on_device = min(max(float(on_device), 0.0), 1.0)
    if gpu_share is not None and not gpu_share < _LEAST_GPU_SHARE:
        # Programs take turns on a GPU: what is waited before one's turn is not between the events.
        note = "another process has the GPU open; how much it uses is not known" if math.isnan(gpu_share) else ""
        return Interference(GPU, slowdown, ((GPU, 1.0),), note)
    if on_device < 0.5:
        note = (
            "the GPU is hardly slower, and no other process is seen to use it; time is lost on the way to it and back"
        )
    else:
        note = "the GPU is slower and no other process is seen to use it: a lower clock, or a process hidden from here"
    return Interference(UNKNOWN, slowdown, note=note)


def _usable(timings: Sequence[StageTiming]) -> list[StageTiming]:
    """Leave out stages without layers and what is no time."""
    return [t for t in timings if t.first < t.last and t.wall_s > 0 and all(map(math.isfinite, t[4:7]))]


def _work(timings: Sequence[StageTiming], baseline_s: Sequence[float] | None) -> FloatArray:
    """Undisturbed seconds of each request, or 1 for requests of the same layers, shape (requests,)."""
    if baseline_s is None:
        return np.ones(len(timings))
    return np.array([sum(baseline_s[timing.first : timing.last]) for timing in timings])


def _mean_per_work(timings: Sequence[StageTiming], baseline_s: Sequence[float] | None) -> FloatArray:
    """Mean wall, CPU and run-queue seconds per unit of work, a single hiccup cut off."""
    table = np.array([(timing.wall_s, timing.cpu_s, timing.run_delay_s) for timing in timings])
    work = _work(timings, baseline_s)
    rows = table / work[:, np.newaxis]
    if len(rows) >= _LEAST_FOR_HICCUP:
        *_, second, slowest = np.argsort(rows[:, 0], kind="stable")
        rows[slowest] = rows[second]
    return np.asarray(np.average(rows, axis=0, weights=work), dtype=np.float64)  # weighted by work: a ratio of sums


def _contrast(before: Sequence[StageTiming], now: Sequence[StageTiming], intensity: Sequence[float] | None) -> str:
    """Which layers suffer more, those bound by memory or those bound by computing."""
    if intensity is None:
        return MEMORY_OR_CORE_SPEED
    known = np.asarray(intensity, dtype=np.float64)
    tables = [_layer_table(timings, len(known)) for timings in (before, now)]
    # Layers that most requests of both sides ran; a request need not have run them all, where cuts differ.
    layers = np.flatnonzero(np.all([np.mean(table > 0, axis=0) > 0.5 for table in tables], axis=0) & np.isfinite(known))
    if len(layers) < 2:
        return MEMORY_OR_CORE_SPEED
    undisturbed, disturbed = (np.where(table[:, layers] > 0, table[:, layers], math.nan) for table in tables)
    reference_s = np.nanmedian(undisturbed, axis=0)
    order = np.argsort(known[layers], kind="stable")
    lower = np.cumsum(reference_s[order]) <= reference_s.sum() / 2
    low, high = order[lower], order[~lower]
    if not len(low) or known[layers[low]].max() >= known[layers[high]].max():  # all alike
        return MEMORY_OR_CORE_SPEED
    was, is_ = (
        _log_ratio(table, reference_s, low) - _log_ratio(table, reference_s, high) for table in (undisturbed, disturbed)
    )
    was, is_ = was[np.isfinite(was)], is_[np.isfinite(is_)]
    if min(len(was), len(is_)) < _LEAST_REQUESTS:
        return MEMORY_OR_CORE_SPEED
    contrast = float(is_.mean() - was.mean())
    error = math.sqrt(is_.var(ddof=1) / len(is_) + was.var(ddof=1) / len(was))
    if abs(contrast) < _LEAST_CONTRAST or abs(contrast) < _LEAST_T * error:
        return MEMORY_OR_CORE_SPEED
    return MEMORY if contrast > 0 else CORE_SPEED


def _log_ratio(table: FloatArray, reference_s: FloatArray, layers: NDArray[np.intp]) -> FloatArray:
    """Logarithm of time / reference over those of some layers that each request ran; nan if less than half of them."""
    ran = np.isfinite(table[:, layers])
    taken_s = np.where(ran, table[:, layers], 0.0).sum(axis=1)
    usual_s = np.where(ran, reference_s[layers], 0.0).sum(axis=1)
    ratio = np.full(len(table), math.nan)
    np.divide(taken_s, usual_s, out=ratio, where=usual_s >= reference_s[layers].sum() / 2)
    return np.asarray(np.log(ratio), dtype=np.float64)


def _layer_table(timings: Sequence[StageTiming], layers: int) -> FloatArray:
    """Seconds per layer, ``nan`` where a request did not run or time it, shape (requests, layers)."""
    table = np.full((len(timings), layers), np.nan)
    for row, timing in zip(table, timings, strict=True):
        row[timing.first : timing.last] = timing.layer_s
    return table
