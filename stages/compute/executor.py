"""Timed execution of a range of layers on one device, whatever computes it.

An executor runs layers in two steps, so that a GPU can copy and compute one request while the next is being received:
``launch`` starts the work and may return before it is done, ``finish`` waits for it and returns values and times. On
a CPU ``launch`` does all the work.

Nothing here imports PyTorch or another runtime: a stage's process loads only the one that it computes with.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from odin.partitioner.engines.runtimes import import_runtime
from odin.stages.channel.arrays import ArrayKind
from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.precision import GPU_PRECISIONS, check_precision

__all__ = [
    "Executor",
    "LayerError",
    "Result",
    "RunDelay",
    "Values",
    "check_engine",
    "load_engine",
    "make_executor",
]

Values = tuple[Any, ...]
"""The engine's arrays: PyTorch tensors, or numpy arrays of any other engine."""


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
    arrays: ArrayKind
    """As which kind of arrays ``launch`` wants its values."""

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


def check_engine(kind: str, engine: str) -> None:
    """Raise ``ValueError`` if the engine does not run on this kind of device."""
    if kind == "gpu" and engine != "torch":
        raise ValueError(f"engine {engine!r} does not run on GPUs; take engine='torch', or stages on CPU cores")


def load_engine(engine: str) -> None:
    """Import what an engine takes.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    if engine == "torch":
        importlib.import_module("odin.stages.compute.torch_stage")
    else:
        importlib.import_module("odin.stages.compute.sessions")
        import_runtime(engine)


def make_executor(
    kind: str,
    model: Any,
    weights: Any,
    *,
    engine: str = "torch",
    index: int = 0,
    threads: int = 1,
    precision: str = "float32",
) -> Executor:
    """Return the executor for a device kind, ``"cpu"`` or ``"gpu"``.

    Parameters
    ----------
    model
        What is cut: the chain's layers for ``"torch"``, the cut model for every other engine.
    weights
        All weights, by name, as the engine reads them; never written.
    engine
        What runs the layers. GPUs take ``"torch"``.
    index
        Number of the GPU.
    threads
        Compute threads.
    precision
        Of a GPU. On CPU cores PyTorch computes in float32, other engines in what their model was made for.

    Raises
    ------
    ValueError
        If the precision is unknown or not one of GPUs, or the engine does not run on this kind of device.
    """
    check_precision(precision)
    check_engine(kind, engine)
    if kind == "gpu":
        if precision not in GPU_PRECISIONS:
            raise ValueError(f"GPUs do not compute in {precision} here; take one of {', '.join(GPU_PRECISIONS)}")
        from odin.stages.compute.cuda import CudaExecutor

        return CudaExecutor(model, weights, index=index, precision=precision)
    if engine == "torch":
        from odin.stages.compute.torch_cpu import CpuExecutor

        return CpuExecutor(model, weights, threads=threads)
    from odin.stages.compute.sessions import SessionExecutor

    return SessionExecutor(model, weights, threads=threads)
