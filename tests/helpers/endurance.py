"""Many requests with random cancels, deadlines, raising callbacks, forks and moves: nothing is lost, nothing grows.

::

    python tests/helpers/endurance.py --count 100000 --seed 0
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import psutil
import torch
from torch import nn

import odin
from odin.stages.device import usable_cores

PATIENCE_S = 120.0
"""Far above what anything takes: reached only by a hang."""
WARM = 0.2
"""Part of the requests after which memory must stay where it is."""
GROWTH_NBYTES = 24 * 2**20
ON_DEMAND = Counter(["odin-callbacks", "odin-timers"])
"""Threads of a pipeline that begin when they are first needed."""


def model() -> nn.Module:
    """Small: what is tried is the serving, not the computing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


class Callbacks:
    """What callers hang on futures: most do nothing, some raise, some submit again, some look at the pipeline."""

    def __init__(self, pipe: odin.Pipeline, draw: random.Random, submit: Callable[[], None]) -> None:
        self._pipe = pipe
        self._draw = draw
        self._submit = submit

    def __call__(self, _: Future[Any]) -> None:
        """Be called back."""
        kind = self._draw.random()
        if kind < 0.02:
            raise RuntimeError("a caller's own mistake")
        if kind < 0.03:
            self._submit()
        elif kind < 0.04:
            self._pipe.view()


def fork_once(pipe: odin.Pipeline, x: torch.Tensor, kind: float) -> str:
    """Fork; the child uses what it inherited, or only ends. Says what went wrong, in the parent."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        said = b"quiet"
        try:
            if kind < 0.5:
                pipe.submit(x, timeout_s=5.0)
                said = b"served"
        except odin.OdinError:
            said = b"refused"
        except BaseException as error:
            said = f"raw {type(error).__name__}".encode()
        os.write(writing, said)
        if kind < 0.25:
            with contextlib.suppress(BaseException):
                pipe.close()
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    os.waitpid(child, 0)
    return "" if said == (b"refused" if kind < 0.5 else b"quiet") else f"a child was {said.decode()}"


def memory_nbytes(pids: list[int]) -> int:
    """Private memory of processes."""
    return sum(psutil.Process(pid).memory_info().rss - psutil.Process(pid).memory_info().shared for pid in pids)


def our_threads() -> list[str]:
    """Names of the threads that a pipeline keeps in this process."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("odin-"))


class Endurance:
    """One pipeline under abuse."""

    def __init__(self, pipe: odin.Pipeline, seed: int) -> None:
        self._pipe = pipe
        self._draw = random.Random(seed)
        self._inputs = [torch.rand(1, 3, 16, 16) for _ in range(8)]
        self._wanted = [pipe(x) for x in self._inputs]
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self._more: list[tuple[int, Future[Any]]] = []
        self._lock = threading.Lock()
        self._callback = Callbacks(pipe, self._draw, self._submit_more)

    def _submit_more(self) -> None:
        index = self._draw.randrange(len(self._inputs))
        future = self._pipe.submit(self._inputs[index])
        with self._lock:
            self._more.append((index, future))

    def step(self) -> tuple[int, Future[Any]]:
        """Submit one request, with whatever befalls it."""
        draw, index = self._draw, self._draw.randrange(len(self._inputs))
        x = self._inputs[index]
        if draw.random() < 0.02:
            x = torch.cat([x] * draw.randint(2, 5))
            index = -index - 1
        timeout_s = draw.choice([1e-9, 1e-4, 1e-3, 5e-3, 0.1]) if draw.random() < 0.1 else None
        try:
            future = self._pipe.submit(x, timeout_s=timeout_s)
        except odin.DeadlineExceededError as error:
            future = Future()
            future.set_exception(error)
        kind = draw.random()
        if kind < 0.05:
            future.cancel()
        elif kind < 0.5:
            future.add_done_callback(self._callback)
        return index, future

    def check(self, index: int, future: Future[Any]) -> None:
        """Wait for a request, and see that its answer is its own."""
        try:
            answer = future.result(PATIENCE_S)
        except CancelledError:
            self.outcomes["cancelled"] += 1
        except odin.DeadlineExceededError:
            self.outcomes["too late"] += 1
        except TimeoutError:
            self.outcomes["lost"] += 1
            self.faults.append(f"a request had no outcome within {PATIENCE_S:.0f} s")
        except Exception as error:
            self.outcomes["failed"] += 1
            self.faults.append(f"{type(error).__name__}: {error}")
        else:
            self.outcomes["answered"] += 1
            wanted = self._wanted[index] if index >= 0 else self._wanted[-index - 1].expand_as(answer)
            if not torch.equal(answer, wanted):
                self.outcomes["wrong"] += 1
                self.faults.append("an answer is another request's")

    def settle(self) -> None:
        """Wait for what callbacks have submitted."""
        while True:
            with self._lock:
                more, self._more = self._more, []
            if not more:
                return
            for index, future in more:
                self.check(index, future)

    def mishaps(self, number: int) -> None:
        """What happens beside the requests now and then."""
        draw = self._draw
        if number % 499 == 0 and (fault := fork_once(self._pipe, self._inputs[0], draw.random())):
            self.faults.append(fault)
        if number % 997 == 0:
            first, last = sorted(draw.choices(range(4), k=2))
            self._pipe.migrate(draw.choice([f"{last}|{3 - last}", f"@{first}-{last}|@3", "@0-3|@3"]))
        if number % 1999 == 0:
            self._pipe.policy = draw.choice(["static", "relay"])
        if number % 1499 == 0:
            self._abandon_loop()

    def _abandon_loop(self) -> None:
        """An event loop that is closed with requests pending."""
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(self._pipe.asubmit(self._inputs[0])) for _ in range(12)]
        loop.run_until_complete(asyncio.sleep(0))
        for task in tasks[::2]:
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what is tried
        loop.close()


def places_left(pipe: odin.Pipeline, x: torch.Tensor) -> int:
    """How many requests find a place at the same time."""
    futures = []
    with contextlib.suppress(odin.DeadlineExceededError):
        for _ in range(4 * pipe.max_in_flight):
            futures.append(pipe.submit(x, timeout_s=PATIENCE_S))
    return sum(future.result(PATIENCE_S) is not None for future in futures)


@contextlib.contextmanager
def expected_noise() -> Iterator[None]:
    """Callbacks that raise are logged with a traceback each."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run(count: int, *, seed: int, in_flight: int = 32) -> tuple[Counter[str], list[str], list[str]]:
    """Serve ``count`` requests; returns outcomes, faults and what was measured, in words."""
    events: Counter[str] = Counter()

    def on_event(event: Any) -> None:
        events[type(event).__name__] += 1
        if events.total() % 1_009 == 0:
            raise RuntimeError("the user's on_event")

    cores = [f"cpu:{core}" for core in usable_cores()[:2]]
    chain = odin.build_chain(model(), (torch.zeros(1, 3, 16, 16),), name="small")
    with expected_noise(), odin.Pipeline(chain, stages=cores, on_event=on_event) as pipe:
        trial = Endurance(pipe, seed)
        pids = [os.getpid(), *(stage.pid for stage in pipe.view().stages)]
        threads_before = our_threads()
        under_way: list[tuple[int, Future[Any]]] = []
        warm_nbytes = 0
        begin_s = time.perf_counter()
        for number in range(1, count + 1):
            under_way.append(trial.step())
            trial.mishaps(number)
            if len(under_way) >= in_flight:
                trial.check(*under_way.pop(0))
            if number % 1_000 == 0:
                trial.settle()
            if number == int(WARM * count):
                warm_nbytes = memory_nbytes(pids)
        for index, future in under_way:
            trial.check(index, future)
        trial.settle()
        elapsed_s = time.perf_counter() - begin_s
        grown_nbytes = memory_nbytes(pids) - warm_nbytes
        places = places_left(pipe, trial._inputs[0])
        counts = pipe._gateway.counts() if pipe._gateway is not None else None
        deadline_s = time.monotonic() + PATIENCE_S
        while counts is not None and counts.in_flight and time.monotonic() < deadline_s:
            time.sleep(0.05)
            counts = pipe._gateway.counts() if pipe._gateway is not None else None
        if counts is None or counts.in_flight:
            trial.faults.append(f"{counts} at the end: a place is lost")
        if places != 4 * pipe.max_in_flight:
            trial.faults.append(f"{places} of {4 * pipe.max_in_flight} requests found a place at the end")
        threads = our_threads()
        if Counter(threads_before) - Counter(threads) or Counter(threads) - Counter(threads_before) - ON_DEMAND:
            trial.faults.append(f"threads {threads} at the end, {threads_before} at the beginning")
        if grown_nbytes > GROWTH_NBYTES:
            trial.faults.append(f"memory grew by {grown_nbytes / 2**20:.1f} MiB after the first {WARM:.0%} of requests")
        told = [
            f"{count} requests in {elapsed_s:.0f} s",
            f"memory of the program and its stages grew by {grown_nbytes / 2**20:+.1f} MiB after the first {WARM:.0%}",
            f"events told: {dict(events)}",
        ]
    return trial.outcomes, trial.faults, told


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes, faults, told = run(arguments.count, seed=arguments.seed)
    for line in told:
        print(line)
    print(", ".join(f"{number} {what}" for what, number in outcomes.most_common()))
    for fault, number in Counter(faults).most_common(20):
        print(f"{number} x {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
