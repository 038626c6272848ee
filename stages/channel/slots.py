"""A ring of equal slots in one memory mapping, read and written as tensors."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence

import torch

from odin.partitioner.strides import is_dense
from odin.stages.channel.wire import DTYPE_CODES, DTYPES, TensorMeta
from odin.stages.host import available_nbytes

__all__ = ["ALIGNMENT", "SlotMemory", "allocate_memfd", "contiguous_strides", "slot_nbytes_for"]

ALIGNMENT = 64
"""Tensors start at multiples of this many bytes, as PyTorch's own CPU allocations do."""

_MEMCPY_NBYTES = 256
"""Below this a tensor copy costs no more than a call of memcpy."""


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def slot_nbytes_for(tensor_nbytes: Sequence[int]) -> int:
    """Bytes of a slot that holds tensors of these sizes, each aligned; at least one alignment unit."""
    return max(ALIGNMENT, sum(_aligned(nbytes) for nbytes in tensor_nbytes))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of a shape, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes in host memory are the values: not conjugated or negated lazily."""
    return tensor.device.type == "cpu" and not tensor.is_conj() and not tensor.is_neg()


def allocate_memfd(nbytes: int) -> int:
    """Create anonymous shared memory and return its file descriptor.

    The memory has no name: nothing can be left behind in ``/dev/shm``, whatever dies, and the size limit of a
    container's ``/dev/shm`` does not apply. All pages are reserved now, so that a lack of memory is an error here and
    not a ``SIGBUS`` later.

    Raises
    ------
    MemoryError
        If the memory cannot be reserved; the message names the size.
    """
    # Asked first: when memory runs out, the kernel rather kills a process than lets a reservation fail.
    available = available_nbytes()
    if nbytes > available:
        raise _cannot_reserve(nbytes, f"{available / 2**20:.1f} MiB are available")
    descriptor = os.memfd_create("odin-channel", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        os.close(descriptor)
        raise _cannot_reserve(nbytes, str(error.strerror)) from error
    return descriptor


def _cannot_reserve(nbytes: int, reason: str) -> MemoryError:
    return MemoryError(
        f"cannot reserve {nbytes / 2**20:.1f} MiB of shared memory for a channel ({reason}): "
        "free memory, or lower batch or max_in_flight"
    )


class SlotMemory:
    """Equal slots in one mapping; tensors go in by one copy and come out as views, strides preserved.

    Parameters
    ----------
    slots
        Number of slots.
    slot_nbytes
        Bytes per slot; rounded up to :data:`ALIGNMENT`.
    descriptor
        Shared memory to map (see :func:`allocate_memfd`); without it the memory is private to this process.
    """

    def __init__(self, slots: int, slot_nbytes: int, *, descriptor: int | None = None) -> None:
        self.slots = slots
        self.slot_nbytes = _aligned(slot_nbytes)
        total = self.total_nbytes(slots, slot_nbytes)
        # Populated now: no page fault is taken while a request waits.
        if descriptor is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
            self._mapping = mmap.mmap(-1, total, flags=flags)
        else:
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._mapping = mmap.mmap(descriptor, total, flags=flags)
        self._marks = slots * self.slot_nbytes  # one byte for each slot, after the last
        self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self._typed = {dtype: self._bytes.view(dtype) for dtype in DTYPES}

    @staticmethod
    def total_nbytes(slots: int, slot_nbytes: int) -> int:
        """Bytes of memory that so many slots and their marks take."""
        return slots * _aligned(slot_nbytes) + _aligned(slots)

    @property
    def address(self) -> int:
        """Address of the first byte in this process."""
        return self._bytes.data_ptr()

    def buffer(self, slot: int, nbytes: int) -> memoryview:
        """Return the first ``nbytes`` of a slot as raw bytes."""
        start = slot * self.slot_nbytes
        return memoryview(self._mapping)[start : start + nbytes]

    def recall(self, slot: int, *, recalled: bool = True) -> None:
        """Set or clear the flag that the request in a slot is not needed; visible to processes that map this memory."""
        self._mapping[self._marks + slot] = recalled

    def is_recalled(self, slot: int) -> bool:
        """Whether the request in a slot is not needed any more."""
        return self._mapping[self._marks + slot] != 0

    def reserve(self, slot: int, tensors: Sequence[torch.Tensor]) -> tuple[TensorMeta, ...]:
        """Lay tensors out in a slot without copying yet; offsets count from the start of the slot.

        Dense tensors keep their strides (channels-last stays channels-last); others become contiguous.

        Raises
        ------
        ValueError
            If they do not fit, or a dtype has no wire code.
        """
        metas, offset = [], 0
        for tensor in tensors:
            code = DTYPE_CODES.get(tensor.dtype)
            if code is None:
                raise ValueError(f"tensors of {tensor.dtype} cannot travel between stages; supported: {DTYPES}")
            shape, strides = tuple(tensor.shape), tensor.stride()
            if not (tensor.is_contiguous() or is_dense(shape, strides)):
                strides = contiguous_strides(shape)
            nbytes = tensor.numel() * tensor.element_size()
            metas.append(TensorMeta(code, offset, nbytes, shape, strides))
            offset += _aligned(nbytes)
        if offset > self.slot_nbytes:
            raise ValueError(
                f"{offset} bytes do not fit a slot of {self.slot_nbytes}: the request is larger than the example "
                "input times batch; start the pipeline with a larger batch"
            )
        return tuple(metas)

    def write(self, slot: int, tensors: Sequence[torch.Tensor]) -> tuple[TensorMeta, ...]:
        """Copy CPU tensors into a slot; returns where they lie."""
        metas = self.reserve(slot, tensors)
        base = self.address + slot * self.slot_nbytes
        for view, tensor, meta in zip(self.read(slot, metas), tensors, metas, strict=True):
            if meta.nbytes > _MEMCPY_NBYTES and tensor.stride() == meta.strides and _is_plain(tensor):
                # memcpy keeps the interpreter free and uses the C library's streaming stores.
                ctypes.memmove(base + meta.offset, tensor.data_ptr(), meta.nbytes)
            else:
                view.copy_(tensor.detach())  # or the ring itself would join the caller's autograd graph
        return metas

    def read(self, slot: int, metas: Sequence[TensorMeta]) -> tuple[torch.Tensor, ...]:
        """Return views of the tensors in a slot; valid until the slot is reused."""
        start = slot * self.slot_nbytes
        views = []
        for dtype_code, offset, _, shape, strides in metas:
            dtype = DTYPES[dtype_code]
            typed = self._typed[dtype]
            views.append(typed.as_strided(shape, strides, (start + offset) // typed.element_size()))
        return tuple(views)

    def check(self, metas: Sequence[TensorMeta]) -> None:
        """Raise ``ValueError`` if a description read from the wire points outside a slot."""
        for dtype_code, offset, nbytes, shape, strides in metas:
            if dtype_code >= len(DTYPES) or offset % ALIGNMENT or offset + nbytes > self.slot_nbytes:
                raise ValueError(f"tensor of {nbytes} bytes at offset {offset} is outside a slot of {self.slot_nbytes}")
            span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            if min(shape, default=1) > 0 and span * DTYPES[dtype_code].itemsize > nbytes:
                raise ValueError(f"tensor of shape {shape} and strides {strides} reaches beyond its {nbytes} bytes")
