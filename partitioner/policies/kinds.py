"""Kinds of layers and of devices: what a load slows more, and which stages can learn from one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["kinds_of_devices", "memory_boundness"]

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


def kinds_of_devices(log_baseline: FloatArray) -> list[NDArray[np.bool_]]:
    """Groups of stages whose baselines differ by no more than a factor, each a mask of shape (stages,)."""
    profile = np.round(log_baseline - log_baseline.mean(axis=1, keepdims=True), 6)
    numbers = np.unique(profile, axis=0, return_inverse=True)[1].reshape(-1)
    return [numbers == number for number in range(int(numbers.max()) + 1)]
