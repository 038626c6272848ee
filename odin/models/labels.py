"""ImageNet class names and the best classes of a score vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch

__all__ = ["Prediction", "imagenet_labels", "top_classes"]


@dataclass(frozen=True)
class Prediction:
    """One class that a model considers."""

    index: int
    label: str | None
    probability: float


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1K (ILSVRC 2012) in the usual order: 0 is tench, 999 is toilet tissue."""
    return tuple((resources.files("odin.models") / "imagenet_classes.txt").read_text("utf-8").splitlines())


def top_classes(scores: torch.Tensor, labels: Sequence[str] | None = None, *, count: int = 5) -> list[Prediction]:
    """The ``count`` most probable classes, most probable first.

    Parameters
    ----------
    scores
        ``(C,)`` unnormalised log-probabilities (logits) of one image, on any device, in any float type.
    labels
        C class names; ``None`` where they are not known.
    count
        How many; all C if there are fewer.

    Raises
    ------
    ValueError
        If ``scores`` is not one vector or there is not one label per class.

    Examples
    --------
    >>> [best] = top_classes(torch.tensor([0.0, 100.0]), ("cat", "dog"), count=1)
    >>> best
    Prediction(index=1, label='dog', probability=1.0)
    """
    if scores.ndim != 1:
        raise ValueError(f"scores of shape {tuple(scores.shape)} are not one image's vector; index the batch first")
    if labels is not None and len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels for {len(scores)} classes")
    probabilities, indices = scores.float().softmax(0).topk(min(count, len(scores)))
    return [
        Prediction(index, labels[index] if labels is not None else None, probability)
        for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
