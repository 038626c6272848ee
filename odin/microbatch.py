"""Requests larger than a micro-batch: cut along the leading dimension, and put together again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import torch

__all__ = ["join_outputs", "split_inputs"]

Values = tuple[torch.Tensor, ...]


def split_inputs(values: Values, *, batch: int) -> list[Values]:
    """Cut inputs into parts with leading size ``batch`` at most; views, no copies.

    Inputs without a common leading size stay one part.
    """
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in values}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None or size <= batch:
        return [values]
    return [tuple(tensor[start : start + batch] for tensor in values) for start in range(0, size, batch)]


def join_outputs(futures: Sequence[Future[Values]], unpack: Callable[[Values], Any]) -> Future[Any]:
    """Return a future of the whole request's output.

    Parameters
    ----------
    futures
        One per part, in order.
    unpack
        Makes the model's output structure of flat tensors. Tensors with a dimension are concatenated along the first.

    The first part that fails fails the whole. Cancelling the returned future cancels the parts.
    """
    whole: Future[Any] = Future()
    remaining = len(futures)
    lock = threading.Lock()

    def finish(part: Future[Values]) -> None:
        nonlocal remaining
        with lock:
            remaining -= 1
            last = remaining == 0
        error = None if part.cancelled() else part.exception()
        try:
            if error is not None:
                whole.set_exception(error)
            elif last and not whole.done():
                whole.set_result(unpack(_concatenate([future.result() for future in futures])))
        except InvalidStateError:  # cancelled, or failed by another part
            pass
        except Exception as defect:
            whole.set_exception(defect)

    def forward_cancel(done: Future[Any]) -> None:
        if done.cancelled():
            for future in futures:
                future.cancel()

    whole.add_done_callback(forward_cancel)
    for future in futures:
        future.add_done_callback(finish)
    return whole


def _concatenate(parts: Sequence[Values]) -> Values:
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(tensors) if tensors[0].dim() else tensors[0] for tensors in zip(*parts, strict=True))
