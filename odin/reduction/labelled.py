"""Images with their classes, and what classifiers say of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from odin.reduction.accuracy import Answers

__all__ = ["BATCH", "Labelled", "ReductionError", "answers", "scores", "through"]

BATCH = 64


class ReductionError(ValueError):
    """A model that cannot be reduced, or data by which it cannot; the message says why, and what can."""


class Labelled(NamedTuple):
    """Inputs of a model and the class of each.

    Attributes
    ----------
    images
        ``(count, ...)``, as the model takes them.
    labels
        ``(count,)``, int64.
    """

    images: Tensor
    labels: Tensor

    def check(self) -> Self:
        """Return itself.

        Raises
        ------
        ReductionError
            If it holds no image, or not one class for each.
        """
        if self.labels.ndim != 1 or len(self.images) != len(self.labels) or not len(self.labels):
            raise ReductionError(
                f"{len(self.images)} images and labels of shape {tuple(self.labels.shape)}: give one class for each "
                "image, and at least one image"
            )
        if self.labels.is_floating_point() or int(self.labels.min()) < 0:
            raise ReductionError("labels are the numbers of classes: integers from 0")
        return self

    def split(self, share: float, *, seed: int = 0) -> tuple[Labelled, Labelled]:
        """Divide it at random, each class in the same proportion.

        Parameters
        ----------
        share
            That goes to the first part, in (0, 1).

        Raises
        ------
        ReductionError
            If a part would be empty.
        """
        self.check()
        if not 0.0 < share < 1.0:
            raise ReductionError(f"share={share}: both parts need images; give a number between 0 and 1")
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        order = order[torch.argsort(self.labels[order], stable=True)]  # by class, at random within
        # every so many go to the first part, evenly over the classes
        first = torch.floor((torch.arange(len(order)) + 1) * share) > torch.floor(torch.arange(len(order)) * share)
        if not bool(first.any()) or bool(first.all()):
            raise ReductionError(f"{len(order)} images cannot be divided at {share}: give more")
        one, two = order[first].sort().values, order[~first].sort().values
        return Labelled(self.images[one], self.labels[one]), Labelled(self.images[two], self.labels[two])


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
