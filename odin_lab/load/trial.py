"""One trial: starts the process that sends, listens to it, and ends it, with what is known if it is broken off."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import odin
from odin_lab.load.client import CONNECTION
from odin_lab.load.task import Began, Broken, Done, Outcome, Outcomes, Scheduled, Task, Verdict, Waits

__all__ = ["Trial", "TrialBrokenError", "run_trial"]

_LOOK_S = 0.1
_STOP_S = 5.0
_LAST_WORDS = 1000
_GONE = 100
"""Connections that fail in a row until a server is taken to be gone."""


class TrialBrokenError(RuntimeError):
    """The process that sends broke."""


class Trial:
    """What is known of a trial so far.

    Attributes
    ----------
    task
        What it is.
    outcomes
        What became of requests, in the order in which they were over.
    asked
        Requests that were to be sent; 0 until the end.
    scheduled, verdict
        Of LoadGen; empty until the end.
    begin_s
        When it began, on the monotonic clock; None: not yet.
    broken_off
        Whether it was ended before its end.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.outcomes: list[Outcome] = []
        self.asked = 0
        self.scheduled: list[Scheduled] = []
        self.verdict: Verdict | None = None
        self.begin_s: float | None = None
        self.broken_off = False

    def add(self, message: Began | Outcomes | Done) -> None:
        """Take in what the process tells."""
        match message:
            case Began(at_s=at_s):
                self.begin_s = at_s
            case Outcomes(of=outcomes):
                self.outcomes.extend(outcomes)
            case Done(asked=asked, scheduled=scheduled, verdict=verdict):
                self.asked, self.scheduled, self.verdict = asked, scheduled, verdict

    @property
    def server_gone(self) -> bool:
        """Whether the last requests all found nobody to connect to: no load, but a loop at full speed."""
        last = self.outcomes[-_GONE:]
        return len(last) == _GONE and all(one.failure == CONNECTION for one in last)

    @property
    def under_way(self) -> int:
        """Requests of which nothing was heard, at the end."""
        return max(0, self.asked - len(self.outcomes))


def run_trial(
    task: Task,
    *,
    look: Callable[[Trial], bool] = lambda trial: True,
    gate: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trial:
    """Carry out a trial in a process of its own.

    Parameters
    ----------
    look
        Called some times a second with what is known; False: enough, end it. A trial whose server is gone ends, too.
    gate
        Called when all is prepared; the first request is sent when it returns.

    Raises
    ------
    ValueError
        If it cannot be, as for want of images.
    TrialBrokenError
        If the process broke, with its last words.
    """
    trial = Trial(task)
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as output:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "odin_lab.load.worker"],
                stdin=theirs.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process, which then asks that one to end
            )
        try:
            ours.sendall(msgspec.json.encode(msgspec.structs.replace(task, gated=gate is not None)) + b"\n")
            over = _listen(ours, trial, look, gate or (lambda: None), clock)
        except ConnectionError:
            over = False
        finally:
            process.kill()
            process.wait()
        if not over:
            output.seek(0)
            words = output.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise TrialBrokenError(f"the process that sends requests broke; its last words: {words or '(none)'}")
    return trial


def _listen(
    ours: socket.socket,
    trial: Trial,
    look: Callable[[Trial], bool],
    gate: Callable[[], object],
    clock: Callable[[], float],
) -> bool:
    """Take in what is told until the end; whether that came."""
    decoder = msgspec.json.Decoder(Waits | Began | Outcomes | Done | Broken)
    ours.settimeout(_LOOK_S)
    data = bytearray()
    stop_s = float("inf")
    while True:
        if not trial.broken_off and (not look(trial) or trial.server_gone):
            trial.broken_off = True
            stop_s = clock() + _STOP_S
            ours.sendall(b"stop\n")
        with contextlib.suppress(TimeoutError):
            if not (more := ours.recv(1 << 20)):
                return trial.broken_off
            data += more
        while (end := data.find(b"\n")) >= 0:
            message = decoder.decode(data[:end])
            del data[: end + 1]
            if isinstance(message, Broken):
                raise ValueError(message.why)
            if isinstance(message, Waits):
                if not trial.broken_off:
                    gate()
                    ours.sendall(b"go\n")
                continue
            trial.add(message)
            if isinstance(message, Done):
                return True
        if clock() > stop_s:
            return True


def _environment() -> dict[str, str]:
    """Ours, with where this program lies."""
    paths = [str(Path(odin.__file__).parent.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
