"""How good a reduced model is beside the full one, on the same images, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

__all__ = ["Answers", "Interval", "Judgement", "calibration_error", "judge", "paired_loss", "wilson"]

_Z = 1.959963984540054
"""Of a normal distribution's two-sided 95%."""


class Interval(NamedTuple):
    """A share that was counted, and where the true one lies with 95% confidence."""

    value: float
    low: float
    high: float


class Answers(NamedTuple):
    """What a classifier said of images.

    Attributes
    ----------
    classes
        Of each image, the class with the greatest score.
    confidences
        The probability that it gave to it.
    """

    classes: Sequence[int]
    confidences: Sequence[float]


class Judgement(msgspec.Struct, frozen=True):
    """A reduced model beside the full one.

    Attributes
    ----------
    images
        On how many they were compared.
    accuracy
        Share that it classified rightly; Wilson's interval.
    lost
        The full model's accuracy less this one's: negative if it gained. The interval is that of paired shares, since
        both saw the same images.
    agreement
        Share of images that it gave the full model's class.
    calibration_error
        How far its confidence is from the share of right answers, on average (:func:`calibration_error`).
    """

    images: int
    accuracy: Interval
    lost: Interval
    agreement: float
    calibration_error: float


def wilson(count: int, total: int) -> Interval:
    """Return a share with Wilson's score interval at 95%.

    Unlike the normal approximation it stays within 0 and 1 and is right for shares near them (Wilson, 1927).

    Raises
    ------
    ValueError
        If there is nothing to count.

    Examples
    --------
    >>> [round(end, 4) for end in wilson(594, 600)]
    [0.99, 0.9784, 0.9954]
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is no share; count at least one image")
    share = count / total
    squared = _Z * _Z / total
    centre = (share + squared / 2) / (1 + squared)
    half = _Z * math.sqrt(share * (1 - share) / total + squared / (4 * total)) / (1 + squared)
    # rounding must not put the share outside of its own interval
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def paired_loss(only_full: int, only_reduced: int, total: int) -> Interval:
    """Return by how much the full model is more often right, with an interval at 95%.

    Agresti and Min's adjustment of Wald's interval for paired shares (2005): half an image is added to each of the
    four cells.

    Parameters
    ----------
    only_full, only_reduced
        Images that only this one of the two classified rightly.
    total
        All images.

    Examples
    --------
    >>> [round(end, 4) for end in paired_loss(3, 1, 600)]
    [0.0033, -0.0048, 0.0115]
    """
    if total < 1 or min(only_full, only_reduced) < 0 or only_full + only_reduced > total:
        raise ValueError(f"{only_full} and {only_reduced} of {total} images are no counts of disagreement")
    adjusted = total + 2
    centre = (only_full - only_reduced) / adjusted
    variance = (only_full + only_reduced + 1) / adjusted - centre * centre
    half = _Z * math.sqrt(max(0.0, variance) / adjusted)
    return Interval((only_full - only_reduced) / total, max(-1.0, centre - half), min(1.0, centre + half))


def calibration_error(confidences: Sequence[float], right: Sequence[bool], *, bins: int = 10) -> float:
    """Return the expected calibration error: |confidence - share right| of bins of confidence, weighted by size.

    0 means: of the answers given with confidence p, a share p is right (Guo et al., ICML 2017).
    """
    if len(confidences) != len(right) or not right:
        raise ValueError(f"{len(confidences)} confidences of {len(right)} answers; give one of each, at least one")
    if bins < 1:
        raise ValueError(f"bins={bins}: take at least one")
    sums = [[0.0, 0.0] for _ in range(bins)]
    for confidence, is_right in zip(confidences, right, strict=True):
        at = sums[min(bins - 1, int(confidence * bins))]
        at[0] += confidence
        at[1] += is_right
    return math.fsum(abs(told - found) for told, found in sums) / len(right)


def judge(reduced: Answers, full: Answers, labels: Sequence[int]) -> Judgement:
    """Compare a reduced model's answers with the full one's and with the truth.

    Raises
    ------
    ValueError
        If there are no images, or not one answer of each for every image.
    """
    total = len(labels)
    if not total or len(reduced.classes) != total or len(full.classes) != total:
        raise ValueError(
            f"{total} labels, {len(reduced.classes)} and {len(full.classes)} answers: give one of each per image, and "
            "at least one image"
        )
    right = [found == label for found, label in zip(reduced.classes, labels, strict=True)]
    full_right = [found == label for found, label in zip(full.classes, labels, strict=True)]
    pairs = list(zip(full_right, right, strict=True))
    same = sum(a == b for a, b in zip(reduced.classes, full.classes, strict=True))
    return Judgement(
        images=total,
        accuracy=wilson(sum(right), total),
        lost=paired_loss(pairs.count((True, False)), pairs.count((False, True)), total),
        agreement=same / total,
        calibration_error=calibration_error(reduced.confidences, right),
    )
