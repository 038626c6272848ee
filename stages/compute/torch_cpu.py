"""Timed execution of a range of layers by PyTorch on this process's cores."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from odin.stages.channel.arrays import ArrayKind
from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.executor import LayerError, Result, RunDelay, Values

__all__ = ["CpuExecutor", "LayerProgram"]


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
    arrays: ArrayKind = "torch"

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
