"""Built-in models whose blocks are neither plain nor residual: gates, dense blocks, channels last by permutation."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from odin.models.sources import load_source
from odin.partitioner.chain import Chain, build_chain

# Layers of the chain for images of 64 x 64, and most tensors that one of its cuts carries.
EXPECTED = {"efficientnet_b0": (33, 1), "densenet121": (25, 21), "convnext_tiny": (25, 2)}


@cache
def chain_of(name: str) -> tuple[Chain, torch.Tensor, torch.Tensor]:
    """Chain, input, and what the model as it is makes of the input."""
    source = load_source(name, image_size=64)
    (x,) = source.example_args
    with torch.inference_mode():
        expected = source.model(x)
    return build_chain(source.model, (x,), name=name), x, expected


@pytest.mark.parametrize("name", EXPECTED)
def test_chain(name: str) -> None:
    chain, x, expected = chain_of(name)
    assert (len(chain.layers), max(len(layer.output) for layer in chain.layers)) == EXPECTED[name]
    assert chain.dynamic_batch

    values = chain.layout(chain.pack((x,)))
    for index in range(len(chain.layers)):
        values = chain.run(values, index, index + 1)

    assert torch.equal(values[0], chain(x))
    assert (values[0] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_dense_blocks_are_cut_inside() -> None:
    chain, _, _ = chain_of("densenet121")
    for block in range(1, 5):
        names = [layer.name for layer in chain.layers if f"denseblock{block}" in layer.name]
        assert len(names) >= 3
    assert sum(len(layer.output) > 1 for layer in chain.layers) == 16
