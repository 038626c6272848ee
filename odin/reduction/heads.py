"""A small classifier on frozen features: pooling and one linear layer, trained by a convex problem."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from odin.models.labelled import Labelled
from odin.reduction.answering import ReductionError

__all__ = ["Head", "pooled_side", "train_head"]

_MOST_FEATURES = 512
_PENALTIES = (1e-1, 1e-2, 1e-3)
"""Weights of the squared norm that are tried; which is best, images say that the weights were not fitted to."""
_VALIDATION = 0.25


class Head(nn.Module):
    """Averages features over parts of the image, and classifies.

    Parameters
    ----------
    side
        Parts in each direction; 0 if the features are no image.
    features, classes
        Of the linear layer.
    """

    def __init__(self, side: int, features: int, classes: int) -> None:
        super().__init__()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d((side, side)) if side else nn.Identity()
        self.flatten = nn.Flatten()
        self.classify = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """``(count, channels, height, width)`` or ``(count, features)`` -> scores ``(count, classes)``."""
        found: Tensor = self.classify(self.flatten(self.pool(features)))
        return found


def pooled_side(shape: tuple[int, ...]) -> int:
    """Into how many parts in each direction features ``(count, channels, height, width)`` are averaged.

    The most of 4, 2 and 1 that divide height and width and keep the linear layer small; 0 for ``(count, features)``.

    Raises
    ------
    ReductionError
        If features have another number of axes.
    """
    if len(shape) == 2:
        return 0
    if len(shape) != 4:
        raise ReductionError(f"features of shape {shape} at a cut: an exit can be put on images or vectors only")
    channels, height, width = shape[1:]
    fitting = (n for n in (4, 2) if height % n == 0 and width % n == 0 and channels * n * n <= _MOST_FEATURES)
    return next(fitting, 1)


def train_head(features: Labelled, *, classes: int, side: int, seed: int = 0) -> Head:
    """Train a head by softmax regression (L-BFGS in double precision: convex, so nothing depends on an order).

    A quarter of the images decides how strongly weights are held small, and at which temperature the confidence is
    right; that scales the scores and changes no answer.

    Parameters
    ----------
    features
        Pooled and flattened, ``(count, features)``.
    classes
        How many there are.
    side
        Of the pooling, see :func:`pooled_side`.

    Raises
    ------
    ReductionError
        If a label is no class, or there are fewer than two images of each class.
    """
    features.check()
    counts = torch.bincount(features.classes, minlength=classes)
    if len(counts) > classes:
        raise ReductionError(f"label {len(counts) - 1} is none of the model's {classes} classes")
    present = int((counts > 0).sum())
    if present < 2 or len(features.classes) < 8 * present:
        raise ReductionError(
            f"{len(features.classes)} images of {present} classes are too few to train an exit by: give at least two "
            "classes and eight images of each"
        )
    fitted, held = features.split(1 - _VALIDATION, seed=seed)
    tried = []
    for penalty in _PENALTIES:
        weight, bias = _fit(fitted, classes, penalty)
        found = held.inputs.double() @ weight.T + bias
        tried.append((float(functional.cross_entropy(found, held.classes)), penalty, found))
    _, penalty, found = min(tried, key=lambda one: one[:2])
    temperature = _temperature(found, held.classes)
    weight, bias = _fit(features, classes, penalty)
    head = Head(side, features.inputs.shape[1], classes)
    with torch.no_grad():
        head.classify.weight.copy_(weight / temperature)
        head.classify.bias.copy_(bias / temperature)
    return head.eval().requires_grad_(False)


def _fit(data: Labelled, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight ``(classes, features)`` and bias for features as they are; fitted on standardised ones."""
    inputs = data.inputs.double()
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max().clamp_min(1e-12), deviation, torch.inf)
    inputs = (inputs - mean) / deviation  # a feature that never varies is nought
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = functional.cross_entropy(inputs @ weight.T + bias, data.classes) + penalty * weight.square().sum() / 2
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    scaled = weight.detach() / deviation
    return scaled, bias.detach() - scaled @ mean


def _temperature(found: Tensor, labels: Tensor) -> float:
    """Return the divisor of scores with the least cross entropy, of a fine geometric row (Guo et al., ICML 2017)."""
    row = torch.logspace(-1.5, 1.5, 121, dtype=torch.float64)
    losses = torch.stack([functional.cross_entropy(found / t, labels) for t in row])
    return float(row[int(losses.argmin())])
