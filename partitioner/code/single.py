"""Copies of input and output tensors by the calling thread alone.

PyTorch spreads even a copy of a small image over all cores, and its threads then spin for a while in wait for more. The
process that feeds a pipeline should leave the cores to the stages. NumPy uses one thread. Its innermost loop is over
the axis that is dense in the copy, which takes long where that has few places, as the three channels of an image: their
planes are copied one by one, in a quarter of the time.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["copied"]

_NUMPY_HAS = frozenset(
    {
        torch.float16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    }
)  # fmt: skip

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)
_FEW_CHANNELS = 8
"""Up to so many, copying planes is faster."""


def copied(tensor: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
    """Return a copy of a CPU tensor in a memory format; without one, dense tensors keep their strides."""
    source = tensor.detach().resolve_conj().resolve_neg()
    copy = torch.empty_like(source, memory_format=memory_format)
    if source.device.type == "cpu" and source.dtype in _NUMPY_HAS:
        to, values = copy.numpy(), source.numpy()
        if memory_format in _CHANNELS_LAST and 1 < values.shape[1] <= _FEW_CHANNELS:
            for channel in range(values.shape[1]):
                np.copyto(to[:, channel], values[:, channel])
        else:
            np.copyto(to, values)
    else:
        copy.copy_(source)
    return copy
