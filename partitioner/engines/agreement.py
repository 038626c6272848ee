"""How far outputs in another precision are from those of the float32 chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from odin.partitioner.engines.cut_model import Array

__all__ = ["Agreement", "Comparison"]


@dataclass(frozen=True)
class Agreement:
    """What came of comparing outputs.

    Attributes
    ----------
    images
        How many samples were compared; 0 if the first output is no row of scores for each sample.
    same_top
        For how many of them the same class has the highest score.
    largest_error
        Largest difference of an element, of the largest magnitude of the reference.
    rms_error
        Root mean square of the differences, of that of the reference.
    finite
        Whether every element is a number, or what is none in the reference is the same: NaN, or that infinity.
    """

    images: int
    same_top: int
    largest_error: float
    rms_error: float
    finite: bool

    def __str__(self) -> str:
        error = f"largest error {self.largest_error:.2g} of the largest output"
        if not self.images:
            return error
        return f"same top-1 as float32 for {self.same_top} of {self.images} images, {error}"


class Comparison:
    """Compares outputs batch by batch, then tells the :attr:`agreement`."""

    def __init__(self) -> None:
        self._images = self._same_top = 0
        self._largest = self._reference_largest = self._squares = self._reference_squares = 0.0
        self._finite = True

    def add(self, found: Sequence[Array], wanted: Sequence[Array]) -> None:
        """Compare the outputs for one batch."""
        for output, reference in zip(found, wanted, strict=True):
            values, own = reference.astype(np.float64), output.astype(np.float64)
            numbers = np.isfinite(values)
            self._finite = self._finite and bool(np.isfinite(own[numbers]).all())
            self._finite = self._finite and np.array_equal(own[~numbers], values[~numbers], equal_nan=True)
            values = values[numbers]
            if not values.size:
                continue
            difference = own[numbers] - values
            self._largest = max(self._largest, float(np.abs(difference).max()))
            self._reference_largest = max(self._reference_largest, float(np.abs(values).max()))
            self._squares += float((difference**2).sum())
            self._reference_squares += float((values**2).sum())
        if wanted and wanted[0].ndim == 2 and wanted[0].shape[1] > 1:
            self._images += len(wanted[0])
            self._same_top += int((found[0].argmax(1) == wanted[0].argmax(1)).sum())

    @property
    def agreement(self) -> Agreement:
        """All batches so far together."""
        return Agreement(
            self._images,
            self._same_top,
            self._largest / (self._reference_largest or 1.0),
            (self._squares / (self._reference_squares or 1.0)) ** 0.5,
            self._finite,
        )
