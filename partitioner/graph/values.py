"""Values that cross a cut: tensors unchanged, numbers and sizes as small CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CARRIED",
    "ValueSpec",
    "as_bits",
    "comparable",
    "decoder",
    "dtype_name",
    "encoder",
    "obstacle",
    "plain",
    "spec_of",
]

CARRIED = frozenset(
    {
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
        torch.complex32,
    }
)  # fmt: skip
"""Element types that tensors at cuts may have."""
_OWN_TYPES = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


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


def dtype_name(dtype: torch.dtype | torch.layout) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def obstacle(tensor: Tensor) -> str:
    """Say what keeps a tensor from being sent between stages, and the remedy; an empty text if nothing does."""
    kind = type(tensor)
    if kind not in _OWN_TYPES and kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
        return f"a {kind.__name__}, a tensor type with a behaviour of its own: convert it to a plain tensor"
    if tensor.is_nested:
        return "a nested tensor: pad it (to_padded_tensor)"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {dtype_name(tensor.layout)}: convert it with .to_dense()"
    if tensor.is_quantized:
        return f"a quantized tensor ({dtype_name(tensor.dtype)}): convert it with .dequantize()"
    if tensor.dtype not in CARRIED:
        return f"of dtype {dtype_name(tensor.dtype)}, for which PyTorch has hardly any operation: convert it with .to()"
    return ""


def plain(tensor: Tensor, what: str) -> Tensor:
    """Return an ordinary tensor of the same memory.

    Raises
    ------
    ValueError
        If it is of a kind that stages cannot exchange; ``what`` names it.
    """
    problem = obstacle(tensor)
    if problem:
        raise ValueError(f"{what} is {problem}")
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """View the memory as integers of the same size, to be moved about; a tensor of 16 bytes per number as it is."""
    return tensor.view(_BITS.get(tensor.element_size(), tensor.dtype))


def comparable(tensor: Tensor) -> Tensor:
    """Return the values in a type that has arithmetic: complex numbers as pairs, eight bits as float32."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


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
        if obstacle(value):
            return None
        kind, carried = "tensor", value
    else:
        found = _KINDS.get(type(value))
        if found is None:
            return None
        kind, carried = found, _ENCODERS[found](value)
    return ValueSpec(kind, tuple(carried.shape), dtype_name(carried.dtype), carried.numel() * carried.element_size())
