"""scikit-learn's handwritten digits, and a small residual network of any width that is trained on them here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from odin.models.labelled import Labelled

__all__ = ["DigitsNet", "digits", "shifted"]

CLASSES = 10


def digits(*, size: int = 32, held_out: float = 0.4, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Return 1,797 real images ``(count, 1, size, size)`` with values about 0, divided into training and held-out.

    They are 8 x 8 and are enlarged, which adds nothing that could be learnt, but makes a network as large as those of
    small photographs.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    if size != images.shape[-1]:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return Labelled(images.contiguous(), torch.tensor(found.target)).split(1 - held_out, seed=seed)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size in each direction; what was outside is background."""
    size = images.shape[-1]
    most = size // 8
    padded = functional.pad(images, (most, most, most, most), value=-1.0)
    places = torch.randint(0, 2 * most + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, places, strict=True)])


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            around = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.around = nn.Sequential(around, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(count, inputs, height, width)`` -> ``(count, outputs, height / stride, width / stride)``."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.around(x))


class DigitsNet(nn.Module):
    """A residual network of nine blocks over three resolutions.

    Parameters
    ----------
    width
        Share of the channels, in (0, 1].
    channels
        Of the first resolution at full width; twice and four times as many at the others.
    depth
        Blocks of each resolution.
    """

    def __init__(self, width: float = 1.0, *, channels: int = 32, depth: int = 3) -> None:
        super().__init__()
        sizes = [max(1, round(width * channels * 2**level)) for level in range(3)]
        self.stem = nn.Conv2d(1, sizes[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(sizes[0])
        blocks, before = [], sizes[0]
        for level, size in enumerate(sizes):
            for index in range(depth):
                blocks.append(Block(before, size, stride=2 if level and not index else 1))
                before = size
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(before, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """``(count, 1, size, size)`` -> scores ``(count, 10)``."""
        features = self.blocks(functional.relu(self.norm(self.stem(images))))
        found: Tensor = self.classify(features.mean((2, 3)))
        return found
