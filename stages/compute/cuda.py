"""Timed execution of a range of layers on a CUDA GPU: pinned slots, copies beside computing, layers as CUDA graphs."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from odin.stages.channel.arrays import ArrayKind
from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.captured import GraphMemory, LayerGraph, Rehearsal
from odin.stages.compute.executor import LayerError, Result, Values
from odin.stages.compute.precision import GPU_PRECISIONS
from odin.stages.compute.torch_cpu import LayerProgram
from odin.stages.device import DeviceError

__all__ = ["PRECISIONS", "CudaExecutor", "computing_as", "use_precision"]

PRECISIONS: dict[str, torch.dtype] = {
    name: torch.float32 if name == "tf32" else getattr(torch, name) for name in GPU_PRECISIONS
}

_ALREADY_REGISTERED = 712  # cudaErrorHostMemoryAlreadyRegistered


class _Ticket(NamedTuple):
    values: Values
    start_s: float
    begin: torch.cuda.Event
    end: torch.cuda.Event
    layer_events: tuple[torch.cuda.Event, ...]
    layer_count: int
    ordinary: torch.Tensor | None


class CudaExecutor:
    """Runs layers on a GPU, with times from CUDA events.

    Layers are captured as CUDA graphs: a graph is one launch where PyTorch makes one for each kernel, and small batches
    spend more time on launches than the GPU on computing. Which layers can be is found out while :meth:`calibrating`.
    Those are captured then, by :meth:`prepare` when they come back, and on values of other shapes while serving, one
    layer with each request so that none waits long. What waits for the GPU inside, or is so large that launches do not
    matter, runs without a graph.

    Parameters
    ----------
    layers
        All layers of the chain.
    state
        All weights, by name, in host memory.
    index
        CUDA device number.
    precision
        One of :data:`PRECISIONS`: what is float32 elsewhere is of this type on the GPU.
        Values travel between stages as float32. Whether TensorFloat-32 is used is for :func:`use_precision` to say.
    sample_every
        Every so many requests events are recorded between layers too; in between, layer times are ``nan``.
    """

    overlaps = True
    looks_between_layers = False  # kernels are queued, not run, when launch goes on to the next layer
    arrays: ArrayKind = "torch"
    SAMPLE_EVERY = 16

    def __init__(
        self,
        layers: Sequence[LayerProgram],
        state: Mapping[str, torch.Tensor],
        *,
        index: int,
        precision: str = "float32",
        sample_every: int = SAMPLE_EVERY,
    ) -> None:
        self._layers = layers
        self._host = state
        self._device = torch.device("cuda", index)
        self._dtype = PRECISIONS[precision]
        # Without tensor cores cuDNN is faster with channels before pixels, with them the other way round.
        self._plain_layout = precision == "float32"
        self.sample_every = sample_every
        self._calibrating = False
        self._launched = 0
        self._finished_s = 0.0
        self._resident: dict[str, torch.Tensor] = {}
        self._functions: dict[int, Callable[[Values], Values]] = {}
        self._rehearsals: dict[int, Rehearsal] = {}
        self._stream = torch.cuda.Stream(self._device)
        # One for all: memory that PyTorch keeps for reuse belongs to the stream that asked for it.
        self._preparing = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._preparing):
            self._graph_memory = GraphMemory()
        self._dropped: list[tuple[torch.cuda.Event, list[LayerGraph]]] = []

    def prepare(self, first: int, last: int) -> None:
        """Copy the weights of layers ``[first, last)`` to the GPU, on a stream of its own, and wait for it.

        Raises
        ------
        DeviceError
            If they do not fit; those that were there stay.
        """
        self._forget_dropped()
        known = set(self._functions)
        try:
            with torch.inference_mode(), torch.cuda.stream(self._preparing):
                for index in range(first, last):
                    self._load(index)
                for index in range(first, last):
                    if index not in known and index in self._rehearsals:
                        self._rehearsals[index].capture_known(self._functions[index], memory=self._graph_memory)
            self._preparing.synchronize()
        except torch.OutOfMemoryError as error:
            self._keep(known)
            raise DeviceError(self._describe_full(first, last)) from error

    def _load(self, index: int) -> None:
        layer = self._layers[index]
        for name in layer.state_names:
            if name not in self._resident:
                weight = self._to_device(self._host[name])
                # Allocated on one stream, read on another: once freed, the memory may be used again only after the
                # layers that are under way then.
                weight.record_stream(self._stream)
                self._resident[name] = weight
        if index not in self._functions:
            self._functions[index] = layer.bind(
                {name: self._resident[name] for name in layer.state_names}, device=self._device
            )

    def _describe_full(self, first: int, last: int) -> str:
        free, total = torch.cuda.mem_get_info(self._device)
        names = {name for layer in self._layers[first:last] for name in layer.state_names}
        missing = [self._host[name] for name in names if name not in self._resident]
        needed = sum(w.numel() * (self._dtype if w.dtype is torch.float32 else w.dtype).itemsize for w in missing)
        return (
            f"gpu:{self._device.index} has no room for layers {first} to {last - 1}: their weights that are not there "
            f"yet take {needed / 2**20:,.0f} MiB, and what they compute some more, and {free / 2**20:,.0f} of "
            f"{total / 2**20:,.0f} MiB are free; end what else uses it (nvidia-smi lists it), give this stage fewer "
            "layers, or lower batch or precision"
        )

    def retain(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Free the weights that no layer in these ranges needs."""
        self._keep({index for first, last in ranges for index in range(first, last)})

    def _keep(self, kept: set[int]) -> None:
        captured: list[LayerGraph] = []
        for index in set(self._functions) - kept:
            del self._functions[index]
            if index in self._rehearsals:
                captured += self._rehearsals[index].release()
        needed = {name for index in kept for name in self._layers[index].state_names}
        for name in [name for name in self._resident if name not in needed]:
            del self._resident[name]
        if captured:  # a graph must not end while the GPU still runs it
            last_use = torch.cuda.Event()
            last_use.record(self._stream)
            self._dropped.append((last_use, captured))

    def _forget_dropped(self) -> None:
        self._dropped = [(last_use, captured) for last_use, captured in self._dropped if not last_use.query()]

    def adopt(self, memory: SlotMemory) -> None:
        """Page-lock a ring of slots, so that copies to and from it are asynchronous; as long as this executor lives."""
        # In a thread of its own: CUDA keeps a failed call's error for the thread's next kernel to report.
        with ThreadPoolExecutor(1) as pool:
            locked = pool.submit(_page_lock, memory, self._device).result()
        if locked:  # without it copies are correct, only slower
            weakref.finalize(self, _unlock_pages, memory)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        # Converted there: a conversion on this side would make the copy a synchronous one from pageable memory.
        moved = tensor.to(self._device, non_blocking=True)
        if moved.dtype is torch.float32:
            moved = moved.to(self._dtype)
        return moved.contiguous() if self._plain_layout else moved

    @property
    def refused(self) -> dict[str, str]:
        """Layers that cannot be captured as graphs, and why."""
        return {self._layers[index].name: known.refused for index, known in self._rehearsals.items() if known.refused}

    @contextlib.contextmanager
    def calibrating(self) -> Iterator[None]:
        """Meanwhile every launch tells the times of its layers; the third one captures all that can be.

        For a time when nothing else in this process uses the GPU.
        """
        before, self.sample_every, self._calibrating = self.sample_every, 1, True
        try:
            yield
        finally:
            self.sample_every, self._calibrating = before, False

    def launch(
        self,
        first: int,
        last: int,
        values: Values,
        *,
        keep_nan: bool = False,
        at_cut: Callable[[int, float], bool] | None = None,
    ) -> _Ticket:
        """See :meth:`Executor.launch`. The kernels that run on GPUs keep NaN anyway; CPU stages after it may not."""
        start_s = time.perf_counter()
        # Waiting for an event spins, unless it is a blocking one.
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True, blocking=True)
        layer_events: list[torch.cuda.Event] = []
        sample = self._launched % self.sample_every == 0
        self._launched += 1
        captures_left = math.inf if self._calibrating else 1
        index = first
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                values = tuple(self._to_device(value) for value in values)
                begin.record()
                for index in range(first, last):
                    function, rehearsal = self._functions[index], self._rehearsals.get(index)
                    if rehearsal is None:
                        rehearsal = self._rehearsals[index] = Rehearsal()
                    captured = rehearsal.find(values)
                    due = captured is None and captures_left >= 1 and rehearsal.is_due(values)
                    if due and not self._graph_memory.failed:
                        captured = rehearsal.capture(function, values, memory=self._graph_memory)
                        captures_left -= 1
                    if captured is not None:
                        values = captured.replay(values)
                    elif self._calibrating:
                        values = rehearsal.examine(function, values)
                    else:
                        values = rehearsal.run(function, values)
                    if sample:
                        layer_events.append(torch.cuda.Event(enable_timing=True))
                        layer_events[-1].record()
                if last > first:
                    # Back to float32, the type that travels, and out of the graphs' memory.
                    values = tuple(
                        value.to(torch.float32, copy=True) if value.dtype is self._dtype else value.clone()
                        for value in values
                    )
                    ordinary = _are_within(values, self._layers[last - 1].output_bounds)
                else:
                    values = tuple(value.float() if value.dtype is self._dtype else value for value in values)
                    ordinary = None
                end.record()
            except Exception as error:
                raise LayerError(self._layers[index].name) from error
        return _Ticket(values, start_s, begin, end, tuple(layer_events), last - first, ordinary)

    def finish(self, ticket: _Ticket) -> Result:
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


def use_precision(precision: str) -> None:
    """Let this process compute in a precision: ``float32`` means it, and only ``tf32`` is TensorFloat-32.

    TensorFloat-32 has 10 bits of mantissa, and cuDNN uses it unless told otherwise.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


@contextlib.contextmanager
def computing_as(precision: str) -> Iterator[None]:
    """As :func:`use_precision`, but all is as before afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    use_precision(precision)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _are_within(values: Values, bounds: Sequence[float]) -> torch.Tensor | None:
    """Whether no value exceeds what layers on CPUs assume, as a tensor that is still being computed."""
    bounded = [value.abs().amax() <= bound for value, bound in zip(values, bounds, strict=True) if bound < math.inf]
    return torch.stack(bounded).all() if bounded else None


def _page_lock(memory: SlotMemory, device: torch.device) -> bool:
    """Page-lock the slots for ``device``'s context; ``False`` if the system does not allow it."""
    runtime = torch.cuda.cudart()
    with torch.cuda.device(device):
        nbytes = memory.slots * memory.slot_nbytes
        status = int(runtime.cudaHostRegister(memory.address, nbytes, 0))
        if status == _ALREADY_REGISTERED:
            # Of memory that lay here before and was unmapped without a word to CUDA, which would copy to and from that.
            runtime.cudaHostUnregister(memory.address)
            status = int(runtime.cudaHostRegister(memory.address, nbytes, 0))
    return status == 0


def _unlock_pages(memory: SlotMemory) -> None:
    """Before the memory is unmapped: CUDA would go on copying to the pages that were there."""
    with contextlib.suppress(Exception):  # at the end of the process CUDA may be gone
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaHostUnregister(memory.address)
