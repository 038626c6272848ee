"""What stages get of a chain, and how its inputs have to lie in memory: depends on the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odin.partitioner.chain import Chain
from odin.partitioner.code.single import copied
from odin.partitioner.engines.agreement import Agreement
from odin.partitioner.engines.cut_model import CutModel
from odin.partitioner.engines.names import TORCH
from odin.partitioner.engines.session import Array

__all__ = ["EngineForm", "Form", "TorchForm"]


class Form(Protocol):
    """A chain as an engine runs it."""

    @property
    def engine(self) -> str:
        """Name of the engine."""

    @property
    def model(self) -> Any:
        """What stages attach the weights to; picklable, has ``layers``."""

    @property
    def cuts(self) -> Sequence[Sequence[int]]:
        """Bytes of each value that crosses a cut, the model's inputs and outputs among them, as in the example."""

    def layout(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Bring input tensors into the memory layout that the engine takes; no copy where they have it already."""


@dataclass(frozen=True)
class TorchForm:
    """A chain as PyTorch runs it."""

    chain: Chain
    engine: str = TORCH

    @property
    def model(self) -> Any:
        """See :attr:`Form.model`."""
        return self.chain.program

    @property
    def cuts(self) -> Sequence[Sequence[int]]:
        """See :attr:`Form.cuts`."""
        return [[spec.nbytes for spec in cut] for cut in (self.chain.inputs, *(x.output for x in self.chain.layers))]

    def layout(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`Form.layout`."""
        return self.chain.layout(tensors)


@dataclass(frozen=True)
class EngineForm:
    """A chain as another engine runs it.

    Attributes
    ----------
    model
        Its layers.
    weights
        Plain arrays by name, read by all layers.
    agreement
        How far its outputs are from the chain's.
    """

    model: CutModel
    weights: Mapping[str, Array]
    agreement: Agreement | None = None

    @property
    def engine(self) -> str:
        """See :attr:`Form.engine`."""
        return self.model.engine

    def without_weights(self) -> EngineForm:
        """Return what describes it."""
        return dataclasses.replace(self, weights={})

    @property
    def cuts(self) -> Sequence[Sequence[int]]:
        """See :attr:`Form.cuts`."""
        return [[value.nbytes for value in cut] for cut in self.model.cuts]

    def layout(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See :meth:`Form.layout`."""
        return tuple(t if t.is_contiguous() else copied(t, torch.contiguous_format) for t in tensors)
