"""What a stage's process does with PyTorch beside running layers; imported only where it computes with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from odin.stages.compute import opaque
from odin.stages.compute.cuda import use_precision
from odin.stages.compute.opaque import compute_threads
from odin.stages.compute.torch_weights import load, store
from odin.stages.compute.weights import StoredTensor

__all__ = ["gpu_uuid", "load_state", "pack", "take_gpu", "use_threads"]


def pack(program: Any, stored: Mapping[str, StoredTensor], batch: int, *, threads: int) -> Mapping[str, StoredTensor]:
    """Return a chain's weights in the form that this processor computes with, if that can be shared."""
    if not opaque.supported():
        return stored
    with compute_threads(threads):
        return store(program.pack(load(stored), batch=batch))


def load_state(
    program: Any, stored: Mapping[str, StoredTensor], batch: int, *, kind: str, threads: int
) -> Mapping[str, torch.Tensor]:
    """View stored weights as tensors; on a CPU packed ones, of its own where they cannot be shared."""
    state = load(stored)
    if kind == "cpu" and not opaque.supported():
        with compute_threads(threads):
            packed: Mapping[str, torch.Tensor] = program.pack(state, batch=batch)
            return packed
    return state


def use_threads(count: int) -> None:
    """Compute with so many threads where this thread computes: OpenMP keeps the number per thread."""
    torch.set_num_threads(count)


def take_gpu(index: int, precision: str) -> None:
    """Compute on a GPU, in a precision."""
    torch.cuda.set_device(index)
    use_precision(precision)


def gpu_uuid(index: int) -> str:
    """Identity of a GPU for the driver, which may number them otherwise than CUDA does."""
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
