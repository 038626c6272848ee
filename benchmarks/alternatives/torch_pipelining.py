"""A static ``torch.distributed.pipelining`` pipeline: two pinned processes, gloo between them, ODIN's layers and cut.

Each step is one image. Rank 0 goes on to the next image once it has handed over the last, so both compute at once:

    rank 0:  0 1 2 3 ...
    rank 1:    0 1 2 ...

It has no client: rank 0 takes the images from its own memory and rank 1 keeps the outputs, which is all this library
offers. With N in flight, rank 0 begins an image when rank 1 has told it that the N-th before it is done; a client would
have submitted it at that moment.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from benchmarks.alternatives.alternative import Alternative, Array, Setup
from benchmarks.common import LoadResult

__all__ = ["Answer", "Steps", "start_rank", "torch_pipelining"]


class Steps(NamedTuple):
    """What both ranks do next: ``steps`` of one image each, in turn, at most ``in_flight`` of them under way."""

    images: Array
    steps: int
    in_flight: int


class Answer(NamedTuple):
    """What a rank tells of a task.

    ``times_s`` has per step its begin (rank 0) or its end (rank 1), on the monotonic clock that all processes of a
    machine share; ``output`` is rank 1's last one.
    """

    times_s: list[float]
    output: Array | None


@contextmanager
def torch_pipelining(setup: Setup) -> Iterator[Alternative]:
    """Start both ranks; needs the plan."""
    if not setup.plan:
        raise ValueError("the static pipeline takes ODIN's cut: give --plan, or let ODIN run first")
    if setup.plan.count("|") != len(setup.cores) - 1:
        raise ValueError(f"plan {setup.plan} is not for {len(setup.cores)} stages; quote it in a shell: '8|10'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in setup.cores]
    processes = [
        context.Process(target=start_rank, args=(rank, setup, port, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    ours = [mine for mine, _ in pipes]
    try:
        for process in processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()  # so that a rank that dies reads as the end of its pipe

        def step(task: Steps) -> tuple[Answer, Answer]:
            for connection in ours:
                connection.send(task)
            begin, end = (receive(connection, processes) for connection in ours)
            return begin, end

        def infer(image: Array) -> Array:
            output = step(Steps(image, 1, 1))[1].output
            assert output is not None
            return output

        def loop(*, count: int, in_flight: int, warmup: int) -> LoadResult:
            begin, end = step(Steps(setup.images, warmup + count, in_flight))
            submitted_s = [begin.times_s[0]] * in_flight + end.times_s[:-in_flight]
            latency_s = [done - start for done, start in zip(end.times_s, submitted_s, strict=True)][warmup:]
            start_s = end.times_s[warmup - 1] if warmup else begin.times_s[0]
            return LoadResult(count / (end.times_s[-1] - start_s), tuple(latency_s))

        yield Alternative(infer, loop, tuple(process.pid or 0 for process in processes), setup.plan)
    finally:
        for connection in ours:
            connection.close()
        for process in processes:
            process.join(timeout=0 if sys.exc_info()[0] else 10)
            if process.is_alive():
                process.kill()
                process.join()


def receive(connection: Connection, processes: Sequence[SpawnProcess]) -> Answer:
    """A rank's answer; RuntimeError as soon as either rank has died, as the other would wait for it for ever."""
    wait([connection, *(process.sentinel for process in processes)])
    if connection.poll():
        with suppress(EOFError):
            answer: Answer = connection.recv()
            return answer
    raise RuntimeError("a rank has died; its traceback is above")


def start_rank(rank: int, setup: Setup, port: int, connection: Connection) -> None:
    """A rank's process; torch is imported there and not here, as it would count into this process's memory."""
    from benchmarks.alternatives.rank import run_rank

    run_rank(rank, setup, port, connection)
