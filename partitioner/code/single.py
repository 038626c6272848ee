"""Copies of input and output tensors by the calling thread alone.

PyTorch spreads even a copy of a small image over all cores, and its threads then spin for a while in wait for more. The
process that feeds a pipeline should leave the cores to the stages. NumPy uses one thread.
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


def copied(tensor: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
    """Return a copy of a CPU tensor in a memory format; without one, dense tensors keep their strides."""
    source = tensor.detach().resolve_conj().resolve_neg()
    copy = torch.empty_like(source, memory_format=memory_format)
    if source.device.type == "cpu" and source.dtype in _NUMPY_HAS:
        np.copyto(copy.numpy(), source.numpy())
    else:
        copy.copy_(source)
    return copy
