"""Convolutions of sequences and volumes are fused and packed too.

Volumes got slower by preparation: channels last, but with plain weights, which oneDNN reorders on every call (r3d_18:
270 ms against 238). Sequences were neither fused nor packed.
"""

from __future__ import annotations

import pytest
import torch
from example_models import seeded
from torch import Tensor, nn

from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.code.fuse import available
from odin.partitioner.code.program import Program
from odin.stages.compute.opaque import supported
from odin.stages.compute.torch_weights import load, store

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (40,), 2: (12, 10), 3: (6, 8, 7)}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "hardtanh": nn.ReLU6,
    "swish": nn.SiLU,
    "hardswish": nn.Hardswish,
}


def example(axes: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, *SIZES[axes], generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A residual block, strided, dilated and grouped convolutions, and a way out through a transposition."""

    def __init__(self, axes: int, activation: str = "relu") -> None:
        super().__init__()
        conv, act = CONVOLUTIONS[axes], ACTIVATIONS[activation]
        self.stem = nn.Sequential(conv(4, 8, 3, stride=2, padding=1, bias=False), NORMS[axes](8), act())
        self.one = nn.Sequential(conv(8, 8, 3, padding=2, dilation=2), act())
        self.two = conv(8, 8, 1, groups=8)
        self.act = act()
        self.last = conv(8, 5, (1,) * axes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(self.two(self.one(x)) + x)
        return self.last(x).flatten(2).transpose(1, 2)


def fused(chain: Chain) -> int:
    names = ("_convolution_pointwise", "convolve_row")
    lines = [line for layer in chain.program.layers for line in layer.source.splitlines()]
    functions = [
        f"= f{index}("
        for index, function in enumerate(chain.program.layers[0].functions)
        if isinstance(function, str) and any(name in function for name in names)
    ]
    return sum(any(function in line for function in functions) for line in lines)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_convolution_is_fused_and_packed(axes, activation):
    model = seeded(lambda: Block(axes, activation))
    chain = build_chain(model, (example(axes),), minimum_share=1.0)
    assert fused(chain) == 4
    assert len(chain.program.layers[0].packings) == 4
    assert f"'{activation}'" in chain.program.layers[0].source
    for batch in (1, 2, 5):
        x = example(axes, batch, seed=batch)
        torch.testing.assert_close(chain(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 3])
def test_plain_weights_and_devices_without_onednn_compute_the_same(axes, monkeypatch):
    model, x = seeded(lambda: Block(axes)), example(axes)
    chain = build_chain(model, (x,))
    values = chain.layout((x,))
    for layer in chain.program.layers:
        values = layer.bind(chain.state)(values)
    torch.testing.assert_close(values[0], model(x), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("odin.partitioner.code.program.fused_available", lambda: False)
    values = chain.layout((x,))
    for layer in chain.program.layers:
        values = layer.bind(chain.state)(values)
    torch.testing.assert_close(values[0], model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not supported(), reason="this PyTorch cannot read packed weights in place")
@pytest.mark.parametrize("axes", [1, 3])
def test_packed_weights_are_read_in_place(axes):
    chain = build_chain(seeded(lambda: Block(axes)), (example(axes),), minimum_share=0.0)
    program = Program(chain.program.layers)
    packed = program.pack(chain.state)
    assert sum(tensor.layout is torch._mkldnn for tensor in packed.values()) == 4
    values = chain.layout((example(axes, seed=1),))
    (expected,) = chain.run(values)
    attached = load(store(packed))
    with torch.inference_mode():
        for layer in program.layers:
            values = layer.bind(attached)(values)
    assert torch.equal(values[0], expected)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinities(axes, value):
    model = seeded(lambda: Block(axes))
    chain = build_chain(model, (example(axes),), minimum_share=0.0)
    x = example(axes)
    x[1, 2, 3] = value
    expected, result = model(x), chain(x)
    assert expected.isnan().any()
    assert not expected[0].isnan().any()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axes", [1, 3])
def test_other_types_are_left_alone(axes, dtype):
    model = seeded(lambda: Block(axes)).to(dtype)
    chain = build_chain(model, (example(axes).to(dtype),))
    assert fused(chain) == 0
    tolerance = 1e-10 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(chain(example(axes).to(dtype)), model(example(axes).to(dtype)), rtol=0, atol=tolerance)


class Sequence(nn.Module):
    """Two convolutions of a sequence with a step between."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.one, self.step, self.two = nn.Conv1d(4, 8, 3, padding=1), step, nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.step(torch.relu(self.one(x))))


@pytest.mark.parametrize(
    ("step", "count"),
    [
        (nn.GELU(), 2),
        (nn.LeakyReLU(0.1), 2),
        (nn.MaxPool1d(2), 0),  # pooling copies what is not contiguous: a row would be slower
        (nn.GroupNorm(2, 8), 0),
    ],
    ids=str,
)
def test_sequences_become_rows_where_the_next_steps_keep_the_order(step, count):
    model = seeded(lambda: Sequence(step))
    chain = build_chain(model, (example(1),), minimum_share=1.0)
    assert fused(chain) == count
    torch.testing.assert_close(chain(example(1)), model(example(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_by_name(axes, padding):
    model = seeded(
        lambda: nn.Sequential(CONVOLUTIONS[axes](4, 8, 3, padding=padding), nn.ReLU(), CONVOLUTIONS[axes](8, 2, 1))
    )
    chain = build_chain(model, (example(axes),), minimum_share=1.0)
    torch.testing.assert_close(chain(example(axes)), model(example(axes)), rtol=1e-4, atol=1e-5)


def test_a_sequence_or_volume_without_a_batch():
    model = seeded(lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1)))
    x = example(1)[0]
    torch.testing.assert_close(build_chain(model, (x,))(x), model(x), rtol=1e-4, atol=1e-5)
    model = seeded(lambda: nn.Sequential(nn.Conv3d(4, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1)))
    x = example(3)[0]
    torch.testing.assert_close(build_chain(model, (x,))(x), model(x), rtol=1e-4, atol=1e-5)
