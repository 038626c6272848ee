"""A model for benchmark runs in processes of their own, which find it by ``bench_models:residual``."""

from __future__ import annotations

import torch
from example_models import Residual, seeded
from torch import nn


def residual() -> tuple[nn.Module, torch.Tensor]:
    return seeded(Residual), torch.zeros(1, 3, 32, 32)
