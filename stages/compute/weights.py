"""Weights as plain arrays, so that one copy per node in Ray's object store serves every stage without copying."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from odin.partitioner.strides import is_dense
from odin.stages.channel.slots import contiguous_strides
from odin.stages.channel.wire import DTYPE_CODES, DTYPES
from odin.stages.compute.opaque import attach, detach, is_packed

__all__ = ["StoredTensor", "load", "store"]


class StoredTensor(NamedTuple):
    """A tensor as a 1-D array of bytes with what is needed to read it.

    Attributes
    ----------
    dtype
        Code on the wire.
    strides
        In elements; none for a packed tensor.
    form
        oneDNN's description of a packed tensor (:mod:`odin.stages.compute.opaque`); empty for a plain one.
    """

    data: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    form: bytes = b""


def store(state: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Describe tensors as arrays that share their memory where they are dense CPU tensors.

    Put the result into Ray's object store: the arrays are stored out of band, once, and every process of a node reads
    them in place.
    """
    stored = {}
    for name, tensor in state.items():
        if is_packed(tensor):
            data, form = detach(tensor)
            stored[name] = StoredTensor(data, DTYPE_CODES[tensor.dtype], tuple(tensor.shape), (), form)
            continue
        source = tensor.detach().cpu().resolve_conj().resolve_neg()
        if source.dtype not in DTYPE_CODES:
            raise ValueError(f"weight {name} is of {source.dtype}, which stages cannot hold; supported: {DTYPES}")
        shape, strides = tuple(source.shape), source.stride()
        if not is_dense(shape, strides):
            source, strides = source.contiguous(), contiguous_strides(shape)
        flat = source.as_strided((source.numel(),), (1,)).view(torch.uint8)
        stored[name] = StoredTensor(flat.numpy(), DTYPE_CODES[source.dtype], shape, tuple(strides))
    return stored


def load(stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """View stored arrays as tensors, without copying. The tensors must not be written: the memory may be read-only."""
    state = {}
    with warnings.catch_warnings():
        # PyTorch has no read-only tensors and warns of arrays that are; stages never write weights.
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
        for name, (data, dtype, shape, strides, form) in stored.items():
            if form:
                state[name] = attach(data, form, shape)
                continue
            flat = torch.from_numpy(data) if data.size else torch.empty(0, dtype=torch.uint8)
            state[name] = flat.view(DTYPES[dtype]).as_strided(shape, strides)
    return state
