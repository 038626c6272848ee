"""EfficientNet-B0 of Tan and Le, "EfficientNet: Rethinking Model Scaling for CNNs" (2019, arXiv:1905.11946).

Its gates are the squeeze-and-excitation of Hu et al. 2017 (arXiv:1709.01507). Stochastic depth, which acts in training
only and has no weights, is left out.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["EfficientNet", "MBConv", "SqueezeExcitation", "efficientnet_b0"]

# The paper's table 1, stages 2 to 8: (expansion, kernel size, output channels, repeats, stride of the first repeat).
B0_SETTING = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
# For random weights: what comes before a convolution keeps another part of a normal variable's mean square than ReLU's
# half. SiLU keeps 0.36 of it at size 1 and half where it is large, a gate around 0.5 a quarter, a linear block all.
# Gates that varied much would amplify one another from block to block, and rounding errors with them.
AFTER_SILU = 1.15
AFTER_GATE = 2.2
AFTER_LINEAR = 0.5**0.5
INTO_GATE = 0.3


def conv_norm(
    in_width: int,
    out_width: int,
    *,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
    gain: float = 1.0,
) -> nn.Sequential:
    """Convolution that keeps the resolution up to its stride, batch norm, and SiLU if there is an activation."""
    conv = nn.Conv2d(in_width, out_width, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    conv.gain = gain  # type: ignore[assignment]  # for initialize(); torch's stubs know only tensors and modules
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_width)]
    if activation:
        layers.append(nn.SiLU(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Multiply each channel by a gate between 0 and 1 that two 1x1 convolutions make of all channels' means."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, width, kernel_size=1)
        # Read by initialize(); torch's stubs know only tensors and modules.
        self.fc1.gain = self.fc2.gain = INTO_GATE  # type: ignore[assignment]
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the gates: the shape stays."""
        gates: torch.Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gates * x


class MBConv(nn.Module):
    """Widen by a 1x1, filter depthwise, gate, narrow by a linear 1x1; a shortcut where the ends agree."""

    def __init__(self, in_width: int, out_width: int, *, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_width * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(in_width, hidden, kernel_size=1, gain=AFTER_LINEAR))
        layers += [
            conv_norm(hidden, hidden, kernel_size=kernel_size, stride=stride, groups=hidden, gain=AFTER_SILU),
            SqueezeExcitation(hidden, max(1, in_width // 4)),
            conv_norm(hidden, out_width, kernel_size=1, activation=False, gain=AFTER_GATE),
        ]
        self.block = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_width == out_width

    @property
    def closing_norm(self) -> nn.Module | None:
        """The norm whose output is added to the shortcut, if there is one."""
        *_, closing = self.block.modules()  # the last convolution's norm
        return closing if self.has_shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block: ``(N, in, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        out: torch.Tensor = self.block(x)
        return out + x if self.has_shortcut else out


class EfficientNet(nn.Module):
    """A strided stem, seven groups of gated inverted residual blocks, a 1x1 head, average pooling, one linear layer.

    Notes
    -----
    Input ``(N, 3, H, W)``, output ``(N, num_classes)``.
    """

    def __init__(self, *, num_classes: int = 1000) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_norm(3, 32, kernel_size=3, stride=2)]
        width = 32
        for expansion, kernel_size, out_width, repeats, stride in B0_SETTING:
            blocks = []
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(
                    MBConv(
                        width,
                        out_width,
                        kernel_size=kernel_size,
                        stride=stride if first else 1,
                        expansion=expansion,
                    )
                )
                width = out_width
            features.append(nn.Sequential(*blocks))
        features.append(conv_norm(width, 4 * width, kernel_size=1, gain=AFTER_LINEAR))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=0.2, inplace=True), nn.Linear(4 * width, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(N, 3, H, W)`` to class scores ``(N, num_classes)``."""
        x = self.avgpool(self.features(x))
        scores: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def efficientnet_b0(*, num_classes: int = 1000) -> EfficientNet:
    """EfficientNet-B0: 16 blocks, 5.3 M parameters."""
    return EfficientNet(num_classes=num_classes)
