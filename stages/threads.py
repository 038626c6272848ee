"""The number of threads that PyTorch computes with, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["compute_threads"]


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
