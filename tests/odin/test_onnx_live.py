"""Pipelines and commands on ONNX files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")

from onnx_models import chain_of_convolutions, save
from PIL import Image
from random_moves import answers_while_layers_move

import odin
from odin.cli.main import main
from odin.models.images import load_image
from odin.partitioner.engines.names import available_engines
from odin.partitioner.engines.onnx_chain import build_onnx_chain
from odin.partitioner.engines.onnx_file import read_onnx
from odin.partitioner.engines.onnx_whole import Whole, open_whole

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif("onnxruntime" not in available_engines(), reason="ONNX Runtime is not installed"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a model with layers that are long enough to be worth a call."""
    return save(chain_of_convolutions(size=64, count=8, channels=32), tmp_path / "model.onnx")


def whole(path: Path) -> Whole:
    return open_whole(read_onnx(path), "onnxruntime")


def images(count: int, *, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, 64, 64, generator=generator) for _ in range(count)]


def test_outputs_are_those_of_onnxruntime_while_layers_move(two_cores: list[str], path: Path):
    file, inputs = read_onnx(path), images(6)
    run = whole(path)
    expected = [run([image.numpy()])[0] for image in inputs]
    chain = build_onnx_chain(file, [inputs[0].numpy()], name="model", engine="onnxruntime", minimum_share=0)
    layers = len(chain.layers)
    assert layers == 9
    with odin.Pipeline(chain, stages=two_cores, engine="onnxruntime", policy="static") as pipe:
        for number, answer in answers_while_layers_move(pipe, inputs, layers=layers, requests=40):
            assert np.array_equal(answer.numpy(), expected[number])


def test_a_path_takes_the_fastest_engine_and_requests_of_any_size(two_cores: list[str], path: Path):
    (five,) = images(1, batch=5)
    with odin.Pipeline(str(path), stages=two_cores) as pipe:
        assert pipe.engine in ("onnxruntime", "openvino")
        found = pipe(five).numpy()
    (expected,) = whole(path)([five.numpy()])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_torch_is_refused(path: Path):
    with pytest.raises(ValueError, match="engine 'torch' does not go with model, an ONNX file"):
        odin.Pipeline(str(path), stages=["cpu:0"], engine="torch")


def test_odin_partition(path: Path, two_cores: list[str], capsys: pytest.CaptureFixture[str]):
    options = ["--stages", ",".join(two_cores), "--engine", "onnxruntime", "--json"]
    assert main(["partition", str(path), *options]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["model"] == "model"
    assert [layer["name"].partition(".")[0] for layer in report["layers"]] == ["body"] * len(report["layers"])
    assert main(["partition", str(path), "--engine", "torch"]) == 2
    assert "engine 'torch' does not go with model, an ONNX file" in capsys.readouterr().err


def test_odin_run(path: Path, two_cores: list[str], tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    output = tmp_path / "results.jsonl"
    options = ["--stages", ",".join(two_cores), "--engine", "onnxruntime", "--output", str(output)]
    assert main(["run", str(path), "--input", str(tmp_path / "image.png"), *options]) == 0
    (line,) = [json.loads(text) for text in output.read_text().splitlines()]
    preprocess = odin.load_source(path).preprocess
    assert preprocess is not None
    (scores,) = whole(path)([load_image(tmp_path / "image.png", preprocess).numpy()])
    assert line["top"][0]["index"] == scores[0].argmax()


def test_odin_run_says_what_it_cannot_make_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    model = chain_of_convolutions(batch=1, size=8)
    model.graph.input[0].type.tensor_type.elem_type = 11  # float64
    path = save(model, tmp_path / "model.onnx")
    assert main(["run", str(path), "--input", str(tmp_path / "image.png")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "it takes torch.float64 (1, 3, 8, 8); image files become one float32 tensor, batch x 3 x height" in message
