"""A model's inputs and outputs as clients see them: names, datatypes and sizes; and its call from named tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from odin.partitioner.graph.values import ValueSpec
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import Tensor, TensorMetadata

__all__ = ["Signature"]

_BY_TORCH_NAME = {one.torch_name: one for one in DATATYPES.values() if one.torch_name}


class HasInputs(Protocol):
    """What a signature needs of a model: its inputs for the example, and whether their leading size is free."""

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """In their order."""

    @property
    def dynamic_batch(self) -> bool:
        """Whether other leading sizes than the example's work."""


class Signature(NamedTuple):
    """Names and metadata of a model's inputs and outputs.

    Attributes
    ----------
    inputs, outputs
        In the model's order.
    arguments
        Leaves of the model's example arguments; None where an input belongs.
    structure
        How those leaves make the arguments.
    """

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    arguments: tuple[Any, ...]
    structure: Any

    @classmethod
    def of(
        cls,
        chain: HasInputs,
        example: tuple[Any, ...],
        result: Any,
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> Signature:
        """Find a model's signature.

        Parameters
        ----------
        chain, example
            The model, and arguments of a call.
        result
            What it returned for them.
        inputs, outputs
            Names to use instead of its own.

        Raises
        ------
        ValueError
            If there are not as many names as inputs or outputs, or a type has no name in the protocol.
        """
        leaves, structure = pytree.tree_flatten(tuple(example))
        arguments = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        free = chain.dynamic_batch
        took = [_metadata(name, spec.dtype, spec.shape, free) for name, spec in _named("input", chain.inputs, inputs)]
        paths, _ = pytree.tree_flatten_with_path(result)
        leaves = [(_text(path), torch.as_tensor(leaf)) for path, leaf in paths]
        named = _named("output", leaves, outputs, [path for path, _ in leaves])
        size = chain.inputs[0].shape[0] if free else -1
        gave = [
            _metadata(name, str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape), free and _leads(leaf, size))
            for name, (_, leaf) in named
        ]
        return cls(tuple(took), tuple(gave), arguments, structure)

    def call(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """Return the arguments of the model's call for named tensors; nothing is copied.

        Raises
        ------
        RequestError
            If one is missing, unknown, given twice, or of another datatype or size.
        """
        by_name = {tensor.name: tensor for tensor in tensors}
        if len(by_name) != len(tensors):
            twice = next(tensor.name for tensor in tensors if by_name[tensor.name] is not tensor)
            raise RequestError(FailureKind.INVALID, f"input {twice!r} is given twice")
        for name in by_name:
            if all(name != known.name for known in self.inputs):
                raise RequestError(FailureKind.INVALID, f"there is no input {name!r}; there are {_names(self.inputs)}")
        arrays = []
        for known in self.inputs:
            tensor = by_name.get(known.name)
            if tensor is None:
                raise RequestError(FailureKind.INVALID, f"input {known.name!r} is missing")
            _check(tensor, known)
            arrays.append(_as_torch(tensor))
        free = [array for array, known in zip(arrays, self.inputs, strict=True) if known.shape[:1] == (-1,)]
        if len({array.shape[0] for array in free}) > 1:
            sizes = ", ".join(
                f"{known.name!r}: {array.shape[0]}" for array, known in zip(arrays, self.inputs, strict=True)
            )
            raise RequestError(FailureKind.INVALID, f"inputs have different leading sizes: {sizes}")
        left = iter(arrays)
        leaves = [next(left) if argument is None else argument for argument in self.arguments]
        arguments: tuple[Any, ...] = pytree.tree_unflatten(leaves, self.structure)
        return arguments

    def name_outputs(self, result: Any) -> tuple[Tensor, ...]:
        """Return what a call returned as named tensors; nothing is copied."""
        leaves = pytree.tree_leaves(result)
        tensors = []
        for known, leaf in zip(self.outputs, leaves, strict=True):
            value = torch.as_tensor(leaf).detach()
            if value.dtype is torch.bfloat16:
                value = value.contiguous().view(torch.uint16)
            tensors.append(Tensor(known.name, known.datatype, value.numpy()))
        return tuple(tensors)


def _named(kind: str, values: Sequence[Any], given: Sequence[str], own: Sequence[str] = ()) -> list[tuple[str, Any]]:
    if given and len(given) != len(values):
        raise ValueError(f"{len(given)} names for {kind}s ({', '.join(given)}), but the model has {len(values)}")
    if given and len(set(given)) != len(given):
        raise ValueError(f"names for {kind}s occur twice: {', '.join(given)}")
    names = list(given)
    if not names and own and all(own) and len(set(own)) == len(own):
        names = list(own)
    elif not names:
        names = [kind] if len(values) == 1 else [f"{kind}_{number}" for number in range(len(values))]
    return list(zip(names, values, strict=True))


def _text(path: Sequence[Any]) -> str:
    """Name of a leaf that lies in dicts: their keys; empty for one in a list or by itself."""
    keys = [getattr(step, "key", None) for step in path]
    return "" if any(not isinstance(key, str) for key in keys) else ".".join(map(str, keys))


def _metadata(name: str, dtype: str, shape: Sequence[int], free: bool) -> TensorMetadata:
    datatype = _BY_TORCH_NAME.get(dtype)
    if datatype is None:
        raise ValueError(f"{name} is of type {dtype}, for which the protocol has no name; convert it in the model")
    return TensorMetadata(name, datatype, (-1, *shape[1:]) if free else tuple(shape))


def _leads(leaf: torch.Tensor, size: int) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] == size


def _names(known: Sequence[TensorMetadata]) -> str:
    return ", ".join(repr(one.name) for one in known)


def _check(tensor: Tensor, known: TensorMetadata) -> None:
    if tensor.datatype is not known.datatype:
        raise RequestError(
            FailureKind.INVALID,
            f"input {tensor.name!r} is of datatype {tensor.datatype.name}, the model takes {known.datatype.name}",
        )
    shape = tensor.array.shape
    fits = len(shape) == len(known.shape) and all(
        size == wanted or (wanted == -1 and size > 0) for size, wanted in zip(shape, known.shape, strict=True)
    )
    if not fits:
        raise RequestError(
            FailureKind.INVALID,
            f"input {tensor.name!r} has shape {list(shape)}, the model takes {list(known.shape)}"
            + (" (-1: any number from 1 on)" if -1 in known.shape else ""),
        )


def _as_torch(tensor: Tensor) -> torch.Tensor:
    array: npt.NDArray[Any] = tensor.array
    if tensor.datatype.name == "BF16":
        return torch.from_numpy(array).view(torch.bfloat16)
    if not array.flags.c_contiguous or math.prod(array.shape) == 0 or not array.dtype.isnative:
        array = np.array(array)
    return torch.from_numpy(array)
