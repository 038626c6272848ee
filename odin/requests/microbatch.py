"""Requests larger than a micro-batch: cut along the leading dimension, and put together again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from odin.requests.replies import Callbacks, Reply, when_done

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


def join_outputs(
    futures: Sequence[Future[Values]], unpack: Callable[[Values], Any], *, callbacks: Callbacks | None = None
) -> Reply[Any]:
    """Return a future of the whole request's output.

    Parameters
    ----------
    futures
        One per part, in order.
    unpack
        Makes the model's output structure of flat tensors. Tensors with a dimension are concatenated along the first.
    callbacks
        Where the callbacks go that are added to the returned future.

    The first part that fails fails the whole. Cancelling the returned future cancels the parts.
    """
    parts = list(futures)
    remaining = len(parts)
    lock = threading.Lock()
    whole: Reply[Any] = Reply(callbacks)

    def finish(part: Future[Values]) -> None:
        nonlocal remaining
        with lock:
            remaining -= 1
            last = remaining == 0
        error = None if part.cancelled() else part.exception()
        outcome: Any = None
        try:
            if error is None and (not last or whole.done()):
                return
            outcome = error if error is not None else unpack(_concatenate([each.result() for each in parts]))
        except BaseException as defect:  # whatever the output's own types raise, its caller must not wait for ever
            outcome = defect
        finally:
            if last:
                parts.clear()  # they hold the whole's callbacks, and it held them: results would wait for the collector
        whole.settle(outcome)

    def forward_cancel(done: Future[Any]) -> None:
        if done.cancelled():
            for part in list(parts):
                part.cancel()

    when_done(whole, forward_cancel)
    for future in futures:
        when_done(future, finish)
    return whole


def _concatenate(parts: Sequence[Values]) -> Values:
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(tensors) if tensors[0].dim() else tensors[0] for tensors in zip(*parts, strict=True))
