"""A model for benchmark runs in processes of their own, which find it by ``bench_models:residual``."""

from __future__ import annotations

import torch
from example_models import Residual, ResidualBlock, conv_bn, head, seeded
from torch import nn


def residual() -> tuple[nn.Module, torch.Tensor]:
    return seeded(Residual), torch.zeros(1, 3, 32, 32)


def deep() -> tuple[nn.Module, torch.Tensor]:
    """Many small blocks, each of which may be cut within."""
    blocks = [ResidualBlock(8, 8) for _ in range(12)]
    return seeded(lambda: nn.Sequential(*conv_bn(3, 8), *blocks, *head(8))), torch.zeros(1, 3, 16, 16)
