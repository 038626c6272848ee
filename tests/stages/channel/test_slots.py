"""Slots: tensors come out as they went in, strides included, and nothing lies outside its slot."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest
import torch
from descriptors import open_descriptors
from hypothesis import given
from hypothesis import strategies as st

from odin.partitioner.graph.values import CARRIED, comparable
from odin.partitioner.strides import contiguous_strides, is_dense
from odin.stages.channel.slots import ALIGNMENT, SlotMemory, allocate_memfd, slot_nbytes_for
from odin.stages.channel.torch_arrays import TORCH_DTYPES
from odin.stages.channel.wire import DTYPES, TensorMeta


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.arange(torch.Size(shape).numel()).reshape(shape) % 100
    return values.to(dtype)


def there_and_back(*tensors: torch.Tensor, slot: int = 1) -> tuple[torch.Tensor, ...]:
    memory = SlotMemory(3, slot_nbytes_for([tensor.numel() * tensor.element_size() for tensor in tensors]))
    metas = memory.write(slot, tensors)
    memory.check(metas)
    return memory.read(slot, metas)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 8, 9)], ids=str)
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = sample(dtype, *shape)
    (view,) = there_and_back(tensor)
    assert view.dtype is dtype
    assert view.shape == tensor.shape
    assert view.stride() == tensor.stride()
    assert torch.equal(comparable(view), comparable(tensor))


def test_what_may_cross_a_cut_can_travel():
    assert set(TORCH_DTYPES) == CARRIED


@pytest.mark.parametrize(
    "tensor",
    [
        sample(torch.float32, 2, 3, 8, 9).to(memory_format=torch.channels_last),
        sample(torch.float32, 2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        sample(torch.float32, 40, 50).t(),
        sample(torch.float32, 4, 3, 8, 9)[2:],
        sample(torch.float32, 7, 8)[3],
    ],
    ids=["channels_last", "channels_last_3d", "transposed", "later rows", "one row"],
)
def test_dense_tensors_keep_their_strides(tensor: torch.Tensor):
    (view,) = there_and_back(tensor)
    assert view.stride() == tensor.stride()
    assert torch.equal(comparable(view), comparable(tensor))


@pytest.mark.parametrize(
    "tensor",
    [
        sample(torch.float32, 20, 30)[:, ::2],
        sample(torch.float32, 20, 30)[:, 3:9],
        sample(torch.float32, 1, 30).expand(20, 30),
        sample(torch.int64, 5, 4)[:, 1],
    ],
    ids=["every other", "columns", "expanded", "one column"],
)
def test_other_tensors_become_contiguous(tensor: torch.Tensor):
    (view,) = there_and_back(tensor)
    assert view.stride() == contiguous_strides(tensor.shape)
    assert view.is_contiguous()
    assert torch.equal(view, tensor)


def test_a_lazily_conjugated_tensor_arrives_conjugated():
    tensor = torch.complex(torch.arange(100.0), torch.ones(100)).conj()
    assert tensor.is_conj()
    (view,) = there_and_back(tensor)
    assert torch.equal(view, tensor)
    assert view.imag[0] == -1


@pytest.mark.parametrize("size", [2, 200])
def test_the_ring_does_not_join_the_callers_autograd_graph(size: int):
    (view,) = there_and_back(torch.ones(size, requires_grad=True))
    assert not view.requires_grad
    assert view.grad_fn is None


def test_several_tensors_lie_apart_and_aligned():
    tensors = (sample(torch.uint8, 3), sample(torch.float32, 5, 5), sample(torch.bool, 1), sample(torch.float64, 9))
    memory = SlotMemory(2, slot_nbytes_for([3, 100, 1, 72]))
    metas = memory.write(1, tensors)
    assert [(meta.offset, meta.nbytes) for meta in metas] == [(0, 3), (64, 100), (192, 1), (256, 72)]
    assert memory.slot_nbytes == 384
    views = memory.read(1, metas)
    assert all(torch.equal(view, tensor) for view, tensor in zip(views, tensors, strict=True))
    assert [view.data_ptr() - memory.address for view in views] == [384, 448, 576, 640]


def test_slots_do_not_touch_each_other():
    memory = SlotMemory(3, 400)
    metas = [memory.write(slot, (torch.full((100,), float(slot)),)) for slot in (2, 0, 1)]
    for slot, meta in zip((2, 0, 1), metas, strict=True):
        assert memory.read(slot, meta)[0].tolist() == [float(slot)] * 100


def test_what_is_read_are_views_of_the_slot():
    memory = SlotMemory(1, 400)
    metas = memory.write(0, (torch.zeros(100),))
    (view,) = memory.read(0, metas)
    memory.write(0, (torch.ones(100),))
    assert view.tolist() == [1.0] * 100


def test_buffer_shows_a_slots_bytes():
    memory = SlotMemory(2, 64)
    memory.write(1, (torch.tensor([1, 2, 255], dtype=torch.uint8),))
    assert bytes(memory.buffer(1, 3)) == b"\x01\x02\xff"


def test_too_large_is_refused_and_leaves_the_slot_as_it_was():
    memory = SlotMemory(1, 256)
    metas = memory.write(0, (torch.ones(64),))
    with pytest.raises(ValueError, match=r"320 bytes do not fit a slot of 256.*larger batch"):
        memory.write(0, (torch.zeros(64), torch.zeros(1)))
    assert memory.read(0, metas)[0].tolist() == [1.0] * 64


def test_a_dtype_without_a_code_is_refused():
    with pytest.raises(ValueError, match=r"torch\.bits8 cannot travel between stages; supported: .*float32"):
        SlotMemory(1, 64).write(0, (torch.empty(4, dtype=torch.bits8),))


@pytest.mark.parametrize(
    "meta",
    [
        TensorMeta(len(DTYPES), 0, 4, (1,), (1,)),
        TensorMeta(0, 32, 4, (1,), (1,)),
        TensorMeta(0, 64, 68, (17,), (1,)),
        TensorMeta(0, 2**63, 4, (1,), (1,)),
        TensorMeta(0, 0, 16, (5,), (1,)),
        TensorMeta(0, 0, 16, (2, 2), (3, 1)),
    ],
    ids=["dtype", "alignment", "beyond the slot", "far away", "size", "stride"],
)
def test_descriptions_that_point_outside_are_refused(meta: TensorMeta):
    with pytest.raises(ValueError, match=r"outside a slot|reaches beyond"):
        SlotMemory(1, 128).check((meta,))


@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_every_order_of_dimensions_is_dense(order: list[int], sizes: list[int]):
    tensor = torch.empty(sizes).permute(order)
    assert is_dense(tensor.shape, tensor.stride())


@given(st.lists(st.integers(2, 5), min_size=1, max_size=4), st.integers(2, 3))
def test_gaps_are_not_dense(sizes: list[int], step: int):
    tensor = torch.empty([*sizes, 2 * step])[..., ::step]
    assert not is_dense(tensor.shape, tensor.stride())


@given(st.lists(st.integers(0, 6), max_size=5))
def test_contiguous_strides_are_torchs(shape: list[int]):
    assert contiguous_strides(shape) == torch.empty(shape).stride()


@pytest.mark.parametrize(("nbytes", "expected"), [((), 64), ((0,), 64), ((1, 1), 128), ((64, 65), 192)])
def test_slot_sizes(nbytes: tuple[int, ...], expected: int):
    assert slot_nbytes_for(nbytes) == expected
    assert expected % ALIGNMENT == 0


def mapped_channels() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:odin-channel")


def test_shared_memory_has_no_name_and_is_freed_with_its_last_user():
    gc.collect()  # what earlier tests left in cycles goes now, not in between
    files, before = os.listdir("/dev/shm"), mapped_channels()
    descriptor = allocate_memfd(SlotMemory.total_nbytes(2, 400))
    one = SlotMemory(2, 400, descriptor=descriptor)
    other = SlotMemory(2, 400, descriptor=descriptor)
    os.close(descriptor)
    metas = one.write(1, (torch.arange(100.0),))
    assert torch.equal(other.read(1, metas)[0], torch.arange(100.0))
    assert mapped_channels() == before + 2
    assert os.listdir("/dev/shm") == files
    del one, other
    gc.collect()
    assert mapped_channels() == before


def test_more_memory_than_there_is_is_an_error_and_nobody_is_killed():
    with pytest.raises(MemoryError, match=r"cannot reserve 8796093022208\.0 MiB .*MiB are available.*max_in_flight"):
        allocate_memfd(2**63 - 4096)


def test_memory_that_the_kernel_refuses_is_an_error_and_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = open_descriptors()
    with pytest.raises(MemoryError, match=r"cannot reserve 1\.0 MiB of shared memory .*\(Cannot allocate memory\)"):
        allocate_memfd(2**20)
    assert open_descriptors() == before
