"""Timed execution of layers on this process's cores, whatever runtime computes them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from odin.stages.channel.arrays import ArrayKind
from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.executor import LayerError, Result, RunDelay, Values

__all__ = ["CoreExecutor"]


class CoreExecutor:
    """Runs layers on the cores to which this process is pinned, weights read in place.

    Parameters
    ----------
    names
        The layers' names.
    functions
        Each layer as a function of values.
    threads
        Compute threads; CPU time is that of one thread, or of the process if there are several.
    """

    overlaps = False
    looks_between_layers = True
    arrays: ArrayKind = "numpy"

    def __init__(
        self, names: Sequence[str], functions: Sequence[Callable[[Values], Values]], *, threads: int = 1
    ) -> None:
        self._names, self._functions = names, functions
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

    def mode(self) -> AbstractContextManager[object]:
        """In which the runtime computes."""
        return contextlib.nullcontext()

    def functions_for(self, *, keep_nan: bool) -> Sequence[Callable[[Values], Values]]:
        """Return the layers, or those that pass NaN on, if the fastest do not."""
        return self._functions

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
        if first == last:  # passes on what it got
            return Result(values, 0.0, 0.0, 0.0, ())
        if self._run_delay is None or self._run_delay.thread != threading.get_native_id():
            self._run_delay = RunDelay()
        functions = self.functions_for(keep_nan=keep_nan)
        clock, layer_s, index = time.perf_counter, [], first
        delay_s, cpu_s = self._run_delay.read_s(), self._cpu_clock()
        start_s = now_s = clock()
        try:
            with self.mode():
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
