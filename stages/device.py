"""Devices: their text form, and binding a process to one."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from odin.monitor.machine.cgroups import cpu_quota_cores

__all__ = [
    "Device",
    "DeviceError",
    "allowed_core_count",
    "bind_threads",
    "check_cores",
    "cpu_model",
    "describe_cores",
    "for_every_thread",
    "parse_devices",
    "pin_process",
    "thread_count",
    "usable_cores",
    "within_quota",
]

_TEXT = re.compile(r"(?:(?P<node>[^/\s]+)/)?(?P<kind>cpu|gpu):(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?")
_MAX_INDEX = 65_535


class DeviceError(ValueError):
    """A device that does not exist, cannot be used, or is taken."""


class Device(NamedTuple):
    """CPU cores or a GPU, perhaps on a named node of a cluster.

    Text form: ``cpu:3``, ``cpu:0-3`` (four cores, four threads), ``gpu:0``, ``NODE/cpu:3`` with the node's id, a unique
    prefix of it, its address or its host name.

    Attributes
    ----------
    kind
        ``"cpu"`` or ``"gpu"``.
    indices
        Core numbers, ascending, or the one GPU number.
    node
        The node as written; empty for the node on which the pipeline is started.

    Examples
    --------
    >>> Device.parse("cpu:0-3").indices
    (0, 1, 2, 3)
    >>> str(Device.parse("edge7/gpu:0"))
    'edge7/gpu:0'
    """

    kind: str
    indices: tuple[int, ...]
    node: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises
        ------
        DeviceError
            If it is not one.
        """
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise DeviceError(f"{text!r} is not a device: write cpu:3, cpu:0-3, gpu:0, or NODE/cpu:3 for another node")
        first = int(match["first"])
        last = int(match["last"]) if match["last"] else first
        if last < first:
            raise DeviceError(f"{text!r} counts backwards: write {match['kind']}:{last}-{first}")
        if last > _MAX_INDEX:
            raise DeviceError(f"{text!r} names {match['kind']} {last}; numbers go up to {_MAX_INDEX}")
        if match["kind"] == "gpu" and last != first:
            raise DeviceError(f"{text!r} names {last - first + 1} GPUs; a stage runs on one: write one stage for each")
        return cls(match["kind"], tuple(range(first, last + 1)), match["node"] or "")

    def __str__(self) -> str:
        span = f"{self.indices[0]}-{self.indices[-1]}" if len(self.indices) > 1 else str(self.indices[0])
        return f"{self.node}/{self.kind}:{span}" if self.node else f"{self.kind}:{span}"

    @property
    def threads(self) -> int:
        """Compute threads of a stage on this device without a CPU quota, see :func:`thread_count`."""
        return len(self.indices)


def parse_devices(stages: str | Sequence[str | Device]) -> tuple[Device, ...]:
    """Read ``"cpu:0,cpu:1"`` or a sequence of texts; one device per stage, in pipeline order.

    Raises
    ------
    DeviceError
        If there is none, or one is not a device.
    """
    texts = stages.split(",") if isinstance(stages, str) else stages
    if isinstance(texts, Device) or not isinstance(texts, Iterable):
        raise DeviceError(f"stages={stages!r} is no list of devices: write stages=['cpu:0', 'cpu:1'], or 'cpu:0,cpu:1'")
    devices = tuple(text if isinstance(text, Device) else Device.parse(text) for text in texts)
    if not devices:
        raise DeviceError("a pipeline needs at least one stage: stages=['cpu:0', 'cpu:1']")
    return devices


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may run on (its affinity, which a container's cpuset limits), ascending.

    Raises
    ------
    DeviceError
        On a system without CPU affinity (it takes Linux).
    """
    if not hasattr(os, "sched_getaffinity"):
        raise DeviceError(f"stages are pinned to cores by Linux CPU affinity, which {platform.system()} does not have")
    return tuple(sorted(os.sched_getaffinity(0)))


def allowed_core_count(*, proc: str | Path = "/proc") -> int:
    """How many of the usable cores can be busy all the time: all, or fewer under a CPU quota; at least 1.

    A container with a quota of two CPUs may run on all 64 cores of a machine, but 64 stages would stand still most of
    the time.

    Parameters
    ----------
    proc
        Where the process file system is mounted, which tells this process's control groups.
    """
    return within_quota(len(usable_cores()), cpu_quota_cores(proc=proc))


def thread_count(device: Device, *, proc: str | Path = "/proc") -> int:
    """Compute threads of a stage on this machine: one for each of its cores, or fewer under a CPU quota; at least 1.

    With more threads than that, all would stand still together for a part of each period of the quota.

    Parameters
    ----------
    device
        Where the stage runs; the CPU side of a GPU is one thread.
    proc
        As for :func:`allowed_core_count`.
    """
    return 1 if device.kind == "gpu" else within_quota(len(device.indices), cpu_quota_cores(proc=proc))


def within_quota(cores: int, quota_cores: float | None) -> int:
    """How many of so many cores can be busy all the time under a quota (None for none); at least 1.

    Examples
    --------
    >>> within_quota(4, None), within_quota(4, 2.5), within_quota(4, 0.5)
    (4, 2, 1)
    """
    return cores if quota_cores is None else max(1, min(cores, int(quota_cores)))


def describe_cores(cores: Collection[int]) -> str:
    """Write core numbers as ranges: ``0-3,6``."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def check_cores(cores: Collection[int]) -> None:
    """Raise :class:`DeviceError` if one of ``cores`` is not usable here; the message names those that are."""
    usable = usable_cores()
    missing = sorted(set(cores) - set(usable))
    if missing:
        raise DeviceError(
            f"there is no usable core {describe_cores(missing)} on {platform.node()}; "
            f"usable cores: {describe_cores(usable)}"
        )


def pin_process(cores: Collection[int]) -> None:
    """Bind every thread of this process to ``cores``; threads started later inherit it.

    Raises
    ------
    DeviceError
        If one of the cores is not usable here; the message names those that are.
    """
    check_cores(cores)
    bind_threads(cores)


def bind_threads(cores: Collection[int]) -> None:
    """Bind every thread of this process, whatever it was bound to before."""
    for_every_thread(lambda thread: os.sched_setaffinity(thread, cores))


def for_every_thread(act: Callable[[int], None]) -> None:
    """Call ``act`` with the kernel's id of every thread of this process; what it sets, later threads inherit."""
    done: set[str] = set()
    # Again until there are no new ones: a thread not yet dealt with may have started another meanwhile.
    while threads := set(os.listdir("/proc/self/task")) - done:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                act(int(thread))
        done |= threads


def cpu_model() -> str:
    """Name of the processor, for example ``Intel(R) Xeon(R) Processor``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
