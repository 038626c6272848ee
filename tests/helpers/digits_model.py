"""A small network that is trained on scikit-learn's digits within seconds, once per session of tests."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from benchmarks.digits import DigitsNet, digits, shifted
from odin.reduction.labelled import Labelled
from odin.reduction.slimmable import train_slimmable

WIDTHS = (1.0, 0.5)


@cache
def digit_images() -> tuple[Labelled, Labelled]:
    """To train by, and held out."""
    return digits(size=8)


@cache
def trained_digits() -> dict[float, nn.Module]:
    """At full and half width."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_slimmable(
            lambda width: DigitsNet(width, channels=12, depth=1),
            digit_images()[0],
            widths=WIDTHS,
            epochs=10,
            augment=shifted,
        )
    finally:
        torch.set_num_threads(threads)
