"""The labelled data of ``odin reduce`` and ``odin profile``."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from odin.cli.labelled_images import labelled_images
from odin.models.calibration import spread
from odin.models.labelled import Labelled
from odin.models.sources import Source

__all__ = ["load_labelled"]

_ARRAYS = "the arrays inputs, as the model takes them, and classes"


def load_labelled(source: Source, place: str | Path, *, labels: str | Path | None, count: int) -> Labelled:
    """Load inputs and their classes from a folder of images per class, or from an ``.npz`` file.

    Parameters
    ----------
    source
        The model that is to take them.
    labels
        File with the name of a class in each line, for a folder; None: those that the model knows.
    count
        Most inputs, evenly from all.

    Raises
    ------
    ValueError
        If there are none, a class is unknown, or the model takes no image files.
    """
    if Path(place).suffix == ".npz":
        return _arrays(source, place, count)
    instead = f"give a .npz file with {_ARRAYS}"
    images, classes = labelled_images(source, place, labels=labels, count=count, instead=instead)
    if classes is None:
        raise ValueError(f"{place}: images lie in no folders that say their classes; make one folder for each class")
    return Labelled.of(images, classes)


def _arrays(source: Source, place: str | Path, count: int) -> Labelled:
    try:
        with np.load(place, allow_pickle=False) as found:
            inputs, classes = np.asarray(found["inputs"]), np.asarray(found["classes"])
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{place}: {error}; it is to hold {_ARRAYS} (numpy.savez)") from error
    example = source.example_args[0]
    if not inputs.ndim or inputs.shape[1:] != tuple(example.shape[1:]):
        raise ValueError(
            f"{place}: inputs of shape {inputs.shape[1:]}, and {source.name} takes {tuple(example.shape[1:])}"
        )
    if classes.dtype.kind not in "iu":
        raise ValueError(f"{place}: classes of type {classes.dtype}; give each input's as a whole number from 0")
    try:
        whole = Labelled.of(torch.from_numpy(inputs).to(example.dtype), torch.from_numpy(classes.astype(np.int64)))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    chosen = spread(range(len(classes)), count)
    return Labelled(whole.inputs[chosen], whole.classes[chosen])
