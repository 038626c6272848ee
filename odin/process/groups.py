"""Processes that one start brought forth: found again later, and ended without touching any others.

A process id says little after a crash or a reboot, so a start is remembered by two things that survive both: a mark
in the environment, which children inherit, and the kernel's session id together with its leader's start time. Ray
overwrites the environment of some of its helpers (setproctitle) and double-forks others; each of the two finds what
the other misses.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

__all__ = ["MARK_VARIABLE", "ProcessGroup", "has_ended", "start_group"]

MARK_VARIABLE = "ODIN_PROCESS_MARK"
_KILLED_S = 5.0
"""Least time for the kernel to end a process that was killed."""
_SAME_START_S = 1.0  # psutil derives start times from the boot time, which the clock's corrections shift a little


@dataclass(frozen=True)
class ProcessGroup:
    """Identifies the processes of one start.

    Attributes
    ----------
    mark
        Unique value of :data:`MARK_VARIABLE` in their environment.
    leader_pid, leader_created_s
        First process, which leads their session, and its start in seconds since the epoch (psutil's ``create_time``).
    boot_id
        The kernel's id of the boot that they ran under.
    """

    mark: str
    leader_pid: int
    leader_created_s: float
    boot_id: str

    def members(self) -> tuple[psutil.Process, ...]:
        """Processes of this start that run now, leader first if it does; empty after a reboot."""
        if self.boot_id != boot_id():
            return ()
        found: dict[int, psutil.Process] = {}
        reused = self._leader_pid_reused()
        for process in psutil.process_iter():
            if has_ended(process):
                continue
            if self._marked(process.pid) or (not reused and self._in_session(process)):
                found[process.pid] = process
        for process in tuple(found.values()):
            try:
                found.update((child.pid, child) for child in process.children(recursive=True) if not has_ended(child))
            except psutil.NoSuchProcess:
                continue
        found.pop(os.getpid(), None)
        return tuple(sorted(found.values(), key=lambda process: (process.pid != self.leader_pid, process.pid)))

    def end(self, *, grace_s: float = 15.0, notify: Callable[[str], None] = lambda message: None) -> tuple[int, ...]:
        """End them: the leader is asked first, then all of them, then they are killed.

        Parameters
        ----------
        grace_s
            Seconds the leader gets for an orderly end; each step after that gets a third as long.
        notify
            Told in a line when a harder step is needed.

        Returns
        -------
        tuple
            Process ids that are still there after all that (stuck in the kernel, or another user's); normally empty.
        """
        there = self.members()
        leader = [process for process in there if process.pid == self.leader_pid]
        _signal(leader, psutil.Process.terminate)
        psutil.wait_procs(leader, timeout=grace_s)
        left = self._wait(grace_s / 3 if leader else 0.0, there)
        for act, verb in ((psutil.Process.terminate, "asked to end"), (psutil.Process.kill, "killed")):
            if not left:
                break
            notify(f"{len(left)} processes are left and are {verb}: {_names(left)}")
            _signal(left, act)
            left = self._wait(grace_s / 3 if verb == "asked to end" else max(grace_s / 3, _KILLED_S), left)
        return tuple(process.pid for process in left)

    def _wait(self, timeout_s: float, asked: Iterable[psutil.Process]) -> tuple[psutil.Process, ...]:
        """Wait for those that were ``asked``: one that is ending has no environment any more, by which it is known."""
        _, left = psutil.wait_procs({*asked, *self.members()}, timeout=timeout_s)
        # Asked anew: an ending process may have started others.
        return tuple({*self.members(), *(process for process in left if not has_ended(process))})

    def _leader_pid_reused(self) -> bool:
        try:
            created_s = psutil.Process(self.leader_pid).create_time()
        except psutil.NoSuchProcess:
            return False
        return abs(created_s - self.leader_created_s) > _SAME_START_S

    def _in_session(self, process: psutil.Process) -> bool:
        try:
            return (
                os.getsid(process.pid) == self.leader_pid
                and process.create_time() >= self.leader_created_s - _SAME_START_S
            )
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            return False

    def _marked(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # another user's, or ended
            return False
        return f"{MARK_VARIABLE}={self.mark}".encode() in environment.split(b"\0")


def start_group(
    command: Iterable[str], *, environment: Mapping[str, str], output: IO[bytes], stdin: int = subprocess.DEVNULL
) -> ProcessGroup:
    """Start ``command`` in a session of its own, detached from this terminal, its output in ``output``."""
    mark = uuid.uuid4().hex
    process = psutil.Popen(
        list(command),
        env={**environment, MARK_VARIABLE: mark},
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return ProcessGroup(mark, process.pid, process.create_time(), boot_id())


def boot_id() -> str:
    """The kernel's id of this boot; it differs after every restart of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, but for its parent's wait; a zombie whose other threads live may hold files and ports."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def _signal(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            act(process)  # psutil checks the start time before it signals
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _names(processes: Iterable[psutil.Process]) -> str:
    names = []
    for process in processes:
        try:
            names.append(f"{process.name()} {process.pid}")
        except psutil.NoSuchProcess:
            continue
    return ", ".join(names)
