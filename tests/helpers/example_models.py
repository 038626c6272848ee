"""Small CNNs, one per family of structure, for the tests of the partitioner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, nn


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model with weights from a seed and batch norm statistics as after training; eval mode."""
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: int) -> list[nn.Module]:
    padding = (kernel - 1) // 2
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options), nn.BatchNorm2d(outputs)]


def head(channels: int, classes: int = 5) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """ResNet's shape: stem, blocks, ``torch.flatten``, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(ResidualBlock(8, 8), ResidualBlock(8, 8))
        self.layer2 = nn.Sequential(ResidualBlock(8, 16, 2), ResidualBlock(16, 16))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat(features, 1)), inplace=True))


class Dense(nn.Module):
    """DenseNet's shape: every layer reads all the earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(6))
        self.classifier = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = torch.cat(features, 1)
        return self.classifier(F.adaptive_avg_pool2d(F.relu(x), (1, 1)).flatten(1))


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*conv_bn(inputs, 4, 1), nn.ReLU())
        self.three = nn.Sequential(*conv_bn(inputs, 4, 1), nn.ReLU(), *conv_bn(4, 8, 3), nn.ReLU())
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv_bn(inputs, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(F.silu(self.down(scale))))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv = nn.Sequential(
            *conv_bn(channels, wide, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(wide, wide, groups=wide),
            nn.Hardswish(inplace=True),
            SqueezeExcite(wide),
            *conv_bn(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class ShuffleBlock(nn.Module):
    """ShuffleNet v2's shape: chunk, cat, and a shuffle by view, transpose and contiguous."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(*conv_bn(half, half, 1), nn.ReLU(inplace=True), *conv_bn(half, half, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(batch, channels, height, width)


def stochastic_depth(x: Tensor, probability: float, training: bool) -> Tensor:
    """A function that fx must not look into, as torchvision's: its control flow depends on values."""
    if not training or float(torch.rand(())) >= probability:
        return x
    return torch.zeros_like(x)


torch.fx.wrap("stochastic_depth")


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + stochastic_depth(F.dropout2d(conv(x), 0.5, self.training), 0.5, self.training)
        return x


class TwoInputs(nn.Module):
    """Late fusion; returns a dict of outputs with a None in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)
        self.fuse = nn.Conv2d(8, 6, 3)

    def forward(self, images: tuple[Tensor, Tensor], scale: float = 1.0) -> dict[str, Tensor | None]:
        left, right = self.left(images[0]), self.right(images[1])
        fused = self.fuse(torch.cat([left, right], 1) * scale)
        return OrderedDict(out=fused, aux=None, mean=fused.mean((1, 2, 3)))


class Detections(NamedTuple):
    boxes: Tensor
    pyramid: list[Tensor]


class Pyramid(nn.Module):
    """Feature pyramid: sizes taken early are used late, outputs at several scales in a namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.boxes = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Detections:
        size = x.shape[-2:]
        fine = self.down1(x)
        middle = self.down2(fine)
        deep = self.deep(middle)
        up = F.interpolate(deep, size=middle.shape[-2:], mode="nearest") + middle
        boxes = F.interpolate(self.boxes(up), size=size, mode="bilinear", align_corners=False)
        return Detections(boxes, [up, deep])


class SharedModules(nn.Module):
    """One convolution with two batch norms, one block called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.block = ResidualBlock(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))
        return self.block(self.block(x))


class InPlace(nn.Module):
    """Writes its input, a view of a value, and a constant made at trace time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.register_buffer("offset", torch.arange(4.0).view(1, 4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        y = self.conv1(x)
        y[:, 0] = 0.0
        part = y[:, 1:2]
        part.add_(1.0)
        total = torch.ones(1)
        total += self.conv2(y).mean()
        return self.conv2(y + self.offset) * total


class InPlaceConstant(nn.Module):
    """Adds into a tensor that exists before the call, a constant that every run must find unwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x += 1.0
        total = torch.ones(4)
        torch.add(total, self.conv.bias.detach(), out=total)
        return self.conv(x) * total.view(1, 4, 1, 1)


class FunctionalWeights(nn.Module):
    """No modules at all: parameters, functional operations, functional batch norm, standardised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.weight2 = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.gain = nn.Parameter(torch.rand(4) + 0.5)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.var, self.gain, None, False, 0.1, 1e-3))
        weight = self.weight2 - self.weight2.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight)


class Bytes(nn.Module):
    """Takes bytes and class numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, image: Tensor, number: Tensor) -> Tensor:
        x = self.conv(image.to(self.conv.weight.dtype) / 255)
        return F.relu(x) + self.embedding(number)[:, :, None, None]


class ShapeDependent(nn.Module):
    """Control flow on a shape: beyond fx, within torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = conv_bn(3, 4)
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        if x.shape[2] > 4:
            x = F.max_pool2d(x, 2)
        return self.conv2(x).flatten(1)


class DataDependent(nn.Module):
    """Control flow on values: beyond both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = self.conv(x)
        return x


def image(batch: int = 1, channels: int = 3, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


# name -> (model, example arguments)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[object, ...]]]] = {
    "residual": (Residual, lambda: (image(),)),
    "dense": (Dense, lambda: (image(),)),
    "inception": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), InceptionBlock(8), InceptionBlock(16), *head(16)),
        lambda: (image(),),
    ),
    "inverted_residual": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), InvertedResidual(8), InvertedResidual(8), *head(8)),
        lambda: (image(),),
    ),
    "shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), ShuffleBlock(8), ShuffleBlock(8), *head(8)),
        lambda: (image(),),
    ),
    "stochastic_depth": (StochasticDepth, lambda: (image(),)),
    "two_inputs": (TwoInputs, lambda: ((image(), image(channels=1)), 0.5)),
    "pyramid": (Pyramid, lambda: (image(size=18),)),
    "shared_modules": (SharedModules, lambda: (image(),)),
    "in_place": (InPlace, lambda: (image(),)),
    "in_place_constant": (InPlaceConstant, lambda: (image(),)),
    "functional_weights": (FunctionalWeights, lambda: (image(),)),
    "bytes": (
        Bytes,
        lambda: (torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8), torch.tensor([3])),
    ),
    "shape_dependent": (ShapeDependent, lambda: (image(),)),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding_mode="reflect", padding=1),
            nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2, bias=False),
            nn.BatchNorm2d(12),
            nn.Sigmoid(),
            nn.GELU(),
            nn.AvgPool2d(2),
        ),
        lambda: (image(),),
    ),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.SiLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 2)),
        lambda: (torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(3)),),
    ),
    "sequence": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(56, 6)),
        lambda: (torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(3)),),
    ),
}
