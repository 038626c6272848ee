"""What travels between stages: arrays of one kind or another, alike on the wire.

A channel carries bytes with a dtype, a shape and strides. Whoever sends gives the arrays that it has, whoever receives
says as which kind it wants to see them: the ends of a channel may compute with different engines.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from odin.stages.channel.wire import TensorMeta

__all__ = ["ArrayKind", "Arrays", "Layout", "arrays_in", "kind_of"]

ArrayKind = Literal["torch", "numpy"]
"""PyTorch tensors, which keep their strides on the way; or numpy arrays, which are sent contiguous."""


class Layout(NamedTuple):
    """How an array is going to lie in a slot; ``dtype`` is a wire code, strides in elements."""

    dtype: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Arrays(Protocol):
    """Arrays of one kind in one mapping."""

    def describe(self, array: Any) -> Layout:
        """How ``array`` is going to lie there.

        Raises
        ------
        ValueError
            If its dtype has no wire code.
        """

    def write(self, array: Any, meta: TensorMeta, start: int) -> None:
        """Copy ``array`` to byte ``start`` of the mapping; ``meta`` is how :meth:`describe` said that it lies there."""

    def read(self, meta: TensorMeta, start: int) -> Any:
        """Return a view of what lies at byte ``start``.

        Raises
        ------
        ValueError
            If this kind of arrays does not have that dtype.
        """


def arrays_in(mapping: mmap.mmap, kind: ArrayKind) -> Arrays:
    """Return access to arrays of a kind in a mapping; imports PyTorch only for its tensors."""
    if kind == "torch":
        from odin.stages.channel.torch_arrays import TorchArrays

        return TorchArrays(mapping)
    from odin.stages.channel.numpy_arrays import NumpyArrays

    return NumpyArrays(mapping)


def kind_of(array: Any) -> ArrayKind:
    """Which kind of array this is.

    Raises
    ------
    TypeError
        If it is none.
    """
    if isinstance(array, np.ndarray):
        return "numpy"
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    raise TypeError(f"a {type(array).__name__} cannot travel between stages: give PyTorch tensors or numpy arrays")
