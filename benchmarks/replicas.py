"""What a user would pick instead of a pipeline: a pinned process with the whole model on each core, and one queue.

Each replica has a core, one thread and weights of its own, in ONNX Runtime, OpenVINO, or torch (there the chain that
ODIN's stages run, without their timings of each layer). Whoever is free takes the next request from the one queue.
Inputs and outputs lie in shared memory, where the runtimes read and write them, and only the number of their place is
sent, one byte: no way between processes on one machine is cheaper. ::

    driver: copy input, write place --pipe--> whoever reads first: compute, write answer --pipe--> driver: copy output
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.exported import export_apart, read_form
from benchmarks.replica import ANSWER, READY, Task
from benchmarks.runtimes import Array, Form, check_runtimes

__all__ = ["Replicas", "Served"]

_START_S = 300.0
_LOOK_S = 0.05
_END_S = 10.0
_ALIGNMENT = 4096
_ROOT = Path(__file__).resolve().parents[1]


class Served(NamedTuple):
    """A request that a replica has answered: which one, when, and the seconds that it computed."""

    replica: int
    finished_s: float
    compute_s: float


class _Place(NamedTuple):
    """Shared memory of one request: how to fill its inputs, and its outputs."""

    fill: Sequence[Callable[[Array], object]]
    outputs: Sequence[Array]


class Replicas:
    """One process on each core; from entering this until leaving it.

    Parameters
    ----------
    model
        Name for :func:`odin.load_source`; its weights are the same in every process.
    cores
        One for each replica.
    runtime
        ``"torch"`` or one of :data:`benchmarks.runtimes.RUNTIMES`.
    in_flight
        Requests under way at most: a call of :meth:`submit` beyond them waits.
    folder
        Where the model has been exported for the runtime; by default it is exported now.

    Raises
    ------
    ValueError
        If the runtime is not installed.
    RuntimeError
        If a replica does not start; with what it said.
    """

    def __init__(
        self,
        model: str,
        cores: Sequence[int],
        *,
        runtime: str = "torch",
        in_flight: int,
        folder: Path | None = None,
    ) -> None:
        check_runtimes([runtime])
        if not 1 <= in_flight < READY:
            raise ValueError(f"in_flight={in_flight}: from 1 to {READY - 1} requests, their number is sent as a byte")
        self.served: list[Served] = []
        self._futures: dict[int, Future[tuple[Array, ...]]] = {}
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._ending = False
        self._log_fd = os.memfd_create("odin-replicas-log")
        with ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="odin-replicas-")))
                export_apart(model, folder, [runtime])
            form = read_form(folder, runtime)
            self._places, offsets, memory_fd = _make_places(runtime, form, in_flight)
            stack.callback(os.close, memory_fd)
            tasks_fd, self._tasks_fd = os.pipe()
            self._answers_fd, answers_fd = os.pipe()
            its = (memory_fd, tasks_fd, answers_fd)
            stack.callback(os.close, tasks_fd)
            stack.callback(os.close, answers_fd)
            on_failure = stack.enter_context(ExitStack())
            on_failure.callback(self._end)
            for number, core in enumerate(cores):
                task = Task(runtime, model, str(folder), *form, number, core, *its, offsets, os.getpid())
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.replica", json.dumps(task)],
                        pass_fds=its,
                        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
                        stdin=subprocess.DEVNULL,
                        stdout=self._log_fd,
                        stderr=self._log_fd,
                    )
                )
                self._wait_until_ready(number)  # one after the other: each has its core's full speed, and memory's
            on_failure.pop_all()
        for place in range(in_flight):
            self._free.put(place)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the replicas."""
        return tuple(process.pid for process in self._processes)

    def submit(self, *inputs: Any) -> Future[tuple[Array, ...]]:
        """Put a request, an array or tensor for each of the model's inputs, into the queue."""
        number = self._free.get()
        for fill, value in zip(self._places[number].fill, inputs, strict=True):
            fill(np.asarray(value))
        future: Future[tuple[Array, ...]] = Future()
        self._futures[number] = future
        os.write(self._tasks_fd, bytes((number,)))
        return future

    def _wait_until_ready(self, number: int) -> None:
        process, deadline_s = self._processes[number], time.monotonic() + _START_S
        while not select.select([self._answers_fd], [], [], _LOOK_S)[0]:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"replica {number} did not start (exit status {process.poll()}):\n{self._said()}")
        os.read(self._answers_fd, ANSWER.size)

    def _said(self) -> str:
        return os.pread(self._log_fd, 1 << 20, 0)[-4000:].decode(errors="replace")  # they go on writing

    def _receive(self) -> None:
        while answer := os.read(self._answers_fd, ANSWER.size):
            number, replica, compute_s = ANSWER.unpack(answer)
            outputs = tuple(value.copy() for value in self._places[number].outputs)
            future = self._futures.pop(number)
            self._free.put(number)
            self.served.append(Served(replica, time.perf_counter(), compute_s))
            future.set_result(outputs)

    def _watch(self, number: int) -> None:
        """Fail what is under way if a replica ends before it is to."""
        status = self._processes[number].wait()
        if not self._ending:
            for future in list(self._futures.values()):
                if not future.done():
                    future.set_exception(
                        ChildProcessError(f"replica {number} has ended, exit status {status}:\n{self._said()}")
                    )

    def _end(self) -> None:
        self._ending = True
        os.close(self._tasks_fd)  # the end of the queue
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread in self._threads:
            thread.join()
        os.close(self._answers_fd)
        os.close(self._log_fd)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._receive, daemon=True)]
        self._threads += [
            threading.Thread(target=self._watch, args=(number,), daemon=True) for number in range(len(self._processes))
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _make_places(runtime: str, form: Form, count: int) -> tuple[list[_Place], tuple[tuple[int, ...], ...], int]:
    """Shared memory for ``count`` requests: the places, where each one's arrays begin, and its descriptor."""
    specs = (*form.inputs, *form.outputs)
    steps = [-(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT for spec in specs]
    begins = list(itertools.accumulate(steps, initial=0))
    offsets = tuple(tuple(place * begins[-1] + begin for begin in begins[:-1]) for place in range(count))
    descriptor = os.memfd_create("odin-replicas")
    os.truncate(descriptor, count * begins[-1])
    memory = mmap.mmap(descriptor, 0)
    places = []
    for own in offsets:
        arrays = [spec.view(memory, offset) for spec, offset in zip(specs, own, strict=True)]
        inputs, outputs = arrays[: len(form.inputs)], arrays[len(form.inputs) :]
        places.append(_Place([_filler(array, runtime) for array in inputs], outputs))
    return places, offsets, descriptor


def _filler(there: Array, runtime: str) -> Callable[[Array], object]:
    """Copy an array into a place, into the layout of the prepared model for torch, which is the quicker one then."""
    if runtime == "torch":
        import torch

        tensor = torch.from_numpy(there)
        return lambda value: tensor.copy_(torch.from_numpy(value))
    return lambda value: np.copyto(there, value)


def _python_path() -> str:
    """Where a replica finds this package and the modules of the current folder, models among them."""
    return os.pathsep.join([str(_ROOT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
