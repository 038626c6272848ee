"""Kinds of layers: what a load slows more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["memory_boundness"]

FloatArray = NDArray[np.float64]


def memory_boundness(intensity: FloatArray) -> FloatArray:
    """Minus the logarithm of the arithmetic intensity, centred, with standard deviation 1; 0 where unknown."""
    boundness = np.zeros(len(intensity))
    known = np.isfinite(intensity) & (intensity > 0)
    if known.any():
        value = -np.log(intensity[known])
        spread = float(value.std())
        boundness[known] = (value - value.mean()) / spread if spread > 1e-6 else 0.0
    return boundness
