"""Small classifiers of 8 x 8 pixels, by name: variants of a family in tests of files and commands."""

from __future__ import annotations

import torch
from torch import nn

X = torch.zeros(1, 1, 8, 8)


def _net(width: int, depth: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for _ in range(depth):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)).eval()


def small() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """One layer."""
    return _net(4, 1, 1), (X,)


def large() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Three layers."""
    return _net(24, 3, 2), (X,)
