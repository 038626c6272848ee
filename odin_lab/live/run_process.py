"""One run of the live benchmark, in a process of its own that leaves nothing behind for the next.

``python -m odin_lab.live.run_process``, with a socket as standard input: the task comes from there, what happens goes
there, a line of JSON each, and when the other end closes it ends in order. So it writes no file but the log that it is
told to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from odin_lab.feeding import KeptEvents
from odin_lab.live.measure import Status, Tell, measure
from odin_lab.live.run_record import RunRecord, Task
from odin_lab.live.server import Server, Setup

__all__ = ["main", "run_task"]

_GRACE_S = 25.0


def run_task(task: Task, *, tell: Tell = lambda status: None) -> RunRecord:
    """Start who is to be measured, measure, end it.

    Raises
    ------
    ValueError
        If the model, the plan, a device, or a load does not fit.
    RuntimeError
        If it broke meanwhile.
    """
    tell(Status("starting"))
    recorder = KeptEvents()
    with ExitStack() as stack:
        setup = Setup(
            task.model,
            Path(task.weights) if task.weights else None,
            task.cores,
            _example(task),
            task.plan,
            task.in_flight,
        )
        server = stack.enter_context(_start(task, setup, recorder))
        return measure(task, server, recorder=recorder, tell=tell)


def _start(task: Task, setup: Setup, recorder: KeptEvents) -> AbstractContextManager[Server]:
    if task.contender.kind == "odin":
        from odin_lab.live.pipeline_server import pipeline

        log = Path(task.log) if task.log else None
        return pipeline(setup, policy=task.contender.policy, log=log, on_event=recorder)
    return _leased(task, setup)


@contextmanager
def _leased(task: Task, setup: Setup) -> Iterator[Server]:
    """An alternative, on cores that no pipeline has meanwhile."""
    from odin.stages.device import Device
    from odin.stages.lease import Lease

    with ExitStack() as stack:
        for core in task.cores:
            stack.enter_context(
                Lease(Device("cpu", (core,)), label=f"{task.title}, benchmark of process {os.getpid()}")
            )
        if task.contender.kind == "serve":
            from odin_lab.live.ray_serve import ray_serve

            yield stack.enter_context(ray_serve(setup))
        else:
            from odin_lab.live.torch_process import torch_folded

            yield stack.enter_context(torch_folded(setup))


def _example(task: Task) -> Any:
    from odin.models.sources import load_source

    source = load_source(task.model, weights=task.weights or None)
    if len(source.example_args) != 1:
        raise ValueError(f"{task.model} takes {len(source.example_args)} inputs; benchmarks take models with one")
    return source.example_args[0].numpy()


class Link:
    """The socket to who started this process, taken from standard input."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)  # what is started from here must not hold the socket open
        os.close(null)

    def receive(self) -> str:
        """The first line that comes."""
        data = b""
        while not data.endswith(b"\n"):
            if not (more := self._socket.recv(65536)):
                raise ValueError("nobody says what to do; this program is started by odin bench live")
            data += more
        return data.decode()

    def tell(self, status: Status) -> None:
        """Say where the run is."""
        self.send({"status": status})

    def send(self, message: dict[str, Any]) -> None:
        """Send one line; that nobody listens any more is seen elsewhere."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def watch(self) -> None:
        """End this process in order once the other end has closed, and by force if that takes too long."""
        with contextlib.suppress(OSError):
            while self._socket.recv(4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)


def main() -> int:
    """Carry out a task; returns the exit status: 2 for one that cannot be, 1 for one that went wrong."""
    asked = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if not asked.is_set():  # once: the way out must not be broken off
            asked.set()
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    link = Link()
    task = Task.from_json(link.receive())
    threading.Thread(target=link.watch, name="odin-bench-watch", daemon=True).start()
    try:
        import torch

        if task.contender.kind != "torch":
            torch.set_num_threads(1)  # this process feeds; the cores are the stages'
        record = run_task(task, tell=link.tell)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        link.send({"problem": str(error)})
        return 2
    link.send({"record": record.to_plain()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
