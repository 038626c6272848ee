"""ConvNeXt-Tiny of Liu et al., "A ConvNet for the 2020s" (2022, arXiv:2201.03545).

Stochastic depth, which acts in training only and has no weights, is left out.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ConvNeXt", "ConvNeXtBlock", "convnext_tiny"]

TINY_WIDTHS = (96, 192, 384, 768)
TINY_DEPTHS = (3, 3, 9, 3)
NORM_EPS = 1e-6


class Permute(nn.Module):
    """Axes in another order, as a step of a sequence."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reorder the axes."""
        return x.permute(self.axes)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of ``(N, C, H, W)``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # named as in torch's own
        """Normalise each pixel: the shape stays."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Filter by a depthwise 7x7, then a two-layer perceptron on each pixel's channels, scaled, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=NORM_EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))  # where training begins, as in the paper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block: the shape stays."""
        out: torch.Tensor = self.layer_scale * self.block(x) + x
        return out


class ConvNeXt(nn.Module):
    """A patch of 4x4 pixels to a vector, four groups of blocks with strided 2x2 convolutions between, pooling, a head.

    Parameters
    ----------
    widths, depths
        Channels and blocks of each group.
    num_classes
        Length of the output vector.

    Notes
    -----
    Input ``(N, 3, H, W)`` with H, W >= 32, output ``(N, num_classes)``.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = TINY_WIDTHS,
        depths: tuple[int, ...] = TINY_DEPTHS,
        *,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        features: list[nn.Module] = []
        before = None
        for width, depth in zip(widths, depths, strict=True):
            if before is None:
                patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
                features.append(nn.Sequential(patches, ChannelNorm(width, eps=NORM_EPS)))
            else:
                halving = nn.Conv2d(before, width, kernel_size=2, stride=2)
                features.append(nn.Sequential(ChannelNorm(before, eps=NORM_EPS), halving))
            features.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
            before = width
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            ChannelNorm(widths[-1], eps=NORM_EPS), nn.Flatten(1), nn.Linear(widths[-1], num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        scores: torch.Tensor = self.classifier(self.avgpool(self.features(x)))
        return scores


def convnext_tiny(*, num_classes: int = 1000) -> ConvNeXt:
    """ConvNeXt-Tiny: 18 blocks, 28.6 M parameters."""
    return ConvNeXt(num_classes=num_classes)
