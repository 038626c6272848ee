"""Which engine is meant if none is named depends on the model: PyTorch, or for an ONNX file any that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx_models import chain_of_convolutions, save
from torch import nn

import odin
from odin.cli.main import main
from odin.stages.device import usable_cores

CORE = f"cpu:{usable_cores()[0]}"


class ReachedError(Exception):
    """Nothing was refused before Ray is started."""


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def startup(*_: object, **options: object) -> None:
        raise ReachedError

    monkeypatch.setattr("odin.control.assembly.Startup", startup)


def test_int8_of_an_onnx_file_needs_no_engine_named(tmp_path: Path):
    file = save(chain_of_convolutions(), tmp_path / "small.onnx")
    x = torch.zeros(1, 3, 12, 12)
    with pytest.raises(ReachedError):
        odin.Pipeline(str(file), stages=[CORE], precision="int8", calibration=x, example_input=x)


def test_int8_of_a_module_needs_one():
    x = torch.zeros(1, 3, 12, 12)
    with pytest.raises(ValueError, match="engine 'torch' does not compute in int8"):
        odin.Pipeline(nn.Conv2d(3, 3, 3), stages=[CORE], precision="int8", calibration=x, example_input=x)


def test_odin_partition_names_the_engine_that_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    options = ["--stages", CORE, "--precision", "int8", "--image-size", "64", "--calibration", str(tmp_path)]
    assert main(["partition", "resnet18", *options]) == 2
    assert "engine 'torch' does not compute in int8" in capsys.readouterr().err
