"""What a user would pick instead of a pipeline: a pinned process with the whole model on each core, and one queue.

Each replica has a core, one thread, weights of its own and the chain that ODIN's stages run, without their timings of
each layer. Whoever is free takes the next request from the one queue. Inputs and outputs lie in shared memory, and only
the number of their place is sent: no way between processes on one machine is cheaper.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.multiprocessing

import odin
from benchmarks.common import release_memory
from odin.stages.device import bind_threads
from odin.stages.host import keep_freed_memory
from odin_lab.inject.worker import die_with_parent

__all__ = ["Replicas", "Served"]

_START_S = 300.0


class Served(NamedTuple):
    """A request that a replica has answered: which one, when, and the seconds that it computed."""

    replica: int
    finished_s: float
    compute_s: float


class _Place(NamedTuple):
    """Shared memory of one request."""

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


class Replicas:
    """One process on each core; from entering this until leaving it.

    Parameters
    ----------
    model
        Name for :func:`odin.load_source`; its weights are the same in every process.
    cores
        One for each replica.
    in_flight
        Requests under way at most: a call of :meth:`submit` beyond them waits.
    """

    def __init__(self, model: str, cores: Sequence[int], *, in_flight: int) -> None:
        source = odin.load_source(model)
        chain = odin.build_chain(source.torch_model, source.example_args, name=model)
        values = chain.layout(chain.pack(source.example_args))
        state = chain.program.pack(chain.state, batch=1)
        with torch.inference_mode():
            results = values
            for layer in chain.program.layers:
                results = layer.bind(state)(results)
        self._places = [_Place(_shared(values), _shared(results)) for _ in range(in_flight)]
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(in_flight):
            self._free.put(place)
        self._futures: dict[int, Future[tuple[torch.Tensor, ...]]] = {}
        self.served: list[Served] = []
        context = torch.multiprocessing.get_context("spawn")
        self._tasks = context.SimpleQueue()
        self._processes, self._threads = [], []
        for number, core in enumerate(cores):
            mine, its = context.Pipe(duplex=False)
            process = context.Process(
                target=_replica, args=(model, core, self._places, self._tasks, its, os.getpid()), daemon=True
            )
            process.start()
            its.close()
            self._processes.append(process)
            if not mine.poll(_START_S):
                raise TimeoutError(f"the replica on core {core} did not start within {_START_S:.0f} s")
            mine.recv()
            self._threads.append(threading.Thread(target=self._receive, args=(number, mine), daemon=True))

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the replicas."""
        return tuple(process.pid for process in self._processes if process.pid is not None)

    def submit(self, *inputs: torch.Tensor) -> Future[tuple[torch.Tensor, ...]]:
        """Put a request, one tensor for each of the model's inputs, into the queue."""
        place = self._free.get()
        for there, value in zip(self._places[place].inputs, inputs, strict=True):
            there.copy_(value)  # into the layout of the prepared model
        future: Future[tuple[torch.Tensor, ...]] = Future()
        self._futures[place] = future
        self._tasks.put(place)
        return future

    def _receive(self, number: int, answers: Any) -> None:
        while True:
            try:
                place, compute_s = answers.recv()
            except EOFError:
                for future in list(self._futures.values()):
                    if not future.done():
                        future.set_exception(ChildProcessError(f"replica {number} has ended"))
                return
            outputs = tuple(value.clone() for value in self._places[place].outputs)
            future = self._futures.pop(place)
            self._free.put(place)
            self.served.append(Served(number, time.perf_counter(), compute_s))
            future.set_result(outputs)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._processes:
            self._tasks.put(None)
        for process in self._processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
                process.join()
        for thread in self._threads:
            thread.join()


def _shared(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Tensors of the same shapes and strides in memory that all processes see."""
    return tuple(torch.empty_like(value, memory_format=torch.preserve_format).share_memory_() for value in values)


def _replica(model: str, core: int, places: Sequence[_Place], tasks: Any, answers: Any, parent: int) -> None:
    """Serve until there is None in the queue."""
    die_with_parent(parent)
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    keep_freed_memory()
    source = odin.load_source(model)
    chain = odin.build_chain(source.torch_model, source.example_args, name=model)
    state = chain.program.pack(chain.state, batch=1)
    functions = [layer.bind(state) for layer in chain.program.layers]
    del source, chain, state
    release_memory()
    bind_threads((core,))
    answers.send(None)
    while (place := tasks.get()) is not None:
        begin_s = time.perf_counter()
        values: tuple[torch.Tensor, ...] = places[place].inputs
        with torch.inference_mode():
            for function in functions:
                values = function(values)
            for there, value in zip(places[place].outputs, values, strict=True):
                there.copy_(value)
        answers.send((place, time.perf_counter() - begin_s))
