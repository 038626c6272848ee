"""oneDNN's packed weights as plain bytes, and back without a copy.

PyTorch's CPU convolutions compute with weights in blocks whose form oneDNN chooses for the processor; such a tensor
has the layout ``torch._mkldnn`` and no strides. To hold packed weights once per node, their bytes go into shared
memory together with oneDNN's description of the form, and every stage makes a tensor of them that reads that memory
in place. PyTorch does the same when it loads a model compiled ahead of time, by the C function that is called here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Bytes", "attach", "compute_threads", "detach", "is_packed", "supported"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_LIBRARY = "libtorch_cpu.so"


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether this is a packed tensor."""
    return tensor.layout is torch._mkldnn  # type: ignore[attr-defined]


@functools.cache
def supported() -> bool:
    """Whether this PyTorch can do it; tried once, with a small convolution."""
    try:
        x, weight = torch.ones(1, 16, 4, 4), torch.arange(2304.0).reshape(16, 16, 3, 3)
        arguments = ([1, 1], [1, 1], [1, 1], 1)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *arguments, list(x.shape))
        attached = attach(*detach(packed), tuple(packed.shape))
        convolve = torch.ops.mkldnn._convolution_pointwise
        return bool(
            torch.equal(
                convolve(x, attached, None, *arguments, "none", [], ""),
                convolve(x, packed, None, *arguments, "none", [], ""),
            )
        )
    except (AttributeError, OSError, RuntimeError, NotImplementedError):
        return False


def detach(tensor: torch.Tensor) -> tuple[Bytes, bytes]:
    """Return a packed tensor's bytes, which keep it alive, and the description of their form; nothing is copied."""
    memory = (ctypes.c_uint8 * torch.ops.mkldnn._nbytes(tensor)).from_address(torch.ops.mkldnn.data_ptr(tensor))
    memory._tensor = tensor  # the array's memory is the tensor's
    data = np.frombuffer(memory, np.uint8)
    return data, torch.ops.mkldnn._get_mkldnn_serialized_md(tensor).numpy().tobytes()


def attach(data: Bytes, form: bytes, shape: Sequence[int]) -> torch.Tensor:
    """Make a packed float32 tensor that reads ``data`` in place and keeps it alive; it must never be written.

    Raises
    ------
    RuntimeError
        If PyTorch refuses.
    """
    create, delete, mkldnn_layout = _functions()
    rank = len(shape)
    sizes, strides = (ctypes.c_int64 * rank)(*shape), (ctypes.c_int64 * rank)()
    description = (ctypes.c_uint8 * len(form)).from_buffer_copy(form)
    handle = ctypes.c_void_p()
    float32, cpu = 6, 0  # at::ScalarType and at::DeviceType
    failed = create(
        data.ctypes.data, rank, sizes, strides, 0, float32, cpu, 0, ctypes.byref(handle), mkldnn_layout, description,
        len(form),
    )  # fmt: skip
    if failed:
        raise RuntimeError(f"PyTorch cannot read packed weights in place (error {failed})")
    tensor: torch.Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(handle))
    # If it was not stolen the handle would keep the tensor, and with it the data, for ever.
    if tensor._use_count() > 1:  # type: ignore[attr-defined]
        delete(handle)
    tensor._odin_memory = data  # type: ignore[attr-defined]  # the tensor does not own it
    return tensor


@functools.cache
def _functions() -> tuple[Any, Any, int]:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _LIBRARY))
    create = library.aoti_torch_create_tensor_from_blob_v2
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    create.argtypes = [
        pointer, size, pointer, pointer, size, number, number, number, ctypes.POINTER(pointer), number, pointer, size,
    ]  # fmt: skip
    create.restype = number
    delete = library.aoti_torch_delete_tensor_object
    delete.restype, delete.argtypes = number, [pointer]
    layout = library.aoti_torch_layout__mkldnn
    layout.restype = number
    return create, delete, int(layout())


def _capsule(handle: ctypes.c_void_p) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(handle.value, None, None)


@contextlib.contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Have PyTorch compute with ``count`` threads in this thread, and as before afterwards.

    oneDNN chooses the form of packed weights by it: weights packed under another number are reordered on every call,
    which made a ResNet50 three to four times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
