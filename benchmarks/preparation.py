"""The prepared chain against the model as it comes: images, volumes and sequences; and what looking for NaN costs.

One process pinned to one core, one thread, the candidates taking turns. ``python -m benchmarks.preparation``
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

import odin
from benchmarks.common import (
    Environment,
    Figure,
    add_arguments,
    interleave,
    milliseconds,
    paired_ratio,
    report,
    summarize,
    timed,
    with_quartiles,
    write_result,
)
from odin.stages.host import keep_freed_memory

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Row(NamedTuple):
    """Seconds per request; ratios to the model as it comes, and to the chain without checks, within each round."""

    model: str
    eager_s: Figure
    chain_s: Figure
    to_eager: Figure
    checks: Figure


def convolution(axes: int, before: int, after: int, kernel: int, *, active: bool = True, **options: int) -> nn.Module:
    """Convolution, batch norm and perhaps ReLU."""
    conv = _CONVOLUTIONS[axes](before, after, kernel, padding=kernel // 2, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, _NORMS[axes](after), *([nn.ReLU(inplace=True)] if active else []))


class Residual(nn.Module):
    """The basic block of a ResNet, for images, volumes or sequences."""

    def __init__(self, axes: int, before: int, after: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.one = convolution(axes, before, after, kernel, stride=stride)
        self.two = convolution(axes, after, after, kernel, active=False)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else convolution(axes, before, after, 1, active=False, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions say to ``x``."""
        return torch.relu(self.two(self.one(x)) + self.skip(x))


def residual_volumes() -> tuple[nn.Module, Tensor]:
    """The structure of torchvision's ``r3d_18``."""
    sizes = (64, 64, 128, 256, 512)
    blocks = [
        block
        for index, (before, after) in enumerate(itertools.pairwise(sizes))
        for block in (Residual(3, before, after, stride=2 if index else 1), Residual(3, after, after))
    ]
    stem = nn.Sequential(nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(64), nn.ReLU())
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten()), torch.randn(1, 3, 16, 112, 112)


class VolumeUNet(nn.Module):
    """A U-Net of volumes with instance norm and leaky ReLU, as those that segment medical images."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._block(1, 16, 1), self._block(16, 32, 2), self._block(32, 64, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(64, 32, 2, 2), nn.ConvTranspose3d(32, 16, 2, 2)])
        self.join = nn.ModuleList([self._block(64, 32, 1), self._block(32, 16, 1)])
        self.head = nn.Conv3d(16, 3, 1)

    @staticmethod
    def _block(before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(before, after, 3, stride, 1), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01),
            nn.Conv3d(after, after, 3, 1, 1), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Segment a volume."""
        fine = self.down[0](x)
        middle = self.down[1](fine)
        x = self.join[0](torch.cat([self.up[0](self.down[2](middle)), middle], 1))
        return self.head(self.join[1](torch.cat([self.up[1](x), fine], 1)))  # type: ignore[no-any-return]


def residual_sequences() -> tuple[nn.Module, Tensor]:
    """A ResNet of sequences, as those that read electrocardiograms."""
    blocks = [Residual(1, 64, 64, kernel=7), Residual(1, 64, 128, kernel=7, stride=2), Residual(1, 128, 128, kernel=7)]
    stem = (convolution(1, 12, 64, 15, stride=2), nn.MaxPool1d(3, 2, 1))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.randn(1, 12, 4096)


def separable_sequences() -> tuple[nn.Module, Tensor]:
    """Depthwise and pointwise convolutions in turn, as those that recognise speech."""
    pairs = [
        layer
        for _ in range(4)
        for layer in (nn.Conv1d(256, 256, 9, padding=4, groups=256), convolution(1, 256, 256, 1))
    ]
    return nn.Sequential(convolution(1, 40, 256, 5), *pairs, nn.Conv1d(256, 29, 1)), torch.randn(1, 40, 400)


def pooled_sequences() -> tuple[nn.Module, Tensor]:
    """Convolutions of raw sound with a pool after each (M5)."""
    sizes = (32, 32, 64, 64)
    pairs = [
        layer
        for before, after in itertools.pairwise(sizes)
        for layer in (convolution(1, before, after, 3), nn.MaxPool1d(4))
    ]
    return nn.Sequential(nn.Conv1d(1, 32, 80, 16), nn.ReLU(), nn.MaxPool1d(4), *pairs), torch.randn(1, 1, 16_000)


def builtin(name: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    """One of ODIN's own models."""

    def make() -> tuple[nn.Module, Tensor]:
        source = odin.load_source(name)
        assert isinstance(source.model, nn.Module)
        return source.model, source.example_args[0]

    return make


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet50": builtin("resnet50"),
    "mobilenet_v2": builtin("mobilenet_v2"),
    "residual volumes": residual_volumes,
    "volume U-Net": lambda: (VolumeUNet(), torch.randn(1, 1, 48, 48, 48)),
    "residual sequences": residual_sequences,
    "separable sequences": separable_sequences,
    "pooled sequences": pooled_sequences,
}


def compare(name: str, *, rounds: int, seed: int) -> Row:
    """Time one model in the three ways."""
    torch.manual_seed(seed)
    model, x = MODELS[name]()
    model.eval()
    chain = odin.build_chain(model, (x,), name=name)
    values = chain.layout((x,))
    packed = chain.program.pack(chain.state)
    unchecked = [replace(layer, checked_source="").bind(packed) for layer in chain.program.layers]

    def without_checks() -> None:
        current = values
        for layer in unchecked:
            current = layer(current)

    calls = {"eager": lambda: model(x), "chain": lambda: chain.run(values), "unchecked": without_checks}
    with torch.inference_mode():
        seconds = interleave({key: timed(call) for key, call in calls.items()}, rounds=rounds, warmup=3, seed=seed)
    return Row(
        name,
        summarize(seconds["eager"]),
        summarize(seconds["chain"]),
        paired_ratio(seconds["chain"], seconds["eager"]),
        paired_ratio(seconds["chain"], seconds["unchecked"]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=40)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="default: the last one")
    arguments = parser.parse_args(argv)
    rounds = 3 if arguments.quick else arguments.rounds
    environment = Environment.collect(("torch",))
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    keep_freed_memory()  # as every stage does
    rows = [compare(model, rounds=rounds, seed=arguments.seed) for model in arguments.models]
    ratio = "{:.3f}".format
    report(
        f"One core, one thread, batch 1, float32; median of {rounds} interleaved rounds (quartiles)",
        ["model", "eager, ms", "chain, ms", "chain / eager", "with / without checks for NaN"],
        [
            (
                row.model,
                with_quartiles(row.eager_s, milliseconds),
                with_quartiles(row.chain_s, milliseconds),
                with_quartiles(row.to_eager, ratio),
                with_quartiles(row.checks, ratio),
            )
            for row in rows
        ],
        environment,
    )
    parameters = {"rounds": rounds, "core": arguments.core, "seed": arguments.seed, "batch": 1}
    write_result(arguments.output, environment=environment, parameters=parameters, results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
