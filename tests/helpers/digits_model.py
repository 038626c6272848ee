"""A small network that is trained on scikit-learn's digits within seconds, once per session of tests."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from odin.models.labelled import Labelled
from odin.reduction.slimmable import train_slimmable
from odin_lab.digits import DigitsNet, digits, shifted

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


def full_digits() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """The full network, as a server's file names it."""
    return trained_digits()[1.0], (digit_images()[1].inputs[:1],)
