"""What a hop between two stages costs, beside what else could carry it, and what a waiting stage costs.

Each candidate sends a tensor through two processes and back, three hops, one request at a time::

    this process -> relay on the first core -> relay on the second core -> this process

The relays of the ``odin`` rows are real stages: :class:`odin.stages.loop.StageLoop` with an empty chain of layers, so
that receiving, timing, copying to the next slot and the header are all in it. ``python -m benchmarks.hop``
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from benchmarks.common import (
    Environment,
    Figure,
    add_arguments,
    bind_threads,
    interleave,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.opening import Listener, connect, open_ends
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.hand_over import HandOver
from odin.stages.loop import StageLoop

HOPS = 3
SLOTS = 2
IDLE_S = 5.0
LIMIT_S, LIMIT_MEMCPYS = 150e-6, 1.5
Trip = Callable[[], None]


class Result(NamedTuple):
    """Seconds per hop of one candidate and size, and how many memcpys of the same bytes that is."""

    name: str
    nbytes: int
    hop_s: Figure


def relay(pipe: Connection, core: int, host: str, slot_nbytes: int) -> None:
    """Serve an empty stage, as the process of a stage does."""
    torch.set_num_threads(1)
    readiness = Readiness()
    listener = Listener(host, readiness)
    pipe.send(listener.address)
    next_address = pipe.recv()
    bind_threads([core])
    (sender,), receivers = open_ends(
        [(listener, 1)], [partial(connect, next_address, slots=SLOTS, slot_nbytes=slot_nbytes)]
    )
    # The only stage of a chain of no layers answers the gateway, here the next process.
    StageLoop(
        0,
        CpuExecutor([], {}),
        Inbox(receivers),
        {GATEWAY: sender},
        readiness=readiness,
        hand_over=HandOver(0, baseline_s=[[]], cost_s=[0.0], cut_nbytes=[0], readiness=readiness, later={}),
        epoch=0,
        windows=Windows.parse("@0"),
    ).run()


@contextmanager
def odin_hops(x: torch.Tensor, cores: list[int], host: str) -> Iterator[tuple[Trip, list[int]]]:
    """Two stages without layers, over shared memory or (with a host) TCP."""
    context = multiprocessing.get_context("spawn")
    nbytes = x.numel() * x.element_size()
    with ExitStack() as stack:
        pipes, processes = [], []
        for core in cores:
            ours, theirs = context.Pipe()
            process = context.Process(target=relay, args=(theirs, core, host, nbytes), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            pipes.append(ours)
            processes.append(process)
        addresses = [pipe.recv() for pipe in pipes]
        own = Listener(host)
        for pipe, address in zip(pipes, [*addresses[1:], own.address], strict=True):
            pipe.send(address)
        (sender,), (receiver,) = open_ends(
            [(own, 1)], [partial(connect, addresses[0], slots=SLOTS, slot_nbytes=nbytes)]
        )
        stack.callback(receiver.close)
        stack.callback(sender.close)

        def trip() -> None:
            sender.send(Header(Kind.REQUEST, 0), (x,))
            message = receiver.receive()
            if message.tensors[0].shape != x.shape:
                raise RuntimeError("the tensor came back in another shape")
            message.release()

        yield trip, [process.pid for process in processes if process.pid]


def zmq_relay(core: int, source: str, target: str) -> None:
    """Pass multipart messages on."""
    import zmq

    bind_threads([core])
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.bind(source)
    push.connect(target)
    while len(parts := pull.recv_multipart(copy=False)) > 1:
        push.send_multipart(parts, copy=False)
    push.send_multipart([b""])
    context.destroy(linger=1000)


@contextmanager
def zmq_hops(x: torch.Tensor, cores: list[int]) -> Iterator[tuple[Trip, list[int]]]:
    """ZeroMQ over ipc, header and bytes as two parts, without copies that it does not need."""
    import tempfile

    import zmq

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ends = [f"ipc://{folder}/{number}" for number in range(len(cores) + 1)]
        processes = []
        for core, source, target in zip(cores, ends, ends[1:], strict=False):
            process = context.Process(target=zmq_relay, args=(core, source, target), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            processes.append(process)
        zmq_context = zmq.Context()
        stack.callback(zmq_context.destroy, 0)
        pull, push = zmq_context.socket(zmq.PULL), zmq_context.socket(zmq.PUSH)
        pull.bind(ends[-1])
        push.connect(ends[0])
        array = x.numpy()

        def trip() -> None:
            push.send_multipart([b"header", array.data], copy=False)
            _, payload = pull.recv_multipart(copy=False)
            np.frombuffer(payload.buffer, array.dtype)

        yield trip, [process.pid for process in processes if process.pid]
        push.send_multipart([b""])
        pull.recv_multipart()


@contextmanager
def ray_hops(x: torch.Tensor, cores: list[int]) -> Iterator[tuple[Trip, list[int]]]:
    """Ray actor calls, each given the previous one's result by reference, numpy arrays."""
    import ray

    class Relay:
        def __init__(self, core: int) -> None:
            bind_threads([core])

        def pid(self) -> int:
            return os.getpid()

        def forward(self, values: Any) -> Any:
            return values.copy()  # a task may not return its argument's memory; a stage would write an output, too

    actors: list[Any] = [ray.remote(Relay).options(num_cpus=0).remote(core) for core in cores]
    array = x.numpy()
    pids: list[int] = ray.get([actor.pid.remote() for actor in actors])

    def trip() -> None:
        values: Any = array
        for actor in actors:
            values = actor.forward.remote(values)
        ray.get(values)

    yield trip, pids
    for actor in actors:
        ray.kill(actor)


def memcpy_trip(x: torch.Tensor) -> Trip:
    """Three plain copies of the same bytes, each to another buffer."""
    buffers = [x.numpy().copy() for _ in range(HOPS + 1)]

    def trip() -> None:
        for source, target in itertools.pairwise(buffers):
            np.copyto(target, source)

    return trip


def median_hop_s(trip: Trip, count: int) -> float:
    """Median seconds per hop over ``count`` trips."""
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        trip()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)) / HOPS


def idle_share(pids: list[int]) -> float:
    """Cores that processes use while nothing is sent to them, per process."""
    processes = [psutil.Process(pid) for pid in pids]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    begin = time.perf_counter()
    time.sleep(IDLE_S)
    after = [sum(process.cpu_times()[:2]) for process in processes]
    return (sum(after) - sum(before)) / len(pids) / (time.perf_counter() - begin)


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--trips", type=int, default=200, help="trips per measurement (default %(default)s)")
    arguments = parser.parse_args()
    rounds, trips = (2, 20) if arguments.quick else (arguments.rounds, arguments.trips)
    environment = Environment.collect(("torch", "ray", "numpy", "pyzmq"))
    cores = sorted(os.sched_getaffinity(0))[:2]
    cores = cores if len(cores) == 2 else cores * 2

    import ray

    from odin.cluster.ray_runtime import RayRuntime

    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    runtime = RayRuntime(weight_nbytes=256 * 2**20)
    results: list[Result] = []
    idle: dict[str, float] = {}
    for shape in ((10,), (1, 64, 112, 112)):
        x = torch.randn(*shape)
        with ExitStack() as stack:
            opened = {
                "odin, shared memory": stack.enter_context(odin_hops(x, cores, "")),
                "odin, TCP loopback": stack.enter_context(odin_hops(x, cores, "127.0.0.1")),
                "ZeroMQ ipc": stack.enter_context(zmq_hops(x, cores)),
                "Ray actor calls, numpy": stack.enter_context(ray_hops(x, cores)),
            }
            trip_of = {"memcpy": memcpy_trip(x), **{name: trip for name, (trip, _) in opened.items()}}
            candidates = {name: (lambda trip=trip: median_hop_s(trip, trips)) for name, trip in trip_of.items()}
            for name, seconds in interleave(candidates, rounds=rounds, seed=arguments.seed).items():
                results.append(Result(name, x.numel() * x.element_size(), summarize(seconds)))
            idle = {name: idle_share(pids) for name, (_, pids) in opened.items()}
    ray.shutdown()
    runtime.close()

    memcpy_s = {result.nbytes: result.hop_s.median for result in results if result.name == "memcpy"}
    rows = []
    for result in results:
        limit_s = LIMIT_S + LIMIT_MEMCPYS * memcpy_s[result.nbytes]
        rows.append(
            [
                result.name,
                f"{result.nbytes:,}",
                with_quartiles(result.hop_s, lambda value: f"{value * 1e6:,.0f}"),
                f"{result.hop_s.median / memcpy_s[result.nbytes]:,.2f}",
                f"{result.hop_s.median / limit_s:.2f}",
                f"{idle[result.name]:.2%}" if result.name in idle else "",
            ]
        )
    report(
        f"A hop (median of {rounds} rounds of {trips} trips over {HOPS} hops, quartiles); limit 150 us + 1.5 memcpy",
        ["", "bytes", "us per hop", "in memcpys", "of the limit", "idle core per process"],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=[results, idle])
    return 0


if __name__ == "__main__":
    sys.exit(main())
