"""What was measured on, and with what: the machine, its host's steal, memory of processes, cores of threads."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from odin.monitor.machine.procfs import ProcFs
from odin.stages.device import cpu_model

__all__ = [
    "Environment",
    "StealMeter",
    "command_line",
    "process_tree",
    "pss_nbytes",
    "release_memory",
]


@dataclass(frozen=True)
class Environment:
    """Where a result comes from; :meth:`collect` reads it, ``str`` gives the lines under a table."""

    cpu_model: str
    cores: int
    memory_nbytes: int
    system: str
    python: str
    versions: dict[str, str]
    load_average: float
    date: str
    command: str

    @classmethod
    def collect(cls, packages: Iterable[str] = ("torch", "ray", "numpy")) -> Environment:
        """Read this machine's description; packages that are not installed are left out of ``versions``."""
        versions = {}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return cls(
            cpu_model=cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_nbytes=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            versions=versions,
            load_average=os.getloadavg()[0],
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command_line(),
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.cpu_model}, {self.cores} cores, {self.memory_nbytes / 2**30:.0f} GiB, {self.system}, "
            f"Python {self.python}, {versions}; {self.date}; load before {self.load_average:.2f}\n"
            f"{self.command}"
        )


def command_line() -> str:
    """The command to type for this measurement: ``python -m benchmarks.NAME ...``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"-m {spec.name.removesuffix('.__main__')}" if spec is not None else sys.argv[0]
    return " ".join(["python", program, *sys.argv[1:]])


def process_tree(pid: int | None = None) -> tuple[int, ...]:
    """Process ids of ``pid`` (default: this process) and everything it started that still lives."""
    try:
        root = psutil.Process(pid)
        return (root.pid, *(child.pid for child in root.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def pss_nbytes(pids: Iterable[int]) -> int:
    """Resident bytes of the processes together, a page that n processes map counted 1/n each (Linux PSS).

    Sums ``Pss`` of ``/proc/PID/smaps_rollup`` (kernel documentation, filesystems/proc). A process that has
    ended counts nothing. Unlike the sum of RSS, shared weights are counted once.
    """
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
                break
    return total


def release_memory() -> None:
    """Give back what building a model left behind: unreachable cycles, and heap that glibc keeps for later.

    Otherwise memory figures compare how models were built rather than what serving them takes.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


class StealMeter:
    """Part of the cores' time that a virtual machine's host gave to others, since this was made or last read.

    The kernel's ``steal`` of /proc/stat over all its time: 0.0 on a machine of one's own.
    """

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float:
        """Part of the time since the last call, 0 to 1."""
        before, self._before = self._before, self._read()
        total = self._before[1] - before[1]
        return (self._before[0] - before[0]) / total if total else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        cores = ProcFs().cores().values()
        return sum(core.steal_s for core in cores), sum(core.total_s for core in cores)
