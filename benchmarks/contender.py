"""A contender in a process of its own, which computes when it is asked to and sleeps while others do.

Thread pools wait busily for work for a while after each call, PyTorch's OpenMP as well as those of ONNX Runtime and
OpenVINO: in one process, or right after one another, they would take each other's cores. ::

    benchmark         contender
       |  <- output ----  makes what it runs, calls it once
       |  -- turn ----->  sleeps until the pools of all others do, calls it until it is warm, then once more
       |  <- seconds ---
       |  -- end ------>
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from benchmarks.common import timed

__all__ = ["Contender", "Runner", "turn"]

Array = npt.NDArray[np.float32]
Runner = Callable[[], Array]

PARKED_S = 0.1
"""After so long without work every pool sleeps; ONNX Runtime's wait busily for 0.04 s, the others for less."""
WARM_S = 0.02
"""Calls before the one that is timed go on for so long; there is one at least."""


class Contender:
    """A process that makes a runner, with this process's environment and cores.

    Parameters
    ----------
    name
        For errors.
    make
        Returns what is to be timed; a function of a module, or a ``functools.partial`` of one.
    """

    def __init__(self, name: str, make: Callable[[], Runner]) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.output: Array = self._answer()
            """What the first call returned."""
        except BaseException:
            self.close()
            raise

    def seconds(self) -> float:
        """Take a turn; how long one call took.

        Raises
        ------
        Exception
            What the runner raised there.
        RuntimeError
            If the process has died.
        """
        with suppress(OSError):  # then the answer says what there is to say
            self._pipe.send("turn")
        return float(self._answer())

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeError(f"{self._name}: its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()  # it ends when it next listens
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def turn(
    runner: Runner, *, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> float:
    """Seconds of one call, after a pause in which other pools go to sleep, and calls that wake this runner's own."""
    sleep(PARKED_S)
    begin = clock()
    while True:
        runner()
        if clock() - begin >= WARM_S:
            return timed(runner, clock=clock)()


def _serve(pipe: Connection, make: Callable[[], Runner]) -> None:
    try:
        runner = make()
        pipe.send(runner())
        while pipe.recv() == "turn":
            pipe.send(turn(runner))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        pipe.send(error)
