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
    throttled_s
        Seconds for which a CPU quota held the stage's control group back, and of how many; ``None`` where it cannot be
        told.
    interval_s
        For how long it was watched.
    gpu_share
        Part of the GPU that others used; ``None`` on a CPU or if nobody did, ``nan`` if it cannot be told.
    """

    report: CulpritReport
    throttled_s: float | None = None
    interval_s: float = _INTERVAL_S
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
    """Find the neighbours on a device of this machine; takes ``interval_s``.

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
        return Neighbours(CulpritReport(found.culprits, found.note), gpu_share=found.share, interval_s=0.0)
    throttling = ThrottleCounter(stage_pid)
    cores = [int(core) for core in indices]
    report = find_culprits(cores, own_pids=own_pids, stage_pid=stage_pid, interval_s=interval_s, sleep=sleep)
    return Neighbours(report, throttling.delta_s(), interval_s)
