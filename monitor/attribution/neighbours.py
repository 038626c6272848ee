"""Neighbours of a stage: other processes on its device, and CPU quotas; determined on the stage's machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from odin.monitor.attribution.culprits import CulpritReport, find_culprits
from odin.monitor.machine.nvml import gpu_processes
from odin.monitor.machine.throttling import ThrottleCounter

__all__ = ["Neighbours", "find_neighbours"]

_INTERVAL_S = 0.4
_GPU_SAMPLE_S = 1.5
"""The driver samples about once a second."""


class Neighbours(NamedTuple):
    """Who shares a device, and what holds its stage back.

    Attributes
    ----------
    report
        Other processes on the device.
    stopped_cores
        On how many cores a CPU quota stopped the stage's control group, in the mean over the time in which it had
        something to run; ``None`` where it cannot be told.
    gpu_share
        Part of the GPU that others used; ``None`` on a CPU or if nobody did, ``nan`` if it cannot be told.
    """

    report: CulpritReport
    stopped_cores: float | None = None
    gpu_share: float | None = None


def find_neighbours(
    kind: str,
    indices: Sequence[int | str],
    *,
    stage_pid: int,
    own_pids: Collection[int],
    interval_s: float = _INTERVAL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Neighbours:
    """Find the neighbours on a device of this machine; takes ``interval_s``, or two periods of a CPU quota if longer.

    Parameters
    ----------
    kind, indices
        The device: ``"cpu"`` and its cores, or ``"gpu"`` and its number or UUID as NVML has them.
    stage_pid
        The stage's process.
    own_pids
        All processes of the pipeline, which are never named.
    """
    if kind == "gpu":
        found = gpu_processes(indices[0], own_pids=own_pids, wait_s=_GPU_SAMPLE_S, sleep=sleep)
        return Neighbours(CulpritReport(found.culprits, found.note), gpu_share=found.share)
    throttling = ThrottleCounter(stage_pid)
    interval_s = max(interval_s, 2 * throttling.period_s)
    cores = [int(core) for core in indices]
    report = find_culprits(cores, own_pids=own_pids, stage_pid=stage_pid, interval_s=interval_s, sleep=sleep)
    return Neighbours(report, throttling.stopped_cores())
