"""Finding image files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "find_images"]

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Image files among ``paths``: files as given, whatever their suffix; folders searched below, sorted by path.

    Hidden files and folders (a leading dot) are left out; symbolic links to folders are not followed.

    Raises
    ------
    ValueError
        If a path does not exist or a folder holds no file with one of :data:`IMAGE_SUFFIXES`.
    """
    images: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(images_below(path))
            if not found:
                raise ValueError(f"no images in {path}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}")
            images += found
        elif path.exists():
            images.append(path)
        else:
            raise ValueError(f"input {path} does not exist")
    return images


def images_below(folder: Path) -> Iterable[Path]:
    """Files with an image suffix in a folder and its sub-folders, in no particular order."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent, name)
