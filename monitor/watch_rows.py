"""The watch's arithmetic as loops over numbers, many requests at a time; a compiler of such loops can take them.

Each has the results of what :class:`~odin.monitor.watch.StageWatch` does with arrays, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.monitor.detectors.cusum_rows import take_rows

__all__ = ["LEARNING_RATE", "WatchLoops", "learn_rows", "sample_rows", "work_rows"]

FloatArray = NDArray[np.float64]

LEARNING_RATE = 0.05
"""Of ``relative``, per request."""


def sample_rows(stage_s: FloatArray, work_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Time over reference and its logarithm, (requests, stages); ``nan`` where there is none."""
    ratio, x = np.full(stage_s.shape, np.nan), np.full(stage_s.shape, np.nan)
    for row in range(stage_s.shape[0]):
        for k in range(stage_s.shape[1]):
            if work_s[k] > 0:
                ratio[row, k] = stage_s[row, k] / work_s[k]
            if 0.0 < ratio[row, k] < np.inf:
                x[row, k] = math.log(ratio[row, k])
    return ratio, x


def learn_rows(
    ratio: FloatArray,
    layer_s: FloatArray,
    disturbed: NDArray[np.bool_],
    owner: NDArray[np.int64],
    baseline_s: FloatArray,
    relative: FloatArray,
) -> None:
    """Bring ``relative``, (layers,), nearer to what undisturbed stages have shown in some requests of one plan.

    ``owner`` is the stage of each layer, (layers,); the others are by requests, and stages or layers.
    """
    requests, layers = layer_s.shape
    terms = np.empty(requests)
    for layer in range(layers):
        k = owner[layer]
        kept = 1.0
        for row in range(requests - 1, -1, -1):
            share = layer_s[row, layer] / (baseline_s[k, layer] * ratio[row, k])
            known = 0.25 < share < 4.0 and not disturbed[row, k]
            kept *= 1.0 - LEARNING_RATE if known else 1.0
            terms[row] = LEARNING_RATE / (1.0 - LEARNING_RATE) * kept * (share - relative[layer]) if known else 0.0
        total = terms[0]
        for row in range(1, requests):
            total += terms[row]
        relative[layer] += total


def work_rows(baseline_s: FloatArray, relative: FloatArray, cuts: NDArray[np.int64]) -> FloatArray:
    """Seconds of each stage's layers by their references, (stages,)."""
    work_s = np.empty(len(baseline_s))
    for k in range(len(work_s)):
        before_s = until_s = 0.0
        for layer in range(cuts[k + 1]):
            if layer == cuts[k]:
                before_s = until_s
            until_s += baseline_s[k, layer] * relative[layer]
        work_s[k] = until_s - before_s if cuts[k] < cuts[k + 1] else 0.0
    return work_s


class WatchLoops(NamedTuple):
    """The loops, compiled or not."""

    sample: Callable[..., tuple[FloatArray, FloatArray]] = sample_rows
    take: Callable[..., tuple[int, bool, bool, int]] = take_rows
    learn: Callable[..., None] = learn_rows
    work: Callable[..., FloatArray] = work_rows
