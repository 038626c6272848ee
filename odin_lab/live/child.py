"""Starts one run of the live benchmark as a process of its own, listens to it, and ends it with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import odin
from odin.process.groups import ProcessGroup, start_group
from odin_lab.live.measure import Status, Tell
from odin_lab.live.run_record import RunRecord, Task

__all__ = ["RunFailedError", "UnfitError", "run_in_process"]

_START_S = 300.0
_LOOK_S = 0.5
_END_S = 15.0
_LAST_WORDS = 3000


class RunFailedError(RuntimeError):
    """A run broke."""


class UnfitError(ValueError):
    """A run cannot be: the model, the plan, a device or a load does not fit."""


def run_in_process(
    task: Task,
    *,
    tell: Tell = lambda status: None,
    started: Callable[[ProcessGroup], None] = lambda group: None,
    clock: Callable[[], float] = time.monotonic,
) -> RunRecord:
    """Carry a task out in a fresh process; however this ends, nothing of it is left.

    Parameters
    ----------
    started
        Called with its processes.

    Raises
    ------
    UnfitError
        If the run cannot be.
    RunFailedError
        If it broke, with its last words, or took far longer than it should.
    """
    deadline_s = clock() + _START_S + task.warmup_s + task.script.seconds
    with tempfile.TemporaryFile() as output:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                group = start_group(
                    [sys.executable, "-P", "-m", "odin_lab.live.run_process"],
                    environment=_environment(task),
                    output=output,
                    stdin=theirs.fileno(),
                )
            try:
                started(group)
                with contextlib.suppress(ConnectionError):  # it has ended already; why, it says elsewhere
                    ours.sendall(task.to_json().encode() + b"\n")
                answer = _listen(ours, tell, lambda: clock() > deadline_s)
                with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                    psutil.Process(group.leader_pid).wait(_END_S)
            finally:
                left = group.end(grace_s=_END_S)
        if "problem" in answer:
            raise UnfitError(answer["problem"])
        if left:
            raise RunFailedError(f"{task.title}: processes {', '.join(map(str, left))} could not be ended")
        if "record" not in answer:
            output.seek(0)
            words = output.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise RunFailedError(f"{task.title} broke, its last words:\n{words or '(none: it was killed)'}")
        return RunRecord.from_plain(answer["record"])


def _listen(ours: socket.socket, tell: Tell, late: Callable[[], bool]) -> dict[str, Any]:
    """Pass on where the run says it is; returns what came of it in the end, empty if nothing did."""
    ours.settimeout(_LOOK_S)
    waiting: list[bytes] = []
    while True:
        try:
            data = ours.recv(1 << 20)
        except TimeoutError:
            if late():
                raise RunFailedError("it takes far longer than it should; is the machine overloaded?") from None
            continue
        except ConnectionError:
            return {}
        if not data:
            return {}
        waiting.append(data)
        if b"\n" not in data:
            continue
        *lines, rest = b"".join(waiting).split(b"\n")
        waiting = [rest]
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "status" not in message:
                return message
            phase, at_s, throughput_hz, loads = message["status"]
            tell(Status(phase, at_s, throughput_hz, tuple(loads)))
            if late():
                raise RunFailedError(f"it is still {phase}, far longer than it should; is the machine overloaded?")


def _environment(task: Task) -> dict[str, str]:
    """Our own environment, with as many threads as the run is to have, and with where this program lies."""
    threads = len(task.cores) if task.contender.kind == "torch" else 1
    here = str(Path(odin.__file__).parent.parent)
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
