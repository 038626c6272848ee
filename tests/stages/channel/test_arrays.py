"""PyTorch tensors and numpy arrays at the ends of one channel: either reads what the other sends."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from channels import KINDS, pair, request

from odin.partitioner.graph.values import comparable
from odin.stages.channel.arrays import kind_of
from odin.stages.channel.numpy_arrays import NUMPY_DTYPES
from odin.stages.channel.slots import SlotMemory, slot_nbytes_for
from odin.stages.channel.wire import DTYPES

both_kinds = pytest.mark.parametrize("kind", KINDS)
IN_NUMPY = [DTYPES[code] for code in NUMPY_DTYPES]
NOT_IN_NUMPY = [name for name in DTYPES if name not in IN_NUMPY]


def sample(name: str, *shape: int) -> torch.Tensor:
    return (torch.arange(torch.Size(shape).numel()).reshape(shape) % 100).to(getattr(torch, name))


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@both_kinds
@pytest.mark.parametrize("name", IN_NUMPY)
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 0), (2, 3, 8, 9)], ids=str)
def test_every_type_of_numpys_goes_from_pytorch_to_numpy_and_back(kind: str, name: str, shape: tuple[int, ...]):
    tensor = sample(name, *shape)
    with pair(kind, slot_nbytes=8192) as (there, at_numpy), pair(kind, slot_nbytes=8192) as (back, at_torch):
        there.send(request(0), (tensor,))
        message = at_numpy.receive()
        (array,) = message.read("numpy")
        assert isinstance(array, np.ndarray)
        assert (array.dtype.name, array.shape) == (name, shape)
        assert array.tobytes() == bytes_of(tensor)
        back.send(request(0), (array,))
        (returned,) = at_torch.receive().read("torch")
        assert (returned.dtype, returned.shape, returned.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(comparable(returned), comparable(tensor))


@both_kinds
def test_channels_last_is_seen_by_numpy_in_its_strides_and_goes_on_contiguous(kind: str):
    tensor = sample("float32", 2, 3, 8, 9).to(memory_format=torch.channels_last)
    with pair(kind, slot_nbytes=8192) as (there, at_numpy), pair(kind, slot_nbytes=8192) as (back, at_torch):
        there.send(request(0), (tensor, sample("int64", 3)))
        array, numbers = at_numpy.receive().read("numpy")
        assert [stride // 4 for stride in array.strides] == list(tensor.stride())
        assert np.array_equal(array, tensor.numpy())
        assert numbers.tolist() == [0, 1, 2]
        back.send(request(0), (array, numbers))
        returned, numbers = at_torch.receive().tensors
        assert returned.is_contiguous()
        assert torch.equal(returned, tensor)
        assert numbers.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(600.0).reshape(20, 30)[:, ::2],
        np.arange(600.0).reshape(20, 30).T,
        np.broadcast_to(np.arange(30.0), (20, 30)),
        np.arange(600.0).reshape(20, 30)[::-1],
        np.arange(600, dtype=">f4").reshape(20, 30),
        np.array(7, np.int64),
    ],
    ids=["every other", "transposed", "broadcast", "backwards", "big-endian", "scalar"],
)
def test_any_arrays_values_arrive_contiguous(array: np.ndarray):
    memory = SlotMemory(2, slot_nbytes_for([array.nbytes]))
    metas = memory.write(1, (array,))
    memory.check(metas)
    for kind in ("numpy", "torch"):
        (view,) = memory.read(1, metas, kind)
        assert np.array_equal(np.asarray(view), array)
    (view,) = memory.read(1, metas, "numpy")
    assert view.flags.c_contiguous
    assert view.dtype.isnative


def test_what_numpy_reads_are_views_of_the_slot():
    memory = SlotMemory(1, 400)
    metas = memory.write(0, (np.zeros(100, np.float32),))
    (view,) = memory.read(0, metas, "numpy")
    memory.write(0, (torch.ones(100),))
    assert view.tolist() == [1.0] * 100


@pytest.mark.parametrize("name", NOT_IN_NUMPY)
def test_a_type_that_numpy_lacks_is_refused_by_name_where_it_is_read(name: str):
    memory = SlotMemory(1, 64)
    metas = memory.write(0, (sample(name, 4),))
    with pytest.raises(ValueError, match=rf"numpy has no {name}, .*take engine='torch'"):
        memory.read(0, metas, "numpy")


@pytest.mark.parametrize("dtype", ["U3", "datetime64[s]", "object", np.longdouble, [("a", "f4")]], ids=str)
def test_a_type_without_a_code_is_refused_where_it_is_sent(dtype):
    with pytest.raises(ValueError, match="cannot travel between stages; supported: numpy's float32, float64"):
        SlotMemory(1, 256).write(0, (np.zeros(3, dtype),))


def test_other_things_than_arrays_are_refused():
    assert (kind_of(np.zeros(1)), kind_of(torch.zeros(1))) == ("numpy", "torch")
    with pytest.raises(TypeError, match="a list cannot travel between stages: give PyTorch tensors or numpy arrays"):
        kind_of([1.0])


def test_numpys_views_keep_the_memory():
    def view() -> np.ndarray:
        memory = SlotMemory(1, mmap.PAGESIZE)
        return memory.read(0, memory.write(0, (np.arange(100.0),)), "numpy")[0]

    assert view().tolist() == list(range(100))
