"""MobileNetV2 of Sandler et al., "Inverted Residuals and Linear Bottlenecks" (2018, arXiv:1801.04381)."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# The paper's table 2: (expansion, output channels, repeats, stride of the first repeat).
SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm_relu6(
    in_width: int, out_width: int, *, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps the resolution up to its stride, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_width),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen by a 1x1, filter by a depthwise 3x3, narrow by a linear 1x1; a shortcut joins the narrow ends."""

    def __init__(self, in_width: int, out_width: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_width * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_relu6(in_width, hidden, kernel_size=1))
        layers += [
            conv_norm_relu6(hidden, hidden, kernel_size=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_width, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_width),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_width == out_width

    @property
    def closing_norm(self) -> nn.Module | None:
        """The norm whose output is added to the shortcut, if there is one."""
        return self.conv[-1] if self.has_shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block: ``(N, in, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """A strided stem, 17 inverted residual blocks, a 1x1 head, average pooling, one linear layer.

    Notes
    -----
    Input ``(N, 3, H, W)``, output ``(N, num_classes)``.
    """

    def __init__(self, *, num_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_norm_relu6(3, 32, kernel_size=3, stride=2)]
        width = 32
        for expansion, out_width, repeats, stride in SETTING:
            for repeat in range(repeats):
                features.append(
                    InvertedResidual(width, out_width, stride=stride if repeat == 0 else 1, expansion=expansion)
                )
                width = out_width
        features.append(conv_norm_relu6(width, 1280, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(p=0.2), nn.Linear(1280, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        scores: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def mobilenet_v2(*, num_classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 at width 1.0: 3.5 M parameters."""
    return MobileNetV2(num_classes=num_classes)
