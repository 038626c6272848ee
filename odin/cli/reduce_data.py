"""The labelled images of ``odin reduce``."""

from __future__ import annotations

import zipfile

import numpy as np
import torch

from odin.cli.labelled_images import labelled_images
from odin.models.sources import Source
from odin.reduction.labelled import Labelled

__all__ = ["load_labelled"]


def load_labelled(source: Source, place: str, *, labels: str | None, count: int) -> Labelled:
    """Load images and their classes from a folder per class, or from an ``.npz`` file.

    Raises
    ------
    ValueError
        If there are none, a class is unknown, or the model takes no image files.
    """
    if place.endswith(".npz"):
        return _arrays(source, place, count)
    instead = "give --labelled FILE.npz with the arrays images, as the model takes them, and labels"
    images, classes = labelled_images(source, place, labels=labels, count=count, instead=instead)
    if classes is None:
        raise ValueError(f"{place}: images lie in no folders that say their classes; make one folder for each class")
    return Labelled(images, torch.tensor(classes)).check()


def _arrays(source: Source, place: str, count: int) -> Labelled:
    try:
        with np.load(place, allow_pickle=False) as found:
            images, labels = np.asarray(found["images"]), np.asarray(found["labels"])
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{place}: {error}; it is to hold the arrays images and labels (numpy.savez)") from error
    example = source.example_args[0]
    if not images.ndim or images.shape[1:] != tuple(example.shape[1:]):
        raise ValueError(
            f"{place}: images of shape {images.shape[1:]}, and {source.name} takes {tuple(example.shape[1:])}"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{place}: labels of type {labels.dtype}, shape {labels.shape}; give each image's class as a number from 0"
        )
    if len(labels) != len(images):
        raise ValueError(f"{place}: {len(images)} images and {len(labels)} labels; give one class for each image")
    chosen = [int(index * max(1.0, len(images) / count)) for index in range(min(count, len(images)))]
    made = torch.from_numpy(np.ascontiguousarray(images[chosen])).to(example.dtype)
    return Labelled(made, torch.from_numpy(labels[chosen].astype(np.int64))).check()
