"""The images on which ``odin engines`` compares outputs, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from odin.cli.labelled_images import labelled_images
from odin.models.calibration import load_examples
from odin.models.sources import Source

__all__ = ["EngineData", "engine_data"]

_NOISE = 32


class EngineData(NamedTuple):
    """Inputs of many samples, the class of each where that is known, and examples for int8."""

    inputs: tuple[torch.Tensor, ...]
    labels: tuple[int, ...] | None
    calibration: object
    notes: tuple[str, ...]

    def batches(self, size: int) -> list[tuple[torch.Tensor, ...]]:
        """Requests of this size; what is left over is left out, unless it is all that there is."""
        parts = list(zip(*(tensor.split(size) for tensor in self.inputs), strict=True))
        whole = [part for part in parts if len(part[0]) == size]
        if not whole:
            raise ValueError(f"{len(self.inputs[0])} images are no request of {size}: give more images, or --batch 1")
        return whole

    def labels_of(self, batches: Sequence[Sequence[torch.Tensor]]) -> tuple[int, ...] | None:
        """The classes of the images in these batches."""
        return None if self.labels is None else self.labels[: sum(len(inputs[0]) for inputs in batches)]


def engine_data(
    source: Source, *, data: str | None, labels: str | None, calibration: str | None, count: int
) -> EngineData:
    """Load what was given; noise where there is nothing.

    Raises
    ------
    ValueError
        If there are no images, a class is unknown, or the model takes no images.
    """
    notes = []
    if source.random_weights:
        notes.append("The weights are random: times are real, what is said of outputs means little.")
    if data is None:
        if labels is not None:
            raise ValueError("--labels names the classes of images: give these, too (--data FOLDER)")
        size = max(1, source.example_args[0].shape[0])
        generator = torch.Generator().manual_seed(1)
        many = -(-_NOISE // size)
        inputs = tuple(
            torch.randn((size * many, *tensor.shape[1:]), generator=generator).to(tensor.dtype)
            if tensor.is_floating_point()
            else torch.cat([tensor] * many)
            for tensor in source.example_args
        )
        notes.append("Outputs were compared on noise: give images by --data FOLDER.")
        known = None
    else:
        images, known = labelled_images(source, data, labels=labels, count=count, instead="leave --data out")
        inputs = (images,)
        notes.append(f"Outputs were compared on images of {data}.")
    if calibration is not None:
        return EngineData(inputs, known, load_examples(calibration, source, count=count), tuple(notes))
    notes.append("int8 was quantised by the same: give other images by --calibration FOLDER.")
    examples = [tuple(tensor[index : index + 1] for tensor in inputs) for index in range(len(inputs[0]))]
    whole = examples if source.example_args[0].shape[0] == 1 else [inputs]
    return EngineData(inputs, known, whole, tuple(notes))
