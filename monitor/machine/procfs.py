"""Fast readers of Linux's ``/proc``: which process used which core.

``psutil`` does not tell on which core a thread last ran and takes several times as long per process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["CoreTimes", "ProcFs", "ProcessTimes", "ThreadTimes", "is_runnable"]

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # the kernel's PROC_PID_INIT_INO
_PF_KTHREAD = 0x00200000


class ThreadTimes(NamedTuple):
    """CPU seconds that a thread has used, and the core on which it last ran."""

    cpu_s: float
    core: int


class ProcessTimes(NamedTuple):
    """Values of ``/proc/PID/stat``.

    Attributes
    ----------
    name
        The kernel's name of it, at most 15 characters; kernel threads in brackets, as ``ps`` writes them.
    parent
        Process id of its parent.
    start
        Its start in clock ticks since boot: with the process id this identifies a process.
    cpu_s
        CPU seconds of all its threads, those that ended included.
    children_s
        CPU seconds of its children that ended, and of theirs.
    threads
        How many threads it has.
    core
        Core on which its first thread last ran.
    """

    name: str
    parent: int
    start: int
    cpu_s: float
    children_s: float
    threads: int
    core: int


class CoreTimes(NamedTuple):
    """Seconds of one core since boot: in processes, in interrupts, taken by the machine's host, and altogether."""

    processes_s: float
    interrupts_s: float
    steal_s: float
    total_s: float


class ProcFs:
    """Reads ``/proc``; whatever has ended or is forbidden is left out.

    Parameters
    ----------
    root
        Where it is mounted.
    """

    def __init__(self, root: str | Path = "/proc") -> None:
        self._root = str(root)
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    @property
    def tick_s(self) -> float:
        """Resolution of CPU seconds."""
        return self._tick_s

    def processes(self) -> dict[int, ProcessTimes]:
        """All processes that can be seen, by process id."""
        try:
            entries = os.listdir(self._root)
        except OSError:
            return {}
        found = {}
        for entry in entries:
            if entry.isdecimal() and (stat := _read(f"{self._root}/{entry}/stat")):
                name, fields = _fields(stat)
                shown = f"[{name}]" if int(fields[6]) & _PF_KTHREAD else name
                found[int(entry)] = ProcessTimes(
                    name=shown,
                    parent=int(fields[1]),
                    start=int(fields[19]),
                    cpu_s=(int(fields[11]) + int(fields[12])) * self._tick_s,
                    children_s=(int(fields[13]) + int(fields[14])) * self._tick_s,
                    threads=int(fields[17]),
                    core=int(fields[36]),
                )
        return found

    def threads(self, pid: int) -> dict[int, ThreadTimes]:
        """The threads of a process, by thread id; empty if it has ended."""
        try:
            entries = os.listdir(f"{self._root}/{pid}/task")
        except OSError:
            return {}
        found = {}
        for entry in entries:
            if stat := _read(f"{self._root}/{pid}/task/{entry}/stat"):
                _, fields = _fields(stat)
                found[int(entry)] = ThreadTimes((int(fields[11]) + int(fields[12])) * self._tick_s, int(fields[36]))
        return found

    def cores(self) -> dict[int, CoreTimes]:
        """Times of every core that is online."""
        found = {}
        for line in _read(f"{self._root}/stat").decode().splitlines():
            key, *values = line.split()
            if key.startswith("cpu") and key[3:].isdecimal():
                # Guests' time, the last two, is contained in the first two.
                user, nice, system, idle, wait, irq, softirq, steal = (int(v) * self._tick_s for v in values[:8])
                busy_s, interrupts_s = user + nice + system, irq + softirq
                found[int(key[3:])] = CoreTimes(
                    busy_s, interrupts_s, steal, busy_s + interrupts_s + idle + wait + steal
                )
        return found

    def affinity(self, thread: int) -> frozenset[int] | None:
        """Cores on which a thread may run; None if it has ended or the system does not tell."""
        try:
            return frozenset(os.sched_getaffinity(thread))
        except OSError:
            return None

    def command(self, pid: int) -> tuple[str, ...]:
        """Command line of a process; empty for kernel threads and what has ended or is forbidden."""
        return tuple(part for part in _read(f"{self._root}/{pid}/cmdline").decode(errors="replace").split("\0") if part)

    def siblings(self, core: int) -> frozenset[int]:
        """Cores that are hyper-threads of the same physical core, as far as a virtual machine is told; without it."""
        text = _read(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").decode().strip()
        found: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            if first.isdecimal():
                found.update(range(int(first), int(last or first) + 1))
        return frozenset(found - {core})

    def hidden(self) -> str:
        """Whose processes cannot be seen here, for a sentence that ends with it; empty if all can."""
        try:
            namespace = os.readlink(f"{self._root}/self/ns/pid")
        except OSError:
            namespace = _INITIAL_PID_NAMESPACE
        if namespace != _INITIAL_PID_NAMESPACE:
            return "processes that this container cannot see"
        for line in _read(f"{self._root}/self/mounts").decode(errors="replace").splitlines():
            fields = line.split()
            if len(fields) > 3 and fields[1:3] == ["/proc", "proc"]:
                hide = dict(option.partition("=")[::2] for option in fields[3].split(",")).get("hidepid", "0")
                if hide not in ("0", "off") and os.geteuid() != 0:
                    return "other users' processes, which /proc hides here (hidepid)"
        return ""


def is_runnable(pid: int, root: str = "/proc") -> bool:
    """Whether any thread of a process computes or waits for its core (state ``R``); False if there is none."""
    try:
        threads = os.listdir(f"{root}/{pid}/task")
        stats = [_read(f"{root}/{pid}/task/{thread}/stat") for thread in threads]
        return any(_fields(stat)[1][0] == b"R" for stat in stats if stat)  # a thread may end meanwhile
    except (OSError, IndexError, ValueError):
        return False


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:  # unbuffered: a scan of hundreds of processes is mostly this
        while more := os.read(descriptor, 65_536):
            data += more
        return data
    except OSError:  # it ended in between
        return b""
    finally:
        os.close(descriptor)


def _fields(stat: bytes) -> tuple[str, list[bytes]]:
    """Name, and the fields from the third (the state) on; the name may itself contain blanks and brackets."""
    opening, closing = stat.index(b"("), stat.rindex(b")")
    return stat[opening + 1 : closing].decode(errors="replace"), stat[closing + 2 :].split()
