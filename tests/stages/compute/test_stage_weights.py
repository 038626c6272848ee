"""Weights as arrays: no copy on the way in or out, and nothing changed."""

from __future__ import annotations

import mmap
import pickle

import numpy as np
import pytest
import torch

from odin.partitioner.graph.values import comparable
from odin.stages.channel.torch_arrays import TORCH_DTYPES
from odin.stages.compute.torch_weights import load, store
from odin.stages.compute.weights import StoredTensor


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = (torch.arange(torch.Size(shape).numel()).reshape(shape) % 100).to(dtype)
    back = load(store({"w": tensor}))["w"]
    assert back.dtype is dtype
    assert back.shape == tensor.shape
    assert torch.equal(comparable(back), comparable(tensor))


def test_dense_tensors_are_neither_copied_nor_rearranged():
    state = {
        "plain": torch.randn(4, 5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 5).t(),
        "later rows": torch.randn(6, 5)[2:],
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    back = load(store(state))
    for name, tensor in state.items():
        assert back[name].data_ptr() == tensor.data_ptr()
        assert back[name].stride() == tensor.stride()
        assert torch.equal(back[name], tensor)
        assert not back[name].requires_grad


def test_other_tensors_are_stored_as_they_read():
    state = {
        "columns": torch.randn(4, 6)[:, ::2],
        "expanded": torch.randn(1, 5).expand(3, 5),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }
    back = load(store(state))
    for name, tensor in state.items():
        assert back[name].is_contiguous()
        assert torch.equal(back[name], tensor)


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weight head\.scale is of torch\.bits8, which stages cannot hold"):
        store({"head.scale": torch.empty(2, dtype=torch.bits8)})


def test_arrays_travel_out_of_band():
    # as Ray stores them: the bytes lie beside the pickle, not inside it
    buffers: list[pickle.PickleBuffer] = []
    stored = store({"w": torch.arange(1000.0)})
    data = pickle.dumps(stored, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [4000]
    assert torch.equal(load(pickle.loads(data, buffers=buffers))["w"], torch.arange(1000.0))


def test_read_only_memory_is_viewed_in_place_without_a_warning(recwarn: pytest.WarningsRecorder):
    values = np.arange(1000, dtype=np.float32)
    (tensor,) = load({"w": StoredTensor(read_only(values), 0, (10, 100), (100, 1))}).values()
    assert torch.equal(tensor, torch.arange(1000.0).reshape(10, 100))
    assert [str(warning.message) for warning in recwarn] == []


def read_only(values: np.ndarray) -> np.ndarray:
    """The values' bytes in memory that the kernel lets nobody write."""
    writable = mmap.mmap(-1, values.nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    writable.write(values.tobytes())
    array = np.frombuffer(writable, dtype=np.uint8)
    array.flags.writeable = False
    return array
