"""ResNet of He et al., "Deep Residual Learning for Image Recognition" (2015, arXiv:1512.03385).

The bottleneck strides in its 3x3 convolution, not in the first 1x1 as in the paper (known as v1.5; what torchvision's
checkpoints were trained with).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``(N, in, H, W)`` to ``(N, width, H / stride, W / stride)``."""

    expansion = 1

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_width, width * self.expansion, stride)

    @property
    def closing_norm(self) -> nn.BatchNorm2d:
        """The norm whose output is added to the shortcut."""
        return self.bn2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: torch.Tensor = self.relu(x + identity)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut: ``(N, in, H, W)`` to ``(N, 4 width, H / stride, W / stride)``."""

    expansion = 4

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_width, width * self.expansion, stride)

    @property
    def closing_norm(self) -> nn.BatchNorm2d:
        """The norm whose output is added to the shortcut."""
        return self.bn3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        out: torch.Tensor = self.relu(x + identity)
        return out


def shortcut(in_width: int, out_width: int, stride: int) -> nn.Sequential | None:
    """Projection that fits the shortcut to a block's output; none where the shapes agree already."""
    if stride == 1 and in_width == out_width:
        return None
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_width)
    )


class ResNet(nn.Module):
    """A 7x7 stem, four groups of residual blocks (``layer1`` to ``layer4``), average pooling, one linear layer.

    Parameters
    ----------
    block
        The kind of residual block.
    depths
        Blocks in each of the four groups.
    num_classes
        Length of the output vector.

    Notes
    -----
    Input ``(N, 3, H, W)``, output ``(N, num_classes)``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = block_group(block, 64, 64, depths[0], stride=1)
        self.layer2 = block_group(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = block_group(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = block_group(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def block_group(
    block: type[BasicBlock] | type[Bottleneck], in_width: int, width: int, depth: int, *, stride: int
) -> nn.Sequential:
    """``depth`` blocks of one resolution; the first one strides."""
    blocks = [block(in_width, width, stride)]
    blocks += [block(width * block.expansion, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def resnet18(*, num_classes: int = 1000) -> ResNet:
    """ResNet-18: 8 basic blocks, 11.7 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes)


def resnet34(*, num_classes: int = 1000) -> ResNet:
    """ResNet-34: 16 basic blocks, 21.8 M parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes=num_classes)


def resnet50(*, num_classes: int = 1000) -> ResNet:
    """ResNet-50: 16 bottleneck blocks, 25.6 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes)


def resnet101(*, num_classes: int = 1000) -> ResNet:
    """ResNet-101: 33 bottleneck blocks, 44.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes=num_classes)


def resnet152(*, num_classes: int = 1000) -> ResNet:
    """ResNet-152: 50 bottleneck blocks, 60.2 M parameters."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes=num_classes)
