"""Servers for benchmarks/serving.py: each a process of its own, started, asked by ``odin load``'s client, and ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from msgspec import Struct

from benchmarks.common import process_tree, pss_nbytes
from odin_lab.load.client import Input, RequestFailedError, Target, open_client
from odin_lab.load.figures import figures_of, requests_of
from odin_lab.load.samples import make_samples
from odin_lab.load.server_process import end_process, server_environment, started_server
from odin_lab.load.task import Task
from odin_lab.load.trial import run_trial

__all__ = ["RIVALS", "Measured", "PipeProcess", "Served", "Way", "odin_server", "rival_server", "start"]

RIVALS = ("ray-serve", "mlserver", "litserve")
_START_S, _LOOK_S = 180.0, 0.05


class Measured(Struct, frozen=True):
    """A closed loop: answers per second, latencies, and requests that were not answered."""

    throughput_hz: float
    p50_s: float
    p99_s: float
    failed: int


class Way(NamedTuple):
    """A way to ask a server: where, by which protocol, in which form."""

    url: str
    model: str
    binary: bool = True

    def measure(self, inputs: Sequence[Input], *, clients: int, seconds: float) -> Measured:
        """So many clients, each of which sends its next request when it has its answer."""
        target = Target(self.url, self.model, binary=self.binary, patience_s=60.0)
        trial = run_trial(Task(target, tuple(inputs), "clients", seconds, clients=clients, samples=4))
        figures = figures_of(trial, requests_of(trial))
        if figures.p50_s is None or figures.p99_s is None:
            raise RuntimeError(f"{self.url} answered nothing: {figures.failures}")
        return Measured(figures.answered_hz, figures.p50_s, figures.p99_s, figures.failed)

    def ask(self, inputs: Sequence[Input]) -> None:
        """One request; ``RequestFailedError`` if it is not answered."""
        with contextlib.closing(open_client(Target(self.url, self.model, binary=self.binary))) as client:
            (sample,) = make_samples(inputs, count=1, seed=0)
            client.infer(client.prepare(sample))


class Served(NamedTuple):
    """A server that answers.

    Attributes
    ----------
    ways
        How it can be asked: ``"rest"``, ``"grpc"``.
    pid
        Its first process.
    first_answer_s
        Seconds from its start to its first answer.
    """

    ways: Mapping[str, Way]
    pid: int
    first_answer_s: float

    def memory_nbytes(self) -> int:
        """Proportional set size of all its processes."""
        return pss_nbytes(process_tree(self.pid))


@contextmanager
def odin_server(
    model: str, cores: Sequence[int], inputs: Sequence[Input], *, more: Sequence[str] = ()
) -> Iterator[Served]:
    """``odin serve`` with a stage on each core."""
    stages = ",".join(f"cpu:{core}" for core in cores)
    command = [sys.executable, "-m", "odin", "serve", model, "--stages", stages, "--name", "net", *more]
    with start([*command, "--http-port", "0", "--grpc-port", "0"], inputs) as served:
        yield served


@contextmanager
def rival_server(
    name: str, model: str, cores: Sequence[int], inputs: Sequence[Input], *, python: str = sys.executable
) -> Iterator[Served]:
    """One of :data:`RIVALS`, which a Python of its own may run."""
    text = ",".join(map(str, cores))
    with start([python, "-m", "benchmarks.serving_rival", name, model, "--cores", text], inputs, name=name) as served:
        yield served


@contextmanager
def start(command: Sequence[str], inputs: Sequence[Input], *, name: str = "odin") -> Iterator[Served]:
    """Start a server that writes its ports into ``--ready-file``; ended with all that it has started.

    Raises
    ------
    RuntimeError
        If it does not answer; with its last words.
    """
    with started_server(command, name=name, start_s=_START_S) as started:
        # LitServe reads no bodies but JSON, and MLServer takes raw bytes by gRPC only.
        as_json = name in ("litserve", "mlserver")
        ways = {}
        if "http" in started.ports:
            ways["rest"] = Way(f"http://127.0.0.1:{started.ports['http']}", "net", not as_json)
        if "grpc" in started.ports:
            ways["grpc"] = Way(f"grpc://127.0.0.1:{started.ports['grpc']}", "net")
        _wait_for_answer(started.process, next(iter(ways.values())), inputs, started.begin_s)
        yield Served(ways, started.process.pid, time.monotonic() - started.begin_s)


class PipeProcess:
    """A pipeline that is asked in its own process, see :mod:`benchmarks.serving_pipe`; a context manager."""

    def __init__(self, model: str, cores: Sequence[int]) -> None:
        begin_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving_pipe", model, "--cores", ",".join(map(str, cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=server_environment(),
            start_new_session=True,
        )
        try:
            self._answer()  # its first
        except BaseException:
            end_process(self._process)
            raise
        self.first_answer_s = time.monotonic() - begin_s

    def measure(self, *, clients: int, seconds: float) -> Measured:
        """As :meth:`Way.measure`, by callers in its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"clients": clients, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return Measured(**json.loads(self._answer()))

    def memory_nbytes(self) -> int:
        """Proportional set size of all its processes."""
        return pss_nbytes(process_tree(self._process.pid))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the process of the pipeline ended; what it said is above")
        return line

    def __enter__(self) -> PipeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        end_process(self._process)


def _wait_for_answer(process: subprocess.Popen[bytes], way: Way, inputs: Sequence[Input], begin_s: float) -> None:
    while True:
        try:
            return way.ask(inputs)
        except RequestFailedError as error:
            if process.poll() is not None or time.monotonic() - begin_s > _START_S:
                raise RuntimeError(f"it answers no request: {error}") from None
            time.sleep(_LOOK_S)
