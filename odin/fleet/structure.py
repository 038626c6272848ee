"""What a call of a packed model takes and returns: checked and laid out here, put into the model's structure again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from odin.fleet.packed import Head
from odin.fleet.program_data import NotPackableError
from odin.partitioner.code.single import copied
from odin.partitioner.graph.capture import Slot
from odin.partitioner.graph.prepare import layout_of
from odin.partitioner.graph.values import ValueSpec, decoder, dtype_name, plain

__all__ = ["ModelCall", "structure_from_data", "structure_to_data"]

Values = tuple[torch.Tensor, ...]


def structure_to_data(value: Any) -> Any:
    """Write what a call returns, in which slots stand for the outputs, as lists that begin with what they are.

    Raises
    ------
    NotPackableError
        If it is something else than tuples, lists and dicts of tensors and plain values.
    """
    if isinstance(value, Slot):
        return ["slot", value.index]
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return ["plain", value]
    if type(value) in (tuple, list):
        return [type(value).__name__, *map(structure_to_data, value)]
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):  # subclasses become dicts
        return ["dict", *([key, structure_to_data(item)] for key, item in value.items())]
    raise NotPackableError(f"the model returns a {type(value).__name__}, which a packed model cannot; return a tuple")


def structure_from_data(data: Any) -> Callable[[Sequence[Any]], Any]:
    """Return what makes a result of the outputs.

    Raises
    ------
    NotPackableError
        If the values are not those of a structure.
    """
    kind, *parts = data
    if kind == "slot":
        (index,) = parts
        return lambda values: values[index]
    if kind == "plain":
        (constant,) = parts
        return lambda values: constant
    if kind in ("tuple", "list"):
        inside = [structure_from_data(part) for part in parts]
        make = tuple if kind == "tuple" else list
        return lambda values: make(one(values) for one in inside)
    if kind == "dict":
        items = [(key, structure_from_data(item)) for key, item in parts]
        return lambda values: {key: item(values) for key, item in items}
    raise NotPackableError(f"{kind!r} is no structure")


class ModelCall:
    """Arguments to input tensors, and output tensors to the result, for one packed model.

    Attributes
    ----------
    name
        The model's.
    inputs, outputs
        For the example's leading size.
    dynamic_batch
        Whether other leading sizes work.
    """

    def __init__(self, head: Head) -> None:
        self.name = head.name
        self.inputs = tuple(_with_nbytes(*spec) for spec in head.inputs)
        self.outputs = tuple(_with_nbytes(*spec) for spec in head.outputs)
        self.dynamic_batch = head.dynamic_batch
        self._channels_last = head.channels_last
        self._restore = structure_from_data(head.returns)
        self._decode = [None if spec.kind == "tensor" else decoder(spec.kind) for spec in self.outputs]

    @property
    def example_samples(self) -> int:
        """Leading size of the example; 1 if inputs have none."""
        shape = self.inputs[0].shape
        return shape[0] if shape else 1

    def flatten(self, args: tuple[Any, ...]) -> Values:
        """Check a call's arguments; nothing is copied.

        Raises
        ------
        ValueError
            If their number, a shape, a type or a device is not that of the model's inputs.
        """
        if len(args) != len(self.inputs):
            raise ValueError(f"{self.name} takes {len(self.inputs)} tensors, got {len(args)} arguments")
        free = int(self.dynamic_batch)
        leading: int | None = None
        tensors = []
        for index, (arg, spec) in enumerate(zip(args, self.inputs, strict=True)):
            if not isinstance(arg, torch.Tensor):
                raise ValueError(f"input {index} of {self.name} is a {type(arg).__name__}, the model takes a tensor")
            tensor, shape = plain(arg, f"input {index} of {self.name}"), tuple(arg.shape)
            if len(shape) != len(spec.shape) or shape[free:] != spec.shape[free:]:
                expected = f"({', '.join(['any', *map(str, spec.shape[1:])])})" if free else spec.shape
                raise ValueError(f"input {index} of {self.name}: expected shape {expected}, got {shape}")
            if dtype_name(tensor.dtype) != spec.dtype:
                raise ValueError(
                    f"input {index} of {self.name}: expected dtype {spec.dtype}, got {dtype_name(tensor.dtype)}; "
                    f"convert it with .to(torch.{spec.dtype})"
                )
            if tensor.device.type != "cpu":
                raise ValueError(f"input {index} of {self.name} is on {tensor.device}; move it with .to('cpu')")
            if free:
                leading = shape[0] if leading is None else leading
                if shape[0] != leading or leading == 0:
                    raise ValueError(
                        f"input {index} of {self.name}: leading size {shape[0]}, but the inputs need one common "
                        f"leading size >= 1 (the first has {leading})"
                    )
            tensors.append(tensor)
        return tuple(tensors)

    def layout(self, tensors: Values) -> Values:
        """Bring inputs into the memory layout that the model computes with; no copy where they have it."""
        if self._channels_last:
            return tuple(layout_of(tensor) for tensor in tensors)
        return tuple(
            tensor if tensor.is_contiguous() else copied(tensor, torch.contiguous_format) for tensor in tensors
        )

    def samples(self, tensors: Values) -> int:
        """Leading size of inputs; the example's for a model that takes no other."""
        return int(tensors[0].shape[0]) if self.dynamic_batch else self.example_samples

    def unpack(self, outputs: Sequence[torch.Tensor]) -> Any:
        """Put outputs into the structure that the model returns."""
        values = [
            tensor if decode is None else decode(tensor) for tensor, decode in zip(outputs, self._decode, strict=True)
        ]
        return self._restore(values)

    def zeros(self, samples: int = 1) -> Values:
        """Inputs of so many samples, in the layout of :meth:`layout`."""
        free = self.dynamic_batch
        shapes = [(samples, *spec.shape[1:]) if free else spec.shape for spec in self.inputs]
        made = (torch.zeros(shape, dtype=_dtype(spec)) for shape, spec in zip(shapes, self.inputs, strict=True))
        return self.layout(tuple(made))

    def output_zeros(self) -> Values:
        """Outputs as those of the example, without values."""
        return tuple(torch.zeros(spec.shape, dtype=_dtype(spec)) for spec in self.outputs)

    def nbytes(self, samples: int) -> tuple[list[int], list[int]]:
        """Bytes of the inputs and of the outputs of so many samples."""
        scale = -(-samples // self.example_samples) if self.dynamic_batch else 1
        return [scale * spec.nbytes for spec in self.inputs], [scale * spec.nbytes for spec in self.outputs]


def _dtype(spec: ValueSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise NotPackableError(f"{spec.dtype!r} is no type of tensors")
    return dtype


def _with_nbytes(kind: str, shape: tuple[int, ...], dtype: str) -> ValueSpec:
    spec = ValueSpec(kind, shape, dtype, 0)
    return spec._replace(nbytes=math.prod(shape) * _dtype(spec).itemsize)
