"""What classifiers say of images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from odin.reduction.accuracy import Answers

__all__ = ["BATCH", "ReductionError", "answers", "scores", "through"]

BATCH = 64


class ReductionError(ValueError):
    """A model that cannot be reduced, or data by which it cannot; the message says why, and what can."""


def through(module: nn.Module, images: Tensor, *, batch: int = BATCH) -> Iterator[Tensor]:
    """Run images through a module as it is, so many at a time, without gradients."""
    with torch.no_grad():
        for part in images.split(batch):
            yield module(part)


def scores(model: nn.Module, images: Tensor, *, batch: int = BATCH) -> Tensor:
    """Return a classifier's scores ``(count, classes)``, as float32.

    Raises
    ------
    ReductionError
        If it returns anything else.
    """
    found = []
    for part in through(model, images, batch=batch):
        if not isinstance(part, Tensor) or part.ndim != 2:
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ReductionError(f"the model returns {shape}: a classifier returns scores (images, classes)")
        found.append(part.float())
    return torch.cat(found)


def answers(told: Tensor) -> Answers:
    """Return the class of each image and the confidence in it, from scores ``(count, classes)``."""
    confidences, classes = told.softmax(1).max(1)
    return Answers(classes.tolist(), confidences.tolist())
