"""Weights of engines other than PyTorch: numpy arrays, read where they lie, aligned and never written."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from odin.stages.channel.numpy_arrays import NUMPY_DTYPES
from odin.stages.compute.torch_weights import load, store
from odin.stages.compute.weights import ALIGNMENT, StoredTensor, load_arrays, store_arrays


@pytest.mark.parametrize("dtype", NUMPY_DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4, 5), (40, 30)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype: np.dtype, shape: tuple[int, ...]):
    array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 100).astype(dtype)
    (back,) = load_arrays(store_arrays({"w": array})).values()
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)
    assert back.ctypes.data % ALIGNMENT == 0
    assert not back.flags.writeable
    (tensor,) = load(store_arrays({"w": array})).values()
    assert np.array_equal(tensor.numpy(), array)


def test_long_ones_are_not_copied():
    aligned = np.frombuffer(mmap.mmap(-1, 8192), np.float32).reshape(32, 64)
    (back,) = load_arrays(store_arrays({"w": aligned})).values()
    assert back.ctypes.data == aligned.ctypes.data


def test_what_lies_at_an_odd_address_is_copied_to_an_even_one():
    memory = np.frombuffer(mmap.mmap(-1, 8192), np.uint8)
    memory[8:4104] = np.arange(1024, dtype=np.float32).view(np.uint8)
    (back,) = load_arrays({"w": StoredTensor(memory[8:4104], 0, (1024,), (1,))}).values()
    assert back.tolist() == list(range(1024))
    assert back.ctypes.data % ALIGNMENT == 0


def test_pytorchs_weights_are_read_in_their_strides():
    tensor = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    (array,) = load_arrays(store({"w": tensor})).values()
    assert np.array_equal(array, tensor.numpy())


def test_what_stages_cannot_hold_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weight head\.scale: arrays of float128 cannot travel"):
        store_arrays({"head.scale": np.zeros(3, np.longdouble)})
    with pytest.raises(ValueError, match=r"numpy has no bfloat16"):
        load_arrays(store({"w": torch.zeros(3, dtype=torch.bfloat16)}))
    with pytest.raises(ValueError, match="weight w is packed for PyTorch"):
        load_arrays({"w": StoredTensor(np.zeros(64, np.uint8), 0, (4, 4), (), b"form")})


@pytest.mark.ray
def test_in_the_object_store_all_are_aligned_and_read_only(ray_session: None):
    import ray

    rng = np.random.default_rng(0)
    arrays = {str(size): rng.random(size, np.float32) for size in (1, 3, 7, 511, 512, 513, 100_001)}
    stored = ray.get(ray.put(store_arrays(arrays)))
    assert all(entry.data.ctypes.data % ALIGNMENT == 0 for entry in stored.values())
    back = load_arrays(stored)
    for name, array in arrays.items():
        assert back[name].ctypes.data == stored[name].data.ctypes.data
        assert np.array_equal(back[name], array)
        assert not back[name].flags.writeable
