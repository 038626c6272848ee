"""PyTorch on this process's cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from odin.stages.channel.arrays import ArrayKind
from odin.stages.compute.cores import CoreExecutor
from odin.stages.compute.executor import Values

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


class CpuExecutor(CoreExecutor):
    """Runs layers with PyTorch.

    Parameters
    ----------
    layers
        All layers of the chain.
    state
        All weights, by name; never written.
    threads
        Compute threads.
    """

    arrays: ArrayKind = "torch"

    def __init__(self, layers: Sequence[LayerProgram], state: Mapping[str, torch.Tensor], *, threads: int = 1) -> None:
        super().__init__([layer.name for layer in layers], [layer.bind(state) for layer in layers], threads=threads)
        self._layers, self._state = layers, state
        self._keeping_nan: list[Callable[[Values], Values]] | None = None

    def mode(self) -> AbstractContextManager[object]:
        """See :meth:`CoreExecutor.mode`."""
        return torch.inference_mode()

    def functions_for(self, *, keep_nan: bool) -> Sequence[Callable[[Values], Values]]:
        """See :meth:`CoreExecutor.functions_for`."""
        if keep_nan and self._keeping_nan is None:
            self._keeping_nan = [layer.bind(self._state, keep_nan=True) for layer in self._layers]
        return self._keeping_nan if keep_nan and self._keeping_nan is not None else self._functions
