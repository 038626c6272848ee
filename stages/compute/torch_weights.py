"""PyTorch's weights as plain arrays and back, packed ones among them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from odin.partitioner.strides import contiguous_strides, is_dense
from odin.stages.channel.torch_arrays import TORCH_CODES, TORCH_DTYPES
from odin.stages.compute.opaque import attach, detach, is_packed
from odin.stages.compute.weights import StoredTensor

__all__ = ["load", "store"]


def store(state: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Describe tensors as arrays that share their memory where they are dense CPU tensors.

    Put the result into Ray's object store: the arrays are stored out of band, once, and every process of a node reads
    them in place.
    """
    stored = {}
    for name, tensor in state.items():
        if is_packed(tensor):
            data, form = detach(tensor)
            stored[name] = StoredTensor(data, TORCH_CODES[tensor.dtype], tuple(tensor.shape), (), form)
            continue
        source = tensor.detach().cpu().resolve_conj().resolve_neg()
        if source.dtype not in TORCH_CODES:
            supported = ", ".join(map(str, TORCH_DTYPES))
            raise ValueError(f"weight {name} is of {source.dtype}, which stages cannot hold; supported: {supported}")
        shape, strides = tuple(source.shape), source.stride()
        if not is_dense(shape, strides):
            source, strides = source.contiguous(), contiguous_strides(shape)
        flat = source.as_strided((source.numel(),), (1,)).view(torch.uint8)
        stored[name] = StoredTensor(flat.numpy(), TORCH_CODES[source.dtype], shape, tuple(strides))
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
            state[name] = flat.view(TORCH_DTYPES[dtype]).as_strided(shape, strides)
    return state
