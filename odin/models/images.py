"""Image files to model input: decode, resize, crop, normalise.

The arithmetic is that of torchvision's ``ImageClassification`` preset on PIL images, bit for bit: published accuracies
were measured with it, and a resize without antialiasing alone costs ResNet-50 several points of top-1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from odin.models.orientation import upright

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageError", "Preprocess", "load_image"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
# A 1 x 30,000 strip whose shorter side becomes 256 pixels would take 2 gigapixels; the bound is PIL's for decoding.
MAX_RESIZED_PIXELS = 178_956_970


class ImageError(ValueError):
    """One file could not be turned into model input.

    Attributes
    ----------
    path
        The file.
    reason
        Why, in one line.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images.

    Parameters
    ----------
    resize
        Pixels of the shorter side after resizing, the aspect ratio kept; or ``(height, width)`` to stretch to.
    crop
        ``(height, width)`` of the centre crop; where the image is smaller it is padded with black.
    mean, std
        Per RGB channel, for values in 0..1: ``(value - mean) / std``.
    interpolation
        ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ``"lanczos"``, ``"box"`` or ``"hamming"``, antialiased by PIL.

    Raises
    ------
    ValueError
        If a size is not positive, an interpolation is unknown or a std is zero.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sizes = (*self.crop, *((self.resize,) if isinstance(self.resize, int) else self.resize))
        if min(sizes) < 1:
            raise ValueError(f"resize {self.resize} and crop {self.crop} must be positive numbers of pixels")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"unknown interpolation {self.interpolation!r}; choose from {', '.join(RESAMPLING)}")
        if len(self.mean) != 3 or len(self.std) != 3 or 0.0 in self.std:
            raise ValueError(f"mean {self.mean} and std {self.std} need one value per RGB channel, std not zero")

    @classmethod
    def for_size(cls, height: int, width: int) -> Preprocess:
        """The ImageNet habit for other sizes: resize to 256/224 of the crop, so that 7/8 of the shorter side stay."""
        resize = round(min(height, width) * 256 / 224)
        return cls(resize=resize if height == width else (height, width), crop=(height, width))

    @cached_property
    def normalised_levels(self) -> npt.NDArray[np.float32]:
        """``(3, 256)``: what each of the 256 levels of a channel becomes; a look-up beats arithmetic per pixel."""
        levels = torch.arange(256, dtype=torch.float32).div(255)
        table: npt.NDArray[np.float32] = (
            levels.sub(torch.tensor(self.mean)[:, None]).div(torch.tensor(self.std)[:, None]).numpy()
        )
        return table

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Turn an RGB image into model input.

        Parameters
        ----------
        image
            Any size, mode ``RGB``.

        Returns
        -------
        torch.Tensor
            ``(1, 3, crop height, crop width)``, float32, contiguous.

        Raises
        ------
        ValueError
            If the image is so long and thin that resizing its shorter side would need gigapixels.
        """
        image = centre_crop(resized(image, self.resize, RESAMPLING[self.interpolation]), self.crop)
        pixels = np.asarray(image)
        values = np.empty((1, 3, *self.crop), np.float32)
        for channel in range(3):
            # "clip" only spares the bounds check: a byte cannot exceed a table of 256
            np.take(self.normalised_levels[channel], pixels[:, :, channel], out=values[0, channel], mode="clip")
        return torch.from_numpy(values)


def resized(image: Image.Image, size: int | tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize the shorter side to ``size``, the longer one truncated to whole pixels as torchvision does; or stretch."""
    if isinstance(size, int):
        shorter, longer = min(image.size), max(image.size)
        new_longer = int(size * longer / shorter)
        if size * new_longer > MAX_RESIZED_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels is too long and thin to resize its shorter side to {size}"
            )
        width, height = (size, new_longer) if image.width <= image.height else (new_longer, size)
    else:
        height, width = size
    return image if (width, height) == image.size else image.resize((width, height), resample)


def centre_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Cut ``(height, width)`` from the middle, padding with black where the image is smaller."""
    height, width = crop
    if width > image.width or height > image.height:
        pad_x, pad_y = max(0, width - image.width), max(0, height - image.height)
        padded = Image.new(image.mode, (image.width + pad_x, image.height + pad_y))
        padded.paste(image, (pad_x // 2, pad_y // 2))
        image = padded
    # round(): half to even, which is what torchvision's crops are made of
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB: EXIF orientation applied, 16-bit grey scaled to 8 bits (PIL alone would clip it to white)."""
    image = upright(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey levels {grey.min()}..{grey.max()} do not fit 16 bits")
        image = Image.fromarray((grey // 256).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known white level; convert the file to 8 or 16 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def load_image(path: str | os.PathLike[str], preprocess: Preprocess) -> torch.Tensor:
    """Read one image file as model input.

    Returns
    -------
    torch.Tensor
        ``(1, 3, H, W)`` float32, ``(H, W)`` being ``preprocess.crop``.

    Raises
    ------
    ImageError
        If the file is missing, not an image, truncated, or too large; with the path and the reason.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            return preprocess(to_rgb(image))
    except OSError as error:  # missing, unreadable, unknown format, truncated
        reason = error.strerror or str(error).replace(f" {str(path)!r}", "")
        raise ImageError(path, reason) from error
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
        raise ImageError(path, f"{type(error).__name__}: {error}") from error
