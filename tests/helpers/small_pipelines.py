"""A small chain and inputs for tests that start pipelines."""

from __future__ import annotations

import torch
from example_models import Residual, seeded

import odin


def small_chain() -> odin.Chain:
    return odin.build_chain(seeded(Residual), (torch.zeros(1, 3, 32, 32),), name="residual")


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 32, 32, generator=generator) for _ in range(count)]


def all_plans(layers: int) -> list[odin.Plan]:
    """Every way to share layers between two stages, empty ones included."""
    return [odin.Plan((first, layers - first)) for first in range(layers + 1)]
