"""Labelled data of commands: images by folders, arrays, and what is told of wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from odin.cli.labelled_data import load_labelled
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
    labelled = load_labelled(source(), folder, labels=None, count=10)
    assert labelled.inputs.shape == (3, 3, 8, 8)
    assert labelled.classes.tolist() == [1, 1, 0]
    assert len(load_labelled(source(), folder, labels=None, count=2).classes) == 2


def test_numbered_folders_and_names_of_a_file(tmp_path):
    folder = write_images(tmp_path / "images", "0/a.png", "5/b.png")
    assert load_labelled(source(labels=None), folder, labels=None, count=10).classes.tolist() == [0, 5]
    names = tmp_path / "names.txt"
    names.write_text("bird\ncat\n")
    folder = write_images(tmp_path / "others", "cat/a.png")
    assert load_labelled(source(), folder, labels=names, count=10).classes.tolist() == [1]


def test_images_in_no_class_and_unknown_classes_are_told(tmp_path):
    with pytest.raises(ValueError, match="make one folder for each class"):
        load_labelled(source(), write_images(tmp_path / "flat", "a.png"), labels=None, count=10)
    with pytest.raises(ValueError, match="is no class of the model"):
        load_labelled(source(), write_images(tmp_path / "other", "whale/a.png"), labels=None, count=10)


def test_arrays(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.zeros((4, 3, 8, 8)), classes=np.arange(4))
    labelled = load_labelled(source(), path, labels=None, count=10)
    assert labelled.classes.tolist() == [0, 1, 2, 3]
    assert labelled.inputs.dtype == torch.float32
    assert load_labelled(source(), str(path), labels=None, count=2).classes.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"inputs": np.zeros((4, 3, 8, 8), "f4")}, "it is to hold the arrays inputs"),
        ({"inputs": np.zeros((4, 1, 8, 8), "f4"), "classes": np.zeros(4, int)}, r"inputs of shape \(1, 8, 8\)"),
        ({"inputs": np.zeros((4, 3, 8, 8), "f4"), "classes": np.zeros(4)}, "classes of type float64"),
        ({"inputs": np.zeros((4, 3, 8, 8), "f4"), "classes": np.zeros(3, int)}, "one class for each"),
        ({"inputs": np.array([None, {}]), "classes": np.zeros(2, int)}, "it is to hold the arrays"),
    ],
)
def test_arrays_that_are_not_labelled_inputs(tmp_path, arrays, told):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=told):
        load_labelled(source(), tmp_path / "wrong.npz", labels=None, count=100)
