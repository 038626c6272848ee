"""Runs a program as a load: binds it to cores, and ends it and all that it started when the load is to end.

    python supervisor.py TEXT PARENT CORES WORD...

A program may start others, which may leave its process group and session, or lose their parent. So there are two
processes here, and each takes in orphans below it (PR_SET_CHILD_SUBREAPER):

    who injects -- guard -- runner -- program -- whatever it starts

The runner starts the program and ends everything below itself when its standard input ends, when it is asked to
(SIGTERM), or when the guard ends, of which the kernel tells it. Is the runner itself killed, what was below it is now
below the guard, which ends it. Is who injects killed, its end of the pipe closes. Only a program that makes another
user's service start something for it (a container, for example) leaves something behind.

Made of the standard library alone, as ``worker.py``. CORES are numbers joined by commas, or ``-`` for a GPU's program.
Messages on standard output, as lines of JSON: ``{"ready": PID}`` or ``{"error": WHY}``, and ``{"ended": STATUS,
"output": TEXT}`` with the end of what the program wrote when it and all that it started have ended by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
GRACE_S, KILL_S = 1.0, 5.0
TAIL_NBYTES = 2000


def main(arguments: list[str]) -> None:
    """Be the guard, and start the runner."""
    _, parent, cores, *words = arguments
    prctl(PR_SET_NAME, b"odin-load-guard")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):
        return
    guard = os.getpid()
    runner = os.fork()
    if runner == 0:
        status = 1
        try:
            prctl(PR_SET_NAME, b"odin-load-run")
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            bell = ring_on_signals()
            prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
            if os.getppid() == guard:
                run(words, None if cores == "-" else {int(core) for core in cores.split(",")}, bell)
            status = 0
        finally:
            os._exit(status)
    os.close(0)
    _, status = os.waitpid(runner, 0)
    end_descendants(grace_s=0.0)  # there are none, unless the runner was killed
    sys.exit(0 if status == 0 else 1)


def prctl(option: int, value: int | bytes) -> None:
    """Ask the kernel for something for this process."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def ring_on_signals() -> int:
    """Have SIGCHLD and SIGTERM written as bytes to a pipe; returns where to read them."""
    bell, ring = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(ring, False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    return bell


def run(words: list[str], cores: set[int] | None, bell: int) -> None:
    """Start the program and stay until it, and all that it started, has ended."""
    me = os.getpid()

    def prepare() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != me:
            os._exit(1)

    try:
        program = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        say({"error": f"{words[0]} does not start: {error}"})
        return
    say({"ready": program.pid})
    assert program.stdout is not None
    output, tail, status = program.stdout.fileno(), b"", 0
    os.set_blocking(output, False)
    inputs = [0, bell, output]
    while True:
        ready = select.select(inputs, [], [])[0]
        if output in ready:
            data = read(output)
            tail = (tail + data)[-TAIL_NBYTES:]
            if not data:
                inputs.remove(output)
        if 0 in ready and not read(0):
            break
        if bell in ready:
            if signal.SIGTERM in read(bell):
                break
            ended, left = reap()
            status = ended.get(program.pid, status)
            if not left:
                tail = (tail + read(output))[-TAIL_NBYTES:]
                say({"ended": status, "output": tail.decode(errors="replace")})
                break
    program.returncode = status  # reaped here, not by it
    end_descendants(grace_s=GRACE_S)


def read(descriptor: int) -> bytes:
    """Read what is there; nothing at the end, or where there is nothing."""
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def say(message: dict[str, Any]) -> None:
    """Write a message to who injects, who may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def reap() -> tuple[dict[int, int], bool]:
    """Take the statuses of ended children (negative: the signal that killed it), and whether any child is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, True
        ended[pid] = os.waitstatus_to_exitcode(status)


def end_descendants(*, grace_s: float) -> None:
    """Ask everything below this process to end, and kill what has not after ``grace_s``."""
    start_s = time.monotonic()
    asked: set[int] = set()
    while reap()[1] and time.monotonic() < start_s + grace_s + KILL_S:
        below = descendants()
        patient = time.monotonic() < start_s + grace_s
        for pid in below - asked if patient else below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
        asked |= below
        time.sleep(0.005)


def descendants() -> set[int]:
    """Processes below this one, however deep."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    main(sys.argv[1:])
