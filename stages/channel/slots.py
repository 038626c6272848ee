"""A ring of equal slots in one memory mapping, read and written as arrays.

Behind the slots lie two words for each of them, which are used in the gateway's memory::

    slot 0 | slot 1 | ... | tag 0 | holder 0 | tag 1 | holder 1 | ...

The *tag* is written by the gateway: which attempt of which request has its input there. The *holder* is written by
stages: who has that attempt, or who hands it over to whom. A stage that was stopped may write long after the gateway
has sent the request again, or has given the slot to another one. So each holder says of which attempt of which request
it is, and counts for no other.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

from odin.partitioner.strides import contiguous_strides, is_dense
from odin.stages.channel.arrays import ArrayKind, Arrays, arrays_in, kind_of
from odin.stages.channel.wire import DTYPES, ITEM_NBYTES, TensorMeta
from odin.stages.host import available_nbytes

__all__ = ["ALIGNMENT", "SlotMemory", "allocate_memfd", "slot_nbytes_for"]

ALIGNMENT = 64
"""Tensors start at multiples of this many bytes, as PyTorch's own CPU allocations do."""


_NOBODY = 2**64 - 1
"""Tag of a slot whose request is over."""
_STAGE_BITS, _ATTEMPT_BITS, _REQUEST_BITS = 12, 16, 24
"""Of a holder, from the lowest on: target, stage, attempt, request."""
_STAGE_MASK = (1 << _STAGE_BITS) - 1


def _tag(request: int, attempt: int) -> int:
    return (request + 1 << _ATTEMPT_BITS | attempt) & _NOBODY


def _holder(request: int, attempt: int) -> int:
    request %= 1 << _REQUEST_BITS
    return (request << _ATTEMPT_BITS | attempt) << 2 * _STAGE_BITS


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def slot_nbytes_for(tensor_nbytes: Sequence[int]) -> int:
    """Bytes of a slot that holds tensors of these sizes, each aligned; at least one alignment unit."""
    return max(ALIGNMENT, sum(_aligned(nbytes) for nbytes in tensor_nbytes))


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
    """Equal slots in one mapping; arrays go in by one copy and come out as views.

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
        end = slots * self.slot_nbytes
        self._words: memoryview[int] = memoryview(self._mapping)[end : end + 16 * slots].cast("Q")
        self._arrays: dict[ArrayKind, Arrays] = {}

    @staticmethod
    def total_nbytes(slots: int, slot_nbytes: int) -> int:
        """Bytes of memory that so many slots and their words take."""
        return slots * _aligned(slot_nbytes) + _aligned(16 * slots)

    @property
    def address(self) -> int:
        """Address of the first byte in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def buffer(self, slot: int, nbytes: int) -> memoryview:
        """Return the first ``nbytes`` of a slot as raw bytes."""
        start = slot * self.slot_nbytes
        return memoryview(self._mapping)[start : start + nbytes]

    def set_tag(self, slot: int, request: int, attempt: int) -> None:
        """Say which attempt of which request has its input in a slot. By the gateway, before it sends it."""
        self._words[2 * slot] = _tag(request, attempt)

    def clear_tag(self, slot: int) -> None:
        """Say that nobody waits for what is in a slot. By the gateway."""
        self._words[2 * slot] = _NOBODY

    def is_current(self, slot: int, request: int, attempt: int) -> bool:
        """Whether somebody waits for this attempt, as far as is known: nothing is of a slot without a tag."""
        tag = self._words[2 * slot]
        return tag == 0 or tag == _tag(request, attempt)

    def set_holder(self, slot: int, request: int, attempt: int, stage: int, target: int | None = None) -> None:
        """Say which stage has an attempt; with ``target`` that it may be there already. By the stage that has it."""
        to = 0 if target is None else target + 1
        self._words[2 * slot + 1] = _holder(request, attempt) | (stage + 1) << _STAGE_BITS | to

    def holders(self, slot: int, request: int, attempt: int) -> tuple[int, ...]:
        """Which stage has an attempt: one; two while it is handed over; none if no stage is known to have begun."""
        word = self._words[2 * slot + 1]
        if word >> 2 * _STAGE_BITS != _holder(request, attempt) >> 2 * _STAGE_BITS:
            return ()
        stages = (word >> _STAGE_BITS & _STAGE_MASK, word & _STAGE_MASK)
        return tuple(stage - 1 for stage in stages if stage)

    def reserve(self, slot: int, arrays: Sequence[Any]) -> tuple[TensorMeta, ...]:
        """Lay arrays out in a slot without copying yet; offsets count from the start of the slot.

        Raises
        ------
        ValueError
            If they do not fit, or a dtype has no wire code.
        """
        metas, offset = [], 0
        for array in arrays:
            dtype, nbytes, shape, strides = self._of_kind(kind_of(array)).describe(array)
            metas.append(TensorMeta(dtype, offset, nbytes, shape, strides))
            offset += _aligned(nbytes)
        self._check_fits(offset)
        return tuple(metas)

    def _check_fits(self, nbytes: int) -> None:
        if nbytes > self.slot_nbytes:
            raise ValueError(
                f"{nbytes} bytes do not fit a slot of {self.slot_nbytes}: the request, or what the model makes of it, "
                "is larger than with the example input times batch; start the pipeline with a larger batch, or if "
                "sizes depend on the data, as those of detections, with an example that gives the largest"
            )

    def write(self, slot: int, arrays: Sequence[Any]) -> tuple[TensorMeta, ...]:
        """Copy arrays, of whichever kind, into a slot; returns where they lie."""
        metas = self.reserve(slot, arrays)
        start = slot * self.slot_nbytes
        for array, meta in zip(arrays, metas, strict=True):
            self._of_kind(kind_of(array)).write(array, meta, start + meta.offset)
        return metas

    def write_rows(self, slot: int, parts: Sequence[Sequence[Any]]) -> tuple[TensorMeta, ...]:
        """Copy the arrays of several requests into a slot, as if they were those of one.

        Parameters
        ----------
        parts
            Equally many arrays of each, whose types, and shapes without the leading axis, are those of the first.

        Raises
        ------
        ValueError
            As :meth:`reserve`.
        """
        start, offset, metas, writes = slot * self.slot_nbytes, 0, [], []
        for column in zip(*parts, strict=True):
            layouts = [self._of_kind(kind_of(array)).describe(array) for array in column]
            dtype, _, shape, strides = layouts[0]
            sample, within = shape[1:], strides[1:]
            if not is_dense(sample, within):
                within = contiguous_strides(sample)
            strides = (math.prod(sample), *within)
            nbytes = sum(layout.nbytes for layout in layouts)
            at = offset
            for array, layout in zip(column, layouts, strict=True):
                writes.append((array, TensorMeta(dtype, at, layout.nbytes, layout.shape, strides)))
                at += layout.nbytes
            metas.append(TensorMeta(dtype, offset, nbytes, (sum(one.shape[0] for one in layouts), *sample), strides))
            offset += _aligned(nbytes)
        self._check_fits(offset)
        for array, meta in writes:
            self._of_kind(kind_of(array)).write(array, meta, start + meta.offset)
        return tuple(metas)

    def read(self, slot: int, metas: Sequence[TensorMeta], kind: ArrayKind = "torch") -> tuple[Any, ...]:
        """Return views of what is in a slot, as arrays of a kind; valid until the slot is reused.

        Raises
        ------
        ValueError
            If that kind of arrays does not have a dtype.
        """
        start, arrays = slot * self.slot_nbytes, self._of_kind(kind)
        return tuple(arrays.read(meta, start + meta.offset) for meta in metas)

    def _of_kind(self, kind: ArrayKind) -> Arrays:
        arrays = self._arrays.get(kind)
        if arrays is None:
            arrays = self._arrays[kind] = arrays_in(self._mapping, kind)
        return arrays

    def check(self, metas: Sequence[TensorMeta]) -> None:
        """Raise ``ValueError`` if a description read from the wire points outside a slot."""
        for dtype_code, offset, nbytes, shape, strides in metas:
            if dtype_code >= len(DTYPES) or offset % ALIGNMENT or offset + nbytes > self.slot_nbytes:
                raise ValueError(f"tensor of {nbytes} bytes at offset {offset} is outside a slot of {self.slot_nbytes}")
            span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            if min(shape, default=1) > 0 and span * ITEM_NBYTES[dtype_code] > nbytes:
                raise ValueError(f"tensor of shape {shape} and strides {strides} reaches beyond its {nbytes} bytes")
