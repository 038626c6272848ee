"""Every lowered module gives the module's own bits; what cannot be lowered stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odin.partitioner.graph.lower import INPUT, Weight, lowered

MODULES = [
    (nn.Conv1d(4, 6, 3, padding="same", dilation=2), 3),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 4),
    (nn.Conv2d(4, 6, 3, bias=False), 4),
    (nn.Conv3d(4, 2, 3), 5),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), 3),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2), 4),
    (nn.ConvTranspose3d(4, 2, 3), 5),
    (nn.Linear(8, 3), 2),
    (nn.Linear(8, 3, bias=False), 4),
    (nn.BatchNorm1d(4).eval(), 3),
    (nn.BatchNorm2d(4, affine=False).eval(), 4),
    (nn.BatchNorm3d(4, momentum=None).eval(), 5),
    (nn.ReLU(), 4),
    (nn.ReLU(inplace=True), 4),
    (nn.ReLU6(), 4),
    (nn.ReLU6(inplace=True), 4),
    (nn.SiLU(), 4),
    (nn.SiLU(inplace=True), 4),
    (nn.Hardswish(), 4),
    (nn.Hardswish(inplace=True), 4),
    (nn.Hardsigmoid(), 4),
    (nn.Hardsigmoid(inplace=True), 4),
    (nn.Sigmoid(), 4),
    (nn.GELU(), 4),
    (nn.MaxPool1d(2), 3),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), 4),
    (nn.MaxPool3d(2), 5),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), 4),
    (nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False), 3),
    (nn.AvgPool3d(2), 5),
    (nn.AdaptiveAvgPool1d(2), 3),
    (nn.AdaptiveAvgPool3d((1, 2, 3)), 5),
    (nn.Hardtanh(-0.5, 2.0), 4),
    (nn.Hardtanh(-0.5, 2.0, inplace=True), 4),
    (nn.LeakyReLU(0.2), 4),
    (nn.LeakyReLU(0.2, inplace=True), 4),
    (nn.Tanh(), 4),
    (nn.AdaptiveAvgPool2d((2, 3)), 4),
    (nn.AdaptiveAvgPool2d(1), 4),
    (nn.Flatten(), 4),
    (nn.Flatten(2), 4),
]


@pytest.mark.parametrize(("module", "axes"), MODULES, ids=lambda value: str(value))
def test_same_bits(module, axes):
    shape = {2: (2, 8), 3: (2, 4, 8), 4: (2, 4, 8, 8), 5: (2, 4, 8, 8, 8)}[axes]
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    call = lowered(module)
    assert call is not None

    def argument(entry):
        if entry is INPUT:
            return x.clone()
        return getattr(module, entry.name) if isinstance(entry, Weight) else entry

    assert torch.equal(call.function(*map(argument, call.args)), module(x.clone()))


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def with_hook() -> nn.Module:
    module = nn.Conv2d(3, 3, 1)
    module.register_forward_hook(lambda module, args, result: result + 1)
    return module


@pytest.mark.parametrize(
    "module",
    [
        OwnConv(3, 3, 1),
        with_hook(),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(3),  # in training mode
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        nn.MaxPool2d(2, return_indices=True),
        nn.AdaptiveAvgPool2d((None, 1)),
        nn.GELU(approximate="tanh"),
        nn.LayerNorm(3),
    ],
    ids=lambda module: str(module),
)
def test_stays_a_module(module):
    assert lowered(module) is None
