"""Timed execution of a range of layers on one device.

An executor runs layers in two steps, so that a GPU can copy and compute one request while the next is being received:
``launch`` starts the work and may return before it is done, ``finish`` waits for it and returns values and times. On
a CPU ``launch`` does all the work.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.precision import PRECISION_NAMES, check_precision

__all__ = [
    "CpuExecutor",
    "Executor",
    "LayerError",
    "LayerProgram",
    "Result",
    "RunDelay",
    "Values",
    "make_executor",
]

Values = tuple[torch.Tensor, ...]

PRECISIONS: dict[str, torch.dtype] = {
    name: torch.float32 if name == "tf32" else getattr(torch, name) for name in PRECISION_NAMES
}


class LayerProgram(Protocol):
    """What a stage needs of a layer: it becomes a function of values once given its weights."""

    @property
    def name(self) -> str:
        """The layer's name, unique in the chain."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the weights that the layer reads."""

    @property
    def output_bounds(self) -> tuple[float, ...]:
        """Largest magnitude of each value after it that the layers after it count on; infinity for none."""

    def bind(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        device: torch.device | str | None = None,
        keep_nan: bool = False,
    ) -> Callable[[Values], Values]:
        """Return the layer as a function from the values before it to those after it, computing on ``device``."""


class LayerError(RuntimeError):
    """An exception inside a layer; the exception itself is ``__cause__``."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"layer {layer} raised")
        self.layer = layer


class Result(NamedTuple):
    """Values after the last layer that was run, seconds as in :class:`odin.monitor.timing.StageTiming`, and how later
    layers go on.
    """

    values: Values
    wall_s: float
    cpu_s: float
    run_delay_s: float
    layer_s: tuple[float, ...]
    keep_nan: bool = False
    """Something was found of which the fastest kernels might lose NaN: later stages take those that keep it."""


class Executor(Protocol):
    """Runs ranges of layers on one device."""

    overlaps: bool
    """Whether ``launch`` returns before the work is done, so that two requests can be under way at once."""
    looks_between_layers: bool
    """Whether ``launch`` takes ``at_cut``."""

    def prepare(self, first: int, last: int) -> None:
        """Make ready to run layers ``[first, last)`` as well; may take long, and run beside ``launch``."""

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Allow to free what no layer in these half-open ranges needs."""

    def adopt(self, memory: SlotMemory) -> None:
        """Get to know memory that values come from and go to."""

    def calibrating(self) -> AbstractContextManager[None]:
        """Meanwhile every launch tells the times of its layers, and one that needs getting ready gets it at once."""

    def launch(
        self,
        first: int,
        last: int,
        values: Values,
        *,
        keep_nan: bool = False,
        at_cut: Callable[[int, float], bool] | None = None,
    ) -> Any:
        """Start layers ``[first, last)``; the values must stay untouched until ``finish``.

        Parameters
        ----------
        keep_nan
            Take kernels that pass NaN on, if the fastest do not.
        at_cut
            Called between layers with the next layer and the time; if it answers True that layer is not run, nor are
            those after it. Only where ``looks_between_layers``.

        Raises
        ------
        LayerError
            If a layer raises.
        """

    def finish(self, ticket: Any) -> Result:
        """Wait for what ``launch`` started. To be called in the order of the launches."""


class RunDelay:
    """Reads how long the calling thread was runnable but not running (Linux ``schedstat``), seconds."""

    def __init__(self) -> None:
        self.thread = threading.get_native_id()
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def read_s(self) -> float:
        """Seconds so far; 0.0 where the system does not tell."""
        if self._descriptor < 0:
            return 0.0
        return int(os.pread(self._descriptor, 64, 0).split()[1]) * 1e-9

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class CpuExecutor:
    """Runs layers on the cores to which this process is pinned, weights read in place.

    Parameters
    ----------
    layers
        All layers of the chain.
    state
        All weights, by name; never written.
    threads
        Compute threads; CPU time is that of one thread, or of the process if there are several.
    """

    overlaps = False
    looks_between_layers = True

    def __init__(self, layers: Sequence[LayerProgram], state: Mapping[str, torch.Tensor], *, threads: int = 1) -> None:
        self._names = [layer.name for layer in layers]
        self._functions = [layer.bind(state) for layer in layers]
        self._layers, self._state = layers, state
        self._keeping_nan: list[Callable[[Values], Values]] | None = None
        self._cpu_clock = time.thread_time if threads == 1 else time.process_time
        self._run_delay: RunDelay | None = None

    def prepare(self, first: int, last: int) -> None:
        """Nothing to do: every layer is always ready."""

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing to free: weights are shared by all stages of the node."""

    def adopt(self, memory: SlotMemory) -> None:
        """Nothing to do: slots are ordinary memory."""

    def calibrating(self) -> AbstractContextManager[None]:
        """Nothing to do: every launch tells the times of its layers."""
        return contextlib.nullcontext()

    def launch(
        self,
        first: int,
        last: int,
        values: Values,
        *,
        keep_nan: bool = False,
        at_cut: Callable[[int, float], bool] | None = None,
    ) -> Result:
        """See :meth:`Executor.launch`. The times taken are those of the calling thread."""
        functions = self._functions
        if keep_nan:
            if self._keeping_nan is None:
                self._keeping_nan = [layer.bind(self._state, keep_nan=True) for layer in self._layers]
            functions = self._keeping_nan
        if first == last:  # passes on what it got
            return Result(values, 0.0, 0.0, 0.0, ())
        if self._run_delay is None or self._run_delay.thread != threading.get_native_id():
            self._run_delay = RunDelay()
        clock, layer_s, index = time.perf_counter, [], first
        delay_s, cpu_s = self._run_delay.read_s(), self._cpu_clock()
        start_s = now_s = clock()
        try:
            with torch.inference_mode():
                for index in range(first, last):
                    values = functions[index](values)
                    before_s, now_s = now_s, clock()
                    layer_s.append(now_s - before_s)
                    if at_cut is not None and index + 1 < last and at_cut(index + 1, now_s):
                        break
        except Exception as error:
            raise LayerError(self._names[index]) from error
        return Result(
            values,
            wall_s=now_s - start_s,
            cpu_s=self._cpu_clock() - cpu_s,
            run_delay_s=self._run_delay.read_s() - delay_s,
            layer_s=tuple(layer_s),
            keep_nan=getattr(values, "keep_nan", False),
        )

    def finish(self, ticket: Result) -> Result:
        """See :meth:`Executor.finish`."""
        return ticket


def make_executor(
    kind: str,
    layers: Sequence[LayerProgram],
    state: Mapping[str, torch.Tensor],
    *,
    index: int = 0,
    threads: int = 1,
    precision: str = "float32",
) -> Executor:
    """Return the executor for a device kind, ``"cpu"`` or ``"gpu"``; a CPU computes in float32 whatever ``precision``.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    check_precision(precision)
    if kind == "gpu":
        from odin.stages.compute.cuda import CudaExecutor

        return CudaExecutor(layers, state, index=index, precision=precision)
    return CpuExecutor(layers, state, threads=threads)
