"""Other processes on a GPU, from NVIDIA's management library (``nvidia-ml-py``); without a driver the report says so.

The driver samples each process's use of the multiprocessors about once a second. Inside of a container it may number
processes as the host does, all of them or, some versions, those of the samples only. On a GPU divided by MIG it tells
no process's use.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from odin.monitor.events import Culprit
from odin.monitor.machine.process_names import process_name
from odin.monitor.machine.procfs import ProcFs

__all__ = ["GpuProcess", "GpuReport", "gpu_processes"]

_WINDOW_US = 2_000_000  # older samples may be from before
_LOOK_AGAIN_S = 0.1
_HOST_NUMBERS = "the driver numbers processes as the host does, so own and others cannot be told apart here"
_NO_DRIVER = "unknown: there is no NVIDIA driver here"


class GpuProcess(NamedTuple):
    """A process that has the GPU open.

    Attributes
    ----------
    pid, name
        Its number as the driver tells it, and its name; ``?`` if it cannot be seen from here.
    memory_nbytes
        GPU memory that it holds; None if the driver does not tell.
    share
        Part of the time in which one of its kernels ran, 0 to 1; ``nan`` if the driver does not tell.
    """

    pid: int
    name: str
    memory_nbytes: int | None
    share: float


class GpuReport(NamedTuple):
    """Other processes on a GPU, those that use it most first, and why something is unknown."""

    processes: tuple[GpuProcess, ...]
    note: str = ""

    @property
    def culprits(self) -> tuple[Culprit, ...]:
        """The processes that computed, or of which it is not known, worst first."""
        return tuple(Culprit(p.pid, p.name, p.share) for p in self.processes if not p.share <= 0)

    @property
    def share(self) -> float | None:
        """Part of the GPU that the others use, 0 to 1; None if there are none, ``nan`` if it is not known."""
        if not self.processes:
            return None
        return min(sum(process.share for process in self.processes), 1.0)


def gpu_processes(
    gpu: int | str,
    own_pids: Collection[int],
    *,
    wait_s: float = 0.0,
    nvml: Any = None,
    proc: ProcFs | None = None,
    unix_s: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> GpuReport:
    """List the processes of others on a GPU.

    Parameters
    ----------
    gpu
        The driver's number of it, or its UUID (``GPU-...``). CUDA may number GPUs differently, if
        ``CUDA_VISIBLE_DEVICES`` is set for example; UUIDs are the same for both.
    own_pids
        Processes that are left out: the gateway and all stages of this pipeline.
    wait_s
        Wait up to so many seconds for a sample that was taken after the call: the latest is up to a second old, and
        does not know of a process that has just begun to compute.
    nvml, proc, unix_s, sleep
        For tests: the module ``pynvml``, ``/proc``, the time of day, by which the driver marks its samples; waiting.

    Returns
    -------
    GpuReport
        Also where the driver does not answer; then its note says why.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")  # here: serving on CPUs does not need it
        except ImportError:
            return GpuReport((), "unknown: the package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return GpuReport((), _why(nvml, error, "the driver"))
    try:
        own, proc = frozenset(own_pids), ProcFs() if proc is None else proc
        begin_us = int(unix_s() * 1e6)
        for _ in range(round(wait_s / _LOOK_AGAIN_S)):
            if _is_sampled(gpu, nvml, since_us=begin_us):
                return _ask(gpu, own, nvml, proc, since_us=begin_us)
            sleep(_LOOK_AGAIN_S)
        return _ask(gpu, own, nvml, proc, since_us=int(unix_s() * 1e6) - _WINDOW_US)
    except nvml.NVMLError as error:
        return GpuReport((), _why(nvml, error, f"GPU {gpu}"))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()  # it counts: others in this process keep theirs


def _handle(gpu: int | str, nvml: Any) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(gpu) if isinstance(gpu, str) else nvml.nvmlDeviceGetHandleByIndex(gpu)


def _is_sampled(gpu: int | str, nvml: Any, *, since_us: int) -> bool:
    """Whether there is a sample since then, or none will come."""
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(_handle(gpu, nvml), since_us)
    except nvml.NVMLError as error:
        return not isinstance(error, nvml.NVMLError_NotFound)
    return any(sample.pid and sample.timeStamp > since_us for sample in samples)


def _ask(gpu: int | str, own: frozenset[int], nvml: Any, proc: ProcFs, *, since_us: int) -> GpuReport:
    handle = _handle(gpu, nvml)
    memory = _memory(nvml, handle)
    shares, why = _shares(nvml, handle, since_us)
    notes = [why] if why else []
    names = {pid: _name(nvml, proc, pid) for pid in memory.keys() | shares.keys()}
    nameless = {pid for pid, name in names.items() if not name} - own
    if memory and not memory.keys() & own and (nameless & memory.keys() or proc.hidden()):
        # This pipeline has the GPU open, so one of them should be ours. In a container a number of the host's may
        # even belong to another process here, so names prove nothing.
        return GpuReport((), f"unknown: {_HOST_NUMBERS}")
    if strangers := nameless - memory.keys():
        # Some drivers list processes by the container's numbers and samples by the host's; any sample may be ours.
        notes.append(f"unknown: {_HOST_NUMBERS}")
        shares = {pid: share for pid, share in shares.items() if pid not in strangers}
    elif nameless:
        notes.append(f"process {min(nameless)} cannot be seen from here (another container's or user's)")
    # Without a sample it did not compute, unless samples are missing.
    absent = math.nan if why or strangers else 0.0
    found = [
        GpuProcess(pid, names[pid] or "?", memory.get(pid), shares.get(pid, absent))
        for pid in (memory.keys() | shares.keys()) - own
    ]
    found.sort(key=lambda p: (0.0 if math.isnan(p.share) else -p.share, -(p.memory_nbytes or 0), p.pid))
    return GpuReport(tuple(found), "; ".join(notes))


def _memory(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Bytes held by each process with a context, whether for computing, for graphics, or through MPS."""
    found: dict[int, int | None] = {}
    refused: Exception | None = None
    for kind in ("Compute", "Graphics", "MPSCompute"):
        try:
            processes = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses")(handle)
        except nvml.NVMLError as error:
            refused = error if kind == "Compute" else refused
            continue
        for process in processes:
            found[process.pid] = process.usedGpuMemory
    if refused is not None and not found:
        raise refused
    return found


def _shares(nvml: Any, handle: Any, since_us: int) -> tuple[dict[int, float], str]:
    """Mean use by each process that computed since then, and why it is not known."""
    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetMigMode(handle)[0]:
            return {}, "unknown: this GPU is divided (MIG), and the driver does not tell what each process uses"
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
    except nvml.NVMLError as error:
        if isinstance(error, nvml.NVMLError_NotFound):
            return {}, ""  # nobody computed
        return {}, _why(nvml, error, "the use of the GPU")
    values: dict[int, list[int]] = defaultdict(list)
    for sample in samples:
        # Unused places of the driver's answer are zero, or whatever was in them.
        if sample.pid and sample.timeStamp > since_us and 0 <= sample.smUtil <= 100:
            values[sample.pid].append(sample.smUtil)
    return {pid: sum(found) / len(found) / 100 for pid, found in values.items()}, ""


def _name(nvml: Any, proc: ProcFs, pid: int) -> str:
    command = proc.command(pid)
    if command:
        return process_name(PurePosixPath(command[0]).name, command)
    with contextlib.suppress(nvml.NVMLError, UnicodeDecodeError):
        return process_name(PurePosixPath(str(nvml.nvmlSystemGetProcessName(pid))).name, ())
    return ""


def _why(nvml: Any, error: Exception, what: str) -> str:
    if isinstance(error, nvml.NVMLError_LibraryNotFound | nvml.NVMLError_DriverNotLoaded):
        return _NO_DRIVER
    if isinstance(error, nvml.NVMLError_NoPermission):
        return "unknown: the driver does not let this user see other processes"
    if isinstance(error, nvml.NVMLError_NotSupported):
        return f"unknown: the driver cannot tell of {what}"
    return f"unknown: {what}: {error}"
