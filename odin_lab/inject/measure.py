"""Measures a load once: passes through a model on the same core, alone and beside the load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import psutil

from odin.stages.device import Device
from odin_lab.inject.handle import Handle
from odin_lab.inject.load import Load, LoadError, LoadFailedError
from odin_lab.inject.play import Starts

__all__ = ["SETTLE_PASSES", "Compared", "Passes", "Reference", "RunsPasses", "measure_load"]

Passes = list[list[float]]
"""Passes through a chain, each the seconds of all layers."""

SETTLE_PASSES = 2
_FILL_S, _FILL_LOOK_S, _FILL_LOOKS = 20.0, 0.1, 5
"""So many looks in a row without growth are enough: on a busy machine a process may get no turn between two."""


class RunsPasses(Protocol):
    """What is disturbed."""

    def run(self, count: int) -> Passes:
        """Run ``count`` passes."""


class Compared(NamedTuple):
    """Passes alone, right after that under a load, and right after that alone again."""

    before: Passes
    loaded: Passes
    after: Passes


def measure_load(
    reference: RunsPasses,
    injector: Starts,
    load: Load,
    *,
    name: str,
    alone: int,
    loaded: int,
    after: int = 0,
    settle: int = SETTLE_PASSES,
) -> Compared:
    """Measure a load once, beside passes alone at the same time.

    Parameters
    ----------
    reference
        What is disturbed.
    injector
        Who starts the load.
    load, name
        What disturbs, and what it is called.
    alone, loaded, after
        How many passes: before, under load, afterwards.
    settle
        Passes without a look at their times after each change.

    Raises
    ------
    LoadFailedError
        If the load does not start, or not last.
    """
    handle = injector.start(load, name=name, idle=True)
    try:
        fill_arrays(handle)
        reference.run(settle)
        before = reference.run(alone)
        handle.set_intensity(load.intensity)
        reference.run(settle)
        disturbed = reference.run(loaded)
        if not handle.running:
            raise LoadFailedError(f"{load}: {handle.ended}")
    finally:
        handle.stop()
    if not after:
        return Compared(before, disturbed, [])
    reference.run(settle)
    return Compared(before, disturbed, reference.run(after))


def fill_arrays(handle: Handle, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Let a load of memory touch its arrays for the first time, which is another load than the copies after that."""
    if handle.load.kind not in ("membw", "cache"):
        return
    handle.set_intensity(1.0)
    deadline_s, most, still = clock() + _FILL_S, 0, 0
    while still < _FILL_LOOKS and clock() < deadline_s:
        time.sleep(_FILL_LOOK_S)  # other processes work: there is no event to wait for
        nbytes = sum(map(_resident_nbytes, handle.pids))
        still = 0 if nbytes > most else still + 1
        most = max(most, nbytes)
    handle.set_intensity(0.0)


def _resident_nbytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # that it has ended is found out later


class Reference:
    """A process that runs a model on cores of its own; a context manager.

    Parameters
    ----------
    model
        As for :func:`odin.load_source`.
    device
        The cores.
    fine
        Whether to cut the model into as many layers as it makes sense to measure.

    Attributes
    ----------
    layers
        Names of the model's layers.
    torch_version
        The PyTorch that runs them.
    fingerprint
        The chain's, see ``Chain.fingerprint``.
    intensity
        Floating-point operations of each layer per byte.
    cut_nbytes
        Bytes that cross each of the ``layers + 1`` cuts, the model's input and output among them.

    Raises
    ------
    LoadError
        If there is no such model.
    LoadFailedError
        If the process ended.
    """

    def __init__(self, model: str, device: Device, *, fine: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "odin_lab.inject.reference", model, str(device), *(["fine"] if fine else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the process that measures
        )
        try:
            answer = self._read()
            if "error" in answer:
                raise LoadError(str(answer["error"]))
            self.layers: tuple[str, ...] = tuple(answer["ready"])
            self.torch_version = str(answer["torch"])
            self.fingerprint = str(answer["fingerprint"])
            self.intensity: tuple[float, ...] = tuple(answer["intensity"])
            self.cut_nbytes: tuple[int, ...] = tuple(answer["cut_nbytes"])
        except BaseException:
            self.close()
            raise

    def run(self, count: int) -> Passes:
        """Run ``count`` passes through the model; returns each one's seconds per layer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise LoadFailedError(f"the process that runs the model has ended: {error}") from error
        passes: Passes = self._read()["passes"]
        return passes

    def close(self) -> None:
        """End the process."""
        self._process.kill()  # it holds nothing that needs an orderly end
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailedError(f"the process that runs the model ended with status {self._process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message
