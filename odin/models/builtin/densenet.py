"""DenseNet-121 of Huang et al., "Densely Connected Convolutional Networks" (2016, arXiv:1608.06993).

The form DenseNet-BC of the paper: bottlenecks before the 3x3 convolutions, transitions that halve the channels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

__all__ = ["DenseBlock", "DenseLayer", "DenseNet", "densenet121"]

GROWTH = 32  # channels that each layer adds
BOTTLENECK = 4 * GROWTH


class DenseLayer(nn.Module):
    """Norm, ReLU and 1x1 convolution of all features so far, then norm, ReLU and 3x3 convolution to 32 new ones."""

    def __init__(self, in_width: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_width, BOTTLENECK, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, kernel_size=3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer: ``(N, in, H, W)`` to ``(N, 32, H, W)``."""
        x = self.conv1(self.relu1(self.norm1(x)))
        out: torch.Tensor = self.conv2(self.relu2(self.norm2(x)))
        return out


class DenseBlock(nn.ModuleDict):
    """Layers of which each reads the block's input and what all layers before it have made."""

    def __init__(self, in_width: int, depth: int) -> None:
        super().__init__({f"denselayer{k + 1}": DenseLayer(in_width + k * GROWTH) for k in range(depth)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block: ``(N, in, H, W)`` to ``(N, in + 32 depth, H, W)``."""
        features = [x]
        for layer in self.values():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def transition(in_width: int) -> nn.Sequential:
    """Between two blocks: half of the channels, half of the height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_width),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_width, in_width // 2, kernel_size=1, bias=False),
            pool=nn.AvgPool2d(kernel_size=2, stride=2),
        )
    )


class DenseNet(nn.Module):
    """A 7x7 stem, four dense blocks with transitions between them, average pooling, one linear layer.

    Parameters
    ----------
    depths
        Layers in each of the four blocks.
    num_classes
        Length of the output vector.

    Notes
    -----
    Input ``(N, 3, H, W)`` with H, W >= 29, output ``(N, num_classes)``.
    """

    def __init__(self, depths: tuple[int, int, int, int], *, num_classes: int = 1000) -> None:
        super().__init__()
        width = 2 * GROWTH
        features: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        for number, depth in enumerate(depths, 1):
            features[f"denseblock{number}"] = DenseBlock(width, depth)
            width += depth * GROWTH
            if number < len(depths):
                features[f"transition{number}"] = transition(width)
                width //= 2
        features["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(features)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        x = nn.functional.relu(self.features(x), inplace=True)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        scores: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def densenet121(*, num_classes: int = 1000) -> DenseNet:
    """DenseNet-121: 58 layers in four dense blocks, 8.0 M parameters."""
    return DenseNet((6, 12, 24, 16), num_classes=num_classes)
