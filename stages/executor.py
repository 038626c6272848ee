"""Timed execution of a range of layers on one device.

An executor runs layers in two steps, so that a GPU can copy and compute one request while the next is being received:
``launch`` starts the work and may return before it is done, ``finish`` waits for it and returns values and times. On
a CPU ``launch`` does all the work.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import torch

from stages.precision import PRECISION_NAMES, check_precision
from stages.slots import SlotMemory

__all__ = [
    "CpuExecutor",
    "CudaExecutor",
    "Executor",
    "LayerError",
    "LayerProgram",
    "Result",
    "RunDelay",
    "Values",
    "make_executor",
]

Values = tuple[torch.Tensor, ...]

PRECISIONS: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISION_NAMES}


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
    """Values after the last layer, seconds as in :class:`monitor.timing.StageTiming`, and how later layers go on."""

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

    def prepare(self, first: int, last: int) -> None:
        """Make ready to run layers ``[first, last)`` as well; may take long, and run beside ``launch``."""

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Allow to free what no layer in these half-open ranges needs."""

    def adopt(self, memory: SlotMemory) -> None:
        """Get to know memory that values come from and go to."""

    def launch(self, first: int, last: int, values: Values, *, keep_nan: bool = False) -> Any:
        """Start layers ``[first, last)``; the values must stay untouched until ``finish``.

        Parameters
        ----------
        keep_nan
            Take kernels that pass NaN on, if the fastest do not.

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

    def launch(self, first: int, last: int, values: Values, *, keep_nan: bool = False) -> Result:
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


class _CudaTicket(NamedTuple):
    values: Values
    start_s: float
    begin: torch.cuda.Event
    end: torch.cuda.Event
    layer_events: tuple[torch.cuda.Event, ...]
    layer_count: int
    ordinary: torch.Tensor | None


class CudaExecutor:
    """Runs layers on a GPU: pinned slots, asynchronous copies, times from CUDA events.

    Parameters
    ----------
    layers
        All layers of the chain.
    state
        All weights, by name, in host memory.
    index
        CUDA device number.
    dtype
        What is float32 elsewhere is of this type on the GPU; values travel between stages as float32.
    sample_every
        Every so many requests events are recorded between layers too; in between, layer times are ``nan``.
    """

    overlaps = True
    SAMPLE_EVERY = 16

    def __init__(
        self,
        layers: Sequence[LayerProgram],
        state: Mapping[str, torch.Tensor],
        *,
        index: int,
        dtype: torch.dtype = torch.float32,
        sample_every: int = SAMPLE_EVERY,
    ) -> None:
        self._layers = layers
        self._host = state
        self._device = torch.device("cuda", index)
        self._dtype = dtype
        self.sample_every = sample_every
        self._launched = 0
        self._finished_s = 0.0
        self._resident: dict[str, torch.Tensor] = {}
        self._functions: dict[int, Callable[[Values], Values]] = {}
        self._pinned: list[SlotMemory] = []
        self._stream = torch.cuda.Stream(self._device)

    def prepare(self, first: int, last: int) -> None:
        """Copy the weights of layers ``[first, last)`` to the GPU, on a stream of its own, and wait for it."""
        stream = torch.cuda.Stream(self._device)
        with torch.inference_mode(), torch.cuda.stream(stream):
            for index in range(first, last):
                layer = self._layers[index]
                for name in layer.state_names:
                    if name not in self._resident:
                        weight = self._to_device(self._host[name])
                        # Allocated on one stream, read on another: once freed, the memory may be used again only
                        # after the layers that are under way then.
                        weight.record_stream(self._stream)
                        self._resident[name] = weight
                if index not in self._functions:
                    self._functions[index] = layer.bind(
                        {name: self._resident[name] for name in layer.state_names}, device=self._device
                    )
        stream.synchronize()

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Free the weights that no layer in these ranges needs."""
        kept = {index for first, last in ranges for index in range(first, last)}
        needed = {name for index in kept for name in self._layers[index].state_names}
        for index in [index for index in self._functions if index not in kept]:
            del self._functions[index]
        for name in [name for name in self._resident if name not in needed]:
            del self._resident[name]

    def adopt(self, memory: SlotMemory) -> None:
        """Page-lock a ring of slots, so that copies to and from it are asynchronous."""
        # In a thread of its own: CUDA keeps a failed call's error for the thread's next kernel to report.
        with ThreadPoolExecutor(1) as pool:
            pinned = pool.submit(_page_lock, memory, self._device).result()
        if pinned:  # without it copies are correct, only slower
            self._pinned.append(memory)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        # Converted there: a conversion on this side would make the copy a synchronous one from pageable memory.
        moved = tensor.to(self._device, non_blocking=True)
        return moved.to(self._dtype) if moved.dtype is torch.float32 else moved

    def launch(self, first: int, last: int, values: Values, *, keep_nan: bool = False) -> _CudaTicket:
        """See :meth:`Executor.launch`. The kernels that run on GPUs keep NaN anyway; CPU stages after it may not."""
        start_s = time.perf_counter()
        # Waiting for an event spins, unless it is a blocking one.
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True, blocking=True)
        layer_events: list[torch.cuda.Event] = []
        sample = self._launched % self.sample_every == 0
        self._launched += 1
        index = first
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                values = tuple(self._to_device(value) for value in values)
                begin.record()
                for index in range(first, last):
                    values = self._functions[index](values)
                    if sample:
                        layer_events.append(torch.cuda.Event(enable_timing=True))
                        layer_events[-1].record()
                # Back to float32, the type that travels.
                values = tuple(value.float() if value.dtype is self._dtype else value for value in values)
                ordinary = _are_within(values, self._layers[last - 1].output_bounds) if last > first else None
                end.record()
            except Exception as error:
                raise LayerError(self._layers[index].name) from error
        return _CudaTicket(values, start_s, begin, end, tuple(layer_events), last - first, ordinary)

    def finish(self, ticket: _CudaTicket) -> Result:
        """See :meth:`Executor.finish`. Values stay on the GPU; the sender copies them into its pinned slot."""
        ticket.end.synchronize()
        stamps = (ticket.begin, *ticket.layer_events)
        layer_s = tuple(a.elapsed_time(b) * 1e-3 for a, b in itertools.pairwise(stamps))
        if not layer_s:
            layer_s = (float("nan"),) * ticket.layer_count
        # Launched while the request before was computing: its own time begins when that one ended.
        now_s, begin_s = time.perf_counter(), max(ticket.start_s, self._finished_s)
        self._finished_s = now_s
        return Result(
            ticket.values,
            wall_s=now_s - begin_s,
            cpu_s=ticket.begin.elapsed_time(ticket.end) * 1e-3,
            run_delay_s=0.0,
            layer_s=layer_s,
            keep_nan=ticket.ordinary is not None and not bool(ticket.ordinary),
        )


def _are_within(values: Values, bounds: Sequence[float]) -> torch.Tensor | None:
    """Whether no value exceeds what layers on CPUs assume, as a tensor that is still being computed."""
    bounded = [value.abs().amax() <= bound for value, bound in zip(values, bounds, strict=True) if bound < math.inf]
    return torch.stack(bounded).all() if bounded else None


def _page_lock(memory: SlotMemory, device: torch.device) -> bool:
    """Page-lock the slots for ``device``'s context; ``False`` if the system does not allow it."""
    with torch.cuda.device(device):
        status = torch.cuda.cudart().cudaHostRegister(memory.address, memory.slots * memory.slot_nbytes, 0)
    return int(status) == 0


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
        return CudaExecutor(layers, state, index=index, dtype=PRECISIONS[precision])
    return CpuExecutor(layers, state, threads=threads)
