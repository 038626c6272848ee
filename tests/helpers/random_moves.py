"""Requests that are under way while layers move at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

import odin

__all__ = ["answers_while_layers_move"]


def answers_while_layers_move(
    pipe: odin.Pipeline, inputs: Sequence[torch.Tensor], *, layers: int, requests: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Of each request the number of its input, and its answer; a plan, or a range for handing over, after each."""
    moves = random.Random(5)
    under_way = []
    for _ in range(requests):
        number = moves.randrange(len(inputs))
        under_way.append((number, pipe.submit(inputs[number])))
        first = moves.randrange(layers + 1)
        low, high = sorted(moves.choices(range(layers + 1), k=2))
        pipe.migrate(f"{first}|{layers - first}" if moves.random() < 0.5 else f"@{low}-{high}|@{layers}")
    for number, future in under_way:
        yield number, future.result(timeout=60)
