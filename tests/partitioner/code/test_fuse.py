"""Convolutions take what follows into themselves, where nobody can tell."""

from __future__ import annotations

import pytest
import torch
from example_models import seeded
from torch import Tensor, nn

from odin.partitioner.chain import build_chain
from odin.partitioner.code.fuse import KEEPING_NAN, PORTABLE, available

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")

SINGLE = "torch.ops.mkldnn._convolution_pointwise.default"
BINARY = "torch.ops.mkldnn._convolution_pointwise.binary"


def image(seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn(batch, 8, 12, 12, generator=torch.Generator().manual_seed(seed))


class Add(nn.Module):
    """``conv(x)`` and something, added in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "conv += other":
            y = self.one(x)
            y += x
            return y.relu()
        if self.how == "other += conv":
            y = self.two(x)
            y += self.one(x)
            return y.relu_()
        if self.how == "both convs":
            return torch.relu(self.one(x) + self.two(x))
        if self.how == "other is read again":
            y = torch.sigmoid(x)
            z = y
            z += self.one(x)
            return z * y
        if self.how == "broadcast":
            return torch.relu(self.one(x) + self.two(x).mean((2, 3), keepdim=True))
        if self.how == "input written in between":
            y = torch.sigmoid(x)
            a = self.one(y)
            y.mul_(2.0)
            return torch.relu(a + y)
        raise AssertionError(self.how)


@pytest.mark.parametrize(
    ("how", "fused"),
    [
        ("conv += other", True),
        ("other += conv", True),
        ("both convs", True),
        ("other is read again", None),  # what tracing makes of it is not the matter here; the result is
        ("broadcast", False),
        ("input written in between", False),
    ],
)
def test_additions(how, fused):
    model = seeded(lambda: Add(how))
    chain = build_chain(model, (image(),), minimum_share=1.0)
    for seed in range(3):
        assert torch.allclose(chain(image(seed)), model(image(seed)), rtol=1e-5, atol=1e-5)
    if fused is not None:
        assert any(BINARY in layer.functions for layer in chain.program.layers) is fused


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "hardtanh"),
        (nn.SiLU(), "swish"),
        (nn.Hardswish(inplace=True), "hardswish"),
    ],
    ids=str,
)
def test_activations(activation, name):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(8, 16, 3), activation, nn.Conv2d(16, 4, 3)))
    chain = build_chain(model, (image(),))
    assert f"'{name}'" in chain.program.layers[0].source
    assert torch.allclose(chain(image(5)), model(image(5)), rtol=1e-5, atol=1e-5)


def test_an_activation_whose_input_is_read_again_stays_apart():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(y) - y

    model = seeded(Twice)
    chain = build_chain(model, (image(),))
    assert "'none'" in chain.program.layers[0].source
    assert torch.allclose(chain(image(1)), model(image(1)), rtol=1e-5, atol=1e-5)


def test_a_weight_of_two_convolutions_is_not_packed():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    chain = build_chain(seeded(lambda: nn.Sequential(shared, nn.ReLU(), shared)), (image(),))
    assert [packing for layer in chain.program.layers for packing in layer.packings] == []


def test_packed_weights_are_opaque_and_others_are_shared():
    chain = build_chain(seeded(lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())), (image(),))
    packed = chain.program.pack(chain.state, batch=3)
    assert packed["0.weight"].layout is torch._mkldnn
    assert packed["0.bias"] is chain.state["0.bias"]
    assert chain.state["0.weight"].layout is torch.strided


@pytest.mark.parametrize("instead", [PORTABLE, KEEPING_NAN], ids=["portable", "keeping NaN"])
def test_what_stands_for_fused_calls_computes_the_same(instead):
    x, other, weight, bias = image(), image(1), torch.randn(8, 8, 3, 3), torch.randn(8)
    sizes = (weight, bias, (1, 1), (1, 1), (1, 1), 1)
    single, binary = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_pointwise.binary
    for attribute, scalars in (("none", []), ("relu", []), ("hardtanh", [0.0, 0.5]), ("swish", []), ("hardswish", [])):
        expected = single(x, *sizes, attribute, scalars, "")
        assert torch.allclose(instead[SINGLE](x, *sizes, attribute, scalars, ""), expected, rtol=1e-5, atol=1e-5)
    for attribute in (None, "relu"):
        expected = binary(x, other, *sizes, "add", 1.0, attribute, [], "")
        result = instead[BINARY](x, other, *sizes, "add", 1.0, attribute, [], "")
        assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5)
