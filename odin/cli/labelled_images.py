"""Images of a folder, and the class of each where the folders that they are in say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from odin.models.calibration import spread
from odin.models.image_files import find_images
from odin.models.images import load_image
from odin.models.sources import Source

__all__ = ["labelled_images", "true_classes"]


def labelled_images(
    source: Source, folder: str | Path, *, labels: str | Path | None, count: int, instead: str
) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """Load images below a folder as a model takes them, and the class of each as :func:`true_classes` knows it.

    Parameters
    ----------
    labels
        File with the name of a class in each line; None: those that the model knows.
    count
        Most images, evenly from the sorted paths.
    instead
        What else can be given if the model takes no image files, for that error.

    Raises
    ------
    ValueError
        If there are no images, a class is unknown, or the model takes no images.
    """
    if source.preprocess is None:
        raise ValueError(f"{source.name}: how to turn image files into its input is not known; {instead}")
    names = source.labels if labels is None else tuple(Path(labels).read_text(encoding="utf-8").splitlines())
    paths = spread(find_images([folder]), count)
    classes = true_classes(paths, Path(folder), names)
    return torch.cat([load_image(path, source.preprocess) for path in paths]), classes


def true_classes(paths: Sequence[Path], folder: Path, names: Sequence[str] | None) -> tuple[int, ...] | None:
    """The number of each image's class, which the folder that it is in says; None if they are in no such folders.

    Folders are named like the model's classes, where upper case and ``_`` do not matter, or numbered.
    """
    own = [path.relative_to(folder).parts[0] if len(path.relative_to(folder).parts) > 1 else "" for path in paths]
    if "" in own:
        return None
    numbers = {_plain(name): number for number, name in enumerate(names or ())}
    classes = []
    for name in own:
        number = numbers.get(_plain(name), int(name) if name.isdecimal() else None)
        if number is None:
            raise ValueError(
                f"{folder / name} is no class of the model: name folders like its classes, give their names by "
                "--labels FILE, or put all images into one folder"
            )
        classes.append(number)
    return tuple(classes)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")
