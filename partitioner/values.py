"""What crosses a cut: tensors as they are, numbers and sizes carried by small CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["ValueSpec", "decoder", "dtype_name", "encoder", "spec_of"]


class ValueSpec(NamedTuple):
    """One value that crosses a cut, as seen in the example run.

    Attributes
    ----------
    kind
        ``"tensor"``, or what the model's own value is: ``"int"``, ``"bool"``, ``"float"`` or ``"size"`` (a
        ``torch.Size``). Those cross as CPU tensors: int64, bool, float64, int64.
    shape
        Shape of the tensor that crosses; ``()`` for a number.
    dtype
        Its element type without the ``torch.`` prefix, such as ``"float32"``.
    nbytes
        Bytes of its elements.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def encode_int(value: int) -> Tensor:
    """Carry an int."""
    return torch.tensor(value, dtype=torch.int64, device="cpu")


def decode_int(carried: Tensor) -> int:
    """Take the int back."""
    return int(carried.item())


def encode_bool(value: bool) -> Tensor:
    """Carry a bool."""
    return torch.tensor(value, dtype=torch.bool, device="cpu")


def decode_bool(carried: Tensor) -> bool:
    """Take the bool back."""
    return bool(carried.item())


def encode_float(value: float) -> Tensor:
    """Carry a float, exactly."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def decode_float(carried: Tensor) -> float:
    """Take the float back."""
    return float(carried.item())


def encode_size(value: torch.Size) -> Tensor:
    """Carry a ``torch.Size``."""
    return torch.tensor(tuple(value), dtype=torch.int64, device="cpu")


def decode_size(carried: Tensor) -> torch.Size:
    """Take the ``torch.Size`` back."""
    return torch.Size(carried.tolist())


_KINDS: dict[type, str] = {bool: "bool", int: "int", float: "float", torch.Size: "size"}
_ENCODERS: dict[str, Callable[[Any], Tensor]] = {
    "int": encode_int,
    "bool": encode_bool,
    "float": encode_float,
    "size": encode_size,
}
_DECODERS: dict[str, Callable[[Tensor], Any]] = {
    "int": decode_int,
    "bool": decode_bool,
    "float": decode_float,
    "size": decode_size,
}


def encoder(kind: str) -> Callable[[Any], Tensor]:
    """Return the function that puts a value of this kind (not ``"tensor"``) into a tensor."""
    return _ENCODERS[kind]


def decoder(kind: str) -> Callable[[Tensor], Any]:
    """Return the function that takes a value of this kind (not ``"tensor"``) out of its tensor."""
    return _DECODERS[kind]


def spec_of(value: Any) -> ValueSpec | None:
    """Describe a value as it crosses a cut, or return None if it is of a kind that cannot."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            return None
        kind, carried = "tensor", value
    else:
        found = _KINDS.get(type(value))
        if found is None:
            return None
        kind, carried = found, _ENCODERS[found](value)
    return ValueSpec(kind, tuple(carried.shape), dtype_name(carried.dtype), carried.numel() * carried.element_size())
