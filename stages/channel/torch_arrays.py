"""PyTorch tensors in slots: dense ones keep their strides, so that channels-last stays channels-last."""

from __future__ import annotations

import ctypes
import mmap

import torch

from odin.partitioner.strides import contiguous_strides, is_dense
from odin.stages.channel.arrays import Layout
from odin.stages.channel.wire import DTYPES, ITEM_NBYTES, TensorMeta

__all__ = ["TORCH_CODES", "TORCH_DTYPES", "TorchArrays"]

TORCH_DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in DTYPES)
"""Index in this tuple = code on the wire."""
TORCH_CODES: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(TORCH_DTYPES)}

_MEMCPY_NBYTES = 256
"""Below this a tensor copy costs no more than a call of memcpy."""


class TorchArrays:
    """See :class:`odin.stages.channel.arrays.Arrays`; other than dense tensors become contiguous."""

    def __init__(self, mapping: mmap.mmap) -> None:
        data = torch.frombuffer(mapping, dtype=torch.uint8)
        self._address = data.data_ptr()
        self._typed = tuple(data.view(dtype) for dtype in TORCH_DTYPES)

    def describe(self, array: torch.Tensor) -> Layout:
        """See :meth:`odin.stages.channel.arrays.Arrays.describe`."""
        code = TORCH_CODES.get(array.dtype)
        if code is None:
            supported = ", ".join(map(str, TORCH_DTYPES))
            raise ValueError(f"tensors of {array.dtype} cannot travel between stages; supported: {supported}")
        shape, strides = tuple(array.shape), array.stride()
        if not (array.is_contiguous() or is_dense(shape, strides)):
            strides = contiguous_strides(shape)
        return Layout(code, array.numel() * array.element_size(), shape, strides)

    def write(self, array: torch.Tensor, meta: TensorMeta, start: int) -> None:
        """See :meth:`odin.stages.channel.arrays.Arrays.write`."""
        if meta.nbytes > _MEMCPY_NBYTES and array.stride() == meta.strides and _is_plain(array):
            # memcpy keeps the interpreter free and uses the C library's streaming stores.
            ctypes.memmove(self._address + start, array.data_ptr(), meta.nbytes)
        else:
            self.read(meta, start).copy_(array.detach())  # or the ring itself would join the caller's autograd graph

    def read(self, meta: TensorMeta, start: int) -> torch.Tensor:
        """See :meth:`odin.stages.channel.arrays.Arrays.read`."""
        code, _, _, shape, strides = meta
        return self._typed[code].as_strided(shape, strides, start // ITEM_NBYTES[code])


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes in host memory are the values: not conjugated or negated lazily."""
    return tensor.device.type == "cpu" and not tensor.is_conj() and not tensor.is_neg()
