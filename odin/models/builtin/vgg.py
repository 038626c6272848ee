"""VGG-16, configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks" (2014, arXiv:1409.1556)."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["VGG", "vgg16"]

# Output channels of the 3x3 convolutions, one tuple per resolution; a 2x2 max pool closes each.
VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """A plain stack of 3x3 convolutions, then three fully connected layers.

    Parameters
    ----------
    channels
        Output channels of the convolutions, one tuple per resolution.
    num_classes
        Length of the output vector.

    Notes
    -----
    Input ``(N, 3, H, W)`` with H, W >= 32, output ``(N, num_classes)``. ``features`` and ``classifier`` are flat so
    that the parameter names (``features.28.weight``, ``classifier.6.bias``) are torchvision's.
    """

    def __init__(self, channels: tuple[tuple[int, ...], ...] = VGG16_CHANNELS, *, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for resolution in channels:
            for out_width in resolution:
                layers += [nn.Conv2d(width, out_width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                width = out_width
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(width * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        x = self.avgpool(self.features(x))
        scores: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def vgg16(*, num_classes: int = 1000) -> VGG:
    """VGG-16: 13 convolutions, 3 linear layers, 138 M parameters."""
    return VGG(VGG16_CHANNELS, num_classes=num_classes)
