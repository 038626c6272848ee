"""Packed weights as bytes and back."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
import torch

from odin.stages.compute.opaque import attach, detach, is_packed, supported
from odin.stages.compute.torch_weights import load, store

pytestmark = pytest.mark.skipif(not supported(), reason="this PyTorch cannot read packed weights in place")

ARGUMENTS = ([1, 1], [1, 1], [1, 1], 1)


def packed_weight(channels: int = 32) -> torch.Tensor:
    weight = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *ARGUMENTS, [1, channels, 8, 8])


def convolved(weight: torch.Tensor) -> torch.Tensor:
    x = torch.randn(1, weight.shape[1], 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.ops.mkldnn._convolution_pointwise(x, weight, None, *ARGUMENTS, "relu", [], "")


def test_an_attached_weight_computes_the_same_bits_from_the_same_memory():
    packed = packed_weight()
    data, form = detach(packed)
    attached = attach(data, form, packed.shape)
    assert is_packed(attached)
    assert torch.ops.mkldnn.data_ptr(attached) == data.ctypes.data
    assert torch.equal(convolved(attached), convolved(packed))


def test_read_only_memory_will_do():
    data, form = detach(packed_weight())
    file = mmap.mmap(-1, data.nbytes)
    file.write(data.tobytes())
    address = np.frombuffer(file, np.uint8)
    address.flags.writeable = False
    assert torch.equal(convolved(attach(address, form, (32, 32, 3, 3))), convolved(packed_weight()))


def test_the_memory_lives_as_long_as_the_tensor():
    data, form = detach(packed_weight())
    attached = attach(data, form, (32, 32, 3, 3))
    expected = convolved(attached)
    del data
    gc.collect()
    scratch = [np.full(100_000, 255, np.uint8) for _ in range(20)]
    assert torch.equal(convolved(attached), expected)
    assert len(scratch) == 20


def test_stored_weights_may_be_packed_and_plain():
    state = {"packed": packed_weight(), "plain": torch.arange(6.0).reshape(2, 3)}
    loaded = load(store(state))
    assert torch.equal(loaded["plain"], state["plain"])
    assert is_packed(loaded["packed"])
    assert torch.equal(convolved(loaded["packed"]), convolved(state["packed"]))
