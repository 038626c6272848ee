"""Inputs of a classifier whose classes are known."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["Labelled"]


class Labelled(NamedTuple):
    """Inputs of a model and the class of each.

    Attributes
    ----------
    inputs
        ``(count, ...)``, as the model takes them.
    classes
        ``(count,)``, int64: of each input, the index of the model's output.
    """

    inputs: Tensor
    classes: Tensor

    @classmethod
    def of(cls, inputs: Any, classes: Any) -> Labelled:
        """Convert and check; arrays and sequences will do.

        Raises
        ------
        ValueError
            See :meth:`check`.
        """
        made = cls(torch.as_tensor(inputs), torch.as_tensor(classes)).check()
        return made._replace(classes=made.classes.long())

    def check(self) -> Self:
        """Return itself.

        Raises
        ------
        ValueError
            If it holds no input, not one class for each, or classes that are no numbers from 0.
        """
        inputs, classes = self
        if classes.ndim != 1 or inputs.ndim < 1 or len(inputs) != len(classes) or not len(classes):
            raise ValueError(
                f"labelled data of {tuple(inputs.shape)} inputs and {tuple(classes.shape)} classes: give one class for "
                "each input, and at least one"
            )
        if classes.is_floating_point() or int(classes.min()) < 0:
            raise ValueError(
                f"classes of type {classes.dtype}, the least {classes.min():g}: give each input's class as a whole "
                "number from 0"
            )
        return self

    def split(self, share: float, *, seed: int = 0) -> tuple[Labelled, Labelled]:
        """Divide it at random, each class in the same proportion.

        Parameters
        ----------
        share
            That goes to the first part, in (0, 1).

        Raises
        ------
        ValueError
            If a part would be empty.
        """
        self.check()
        if not 0.0 < share < 1.0:
            raise ValueError(f"share={share}: both parts need inputs; give a number between 0 and 1")
        order = torch.randperm(len(self.classes), generator=torch.Generator().manual_seed(seed))
        order = order[torch.argsort(self.classes[order], stable=True)]  # by class, at random within
        # every so many go to the first part, evenly over the classes
        first = torch.floor((torch.arange(len(order)) + 1) * share) > torch.floor(torch.arange(len(order)) * share)
        if not bool(first.any()) or bool(first.all()):
            raise ValueError(f"{len(order)} labelled inputs cannot be divided at {share}: give more")
        one, two = order[first].sort().values, order[~first].sort().values
        return Labelled(self.inputs[one], self.classes[one]), Labelled(self.inputs[two], self.classes[two])

    @property
    def digest(self) -> str:
        """Changes with the data."""
        whole = hashlib.sha256()
        for tensor in self:
            whole.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]
