"""``odin profile``: labelled images by folders, and what is told of wrong ones."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from odin.cli.profile import _labelled, _plain, _table
from odin.family.facts import Facts
from odin.models.images import Preprocess
from odin.models.sources import Source


def source(*, labels: tuple[str, ...] | None = ("cat", "large dog")) -> Source:
    return Source("net", nn.Identity(), (torch.zeros(1, 3, 8, 8),), Preprocess(resize=8, crop=(8, 8)), labels, True)


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 9), (len(name), 0, 0)).save(path)
    return folder


def test_a_folder_for_each_class(tmp_path):
    folder = write_images(tmp_path, "Large_Dog/a.png", "Large_Dog/b.png", "cat/c.png")
    labelled = _labelled(folder, source(), labels=None, count=10)
    assert labelled.inputs.shape == (3, 3, 8, 8)
    assert labelled.classes.tolist() == [1, 1, 0]
    assert len(_labelled(folder, source(), labels=None, count=2).classes) == 2


def test_numbered_folders_and_names_of_a_file(tmp_path):
    folder = write_images(tmp_path / "images", "0/a.png", "5/b.png")
    assert _labelled(folder, source(labels=None), labels=None, count=10).classes.tolist() == [0, 5]
    names = tmp_path / "names.txt"
    names.write_text("bird\ncat\n")
    folder = write_images(tmp_path / "others", "cat/a.png")
    assert _labelled(folder, source(), labels=names, count=10).classes.tolist() == [1]


def test_images_in_no_class_and_unknown_classes_are_told(tmp_path):
    with pytest.raises(ValueError, match="put those of each class into a folder of its own"):
        _labelled(write_images(tmp_path / "flat", "a.png"), source(), labels=None, count=10)
    with pytest.raises(ValueError, match="is no class of the model"):
        _labelled(write_images(tmp_path / "other", "whale/a.png"), source(), labels=None, count=10)


def test_arrays(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.zeros((4, 2), np.float32), classes=np.arange(4))
    assert _labelled(path, source(), labels=None, count=10).classes.tolist() == [0, 1, 2, 3]
    np.savez(path, inputs=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="no array 'classes'; it has inputs"):
        _labelled(path, source(), labels=None, count=10)


def test_the_table_begins_with_the_least_dear():
    facts = [
        Facts("large", 0.03, 0.002, 2.0, 400, 0.9876, 0.03, 66),
        Facts("small", 0.008, 0.002, 1.0, 100, math.nan, 0.008, 250, reduced=True),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(_table("digits", facts))
    text = console.export_text()
    assert text.index("small") < text.index("large")
    assert "98.76%" in text
    assert "yes" in text
    assert _plain(math.nan) is None
