"""The process that sends: of a trial it is told by its standard input, a socket, to which it tells what happens.

``python -m odin_lab.load.worker``. A process of its own, so that what is shown does not delay what is sent, and since
LoadGen does not stop before its end: this process does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from odin_lab.load.client import open_client
from odin_lab.load.loadgen import LoadGenRun
from odin_lab.load.samples import make_samples
from odin_lab.load.sender import Sender
from odin_lab.load.task import Began, Broken, Done, Outcomes, Task, Waits

__all__ = ["main"]

_TELL_S = 0.1
_CONNECTED = 8
"""Connections that are there before the first request of a schedule is due."""


class Worker:
    """One trial.

    Parameters
    ----------
    link
        To who started this.
    """

    def __init__(self, task: Task, link: socket.socket) -> None:
        self._task, self._link = task, link
        self._encoder = msgspec.json.Encoder()
        self._telling = threading.Lock()
        images = Path(task.images) if task.images else None
        samples = make_samples(task.inputs, count=task.samples, seed=task.seed, images=images)
        client = open_client(task.target)
        prepared = [client.prepare(tensors) for tensors in samples]
        scheduled = task.scenario == "server"
        most = task.most_connections if scheduled else task.clients
        self.sender = Sender(lambda: open_client(task.target), prepared, most=most)
        self.sender.open(_CONNECTED if scheduled else task.clients)
        self._loadgen = None if task.scenario == "clients" else LoadGenRun(task, self.sender)

    def run(self) -> None:
        """Carry it out, and tell."""
        self.tell(Began(time.monotonic()))
        threading.Thread(target=self._tell_often, name="odin-load-telling", daemon=True).start()
        if self._loadgen is None:
            self._closed_loop()
        else:
            self._loadgen.run()
        self.finish()

    def finish(self) -> None:
        """Tell all that is known, once, and nothing afterwards."""
        loadgen = self._loadgen
        scheduled, verdict = ([], None) if loadgen is None else (loadgen.scheduled(), loadgen.verdict())
        if loadgen is not None:
            loadgen.close()
        with self._telling:
            self._send(Outcomes(self.sender.take()))
            self._send(Done(self.sender.asked, scheduled, verdict))
            os._exit(0)  # threads that wait for answers, and LoadGen's, would hold it up

    def tell(self, message: Struct) -> None:
        """Send a message."""
        with self._telling:
            self._send(message)

    def _send(self, message: Struct) -> None:
        try:
            self._link.sendall(self._encoder.encode(message) + b"\n")
        except OSError:  # nobody listens any more
            os._exit(1)

    def _tell_often(self) -> None:
        while True:
            time.sleep(_TELL_S)
            with self._telling:  # taken and told in one step, or the end could come between
                if over := self.sender.take():
                    self._send(Outcomes(over))

    def _closed_loop(self) -> None:
        end_s = time.monotonic() + self._task.seconds
        left = threading.Semaphore(0)

        def again() -> None:
            if time.monotonic() < end_s:
                self.sender.put(self.sender.asked, again)
            else:
                left.release()

        for number in range(self._task.clients):
            self.sender.put(number, again)
        for _ in range(self._task.clients):
            left.acquire()


def main() -> int:
    """Carry out a trial; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this says when to end
    link = socket.socket(fileno=os.dup(0))
    file = link.makefile("rb")
    task = msgspec.json.decode(file.readline(), type=Task)
    try:
        worker = Worker(task, link)
    except ValueError as error:
        link.sendall(msgspec.json.encode(Broken(str(error))) + b"\n")
        return 2

    if task.gated:
        worker.tell(Waits())
        if file.readline() != b"go\n":
            return 1  # "stop", or who started this is gone

    def listen() -> None:
        if file.readline():  # "stop"
            worker.finish()
        os._exit(1)  # who started this is gone

    threading.Thread(target=listen, name="odin-load-listening", daemon=True).start()
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
