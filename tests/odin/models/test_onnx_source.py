"""ONNX files as sources: sizes that the file leaves free, image files, and each way in which a file can be unusable."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402  # only where it is installed
from onnx_models import chain_of_convolutions, constant, graph_of, save, value  # noqa: E402

from odin.models.chains import engine_for, to_chain, to_source, weight_nbytes  # noqa: E402
from odin.models.images import Preprocess  # noqa: E402
from odin.models.model_names import check_model_name  # noqa: E402
from odin.models.sources import load_source  # noqa: E402
from odin.models.weight_files import model_digest  # noqa: E402
from odin.partitioner.chain import build_chain  # noqa: E402
from odin.partitioner.engines import onnx_file  # noqa: E402
from odin.partitioner.engines.names import available_engines  # noqa: E402
from odin.partitioner.engines.onnx_chain import OnnxChain  # noqa: E402
from odin.partitioner.engines.onnx_file import OnnxFile  # noqa: E402

ENGINES = [engine for engine in available_engines() if engine != "torch"]


def images(tmp_path: Path, **options: Any) -> Path:
    return save(chain_of_convolutions(**options), tmp_path / "model.onnx")


def relu(tmp_path: Path, shape: list[int | str] | None, dtype: int = TensorProto.FLOAT) -> Path:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", shape, dtype)], [value("y", None, dtype)])
    return save(model, tmp_path / "model.onnx")


# --- sizes -------------------------------------------------------------------------------------------------------


def test_a_file_with_all_sizes(tmp_path: Path):
    source = load_source(str(images(tmp_path, size=64)))
    assert isinstance(source.model, OnnxFile)
    assert (source.name, source.random_weights, source.labels) == ("model", False, None)
    assert source.example_args[0].shape == (1, 3, 64, 64)
    assert source.preprocess == Preprocess.for_size(64, 64)
    assert weight_nbytes(source) == 4 * (8 * 27 + 4 * 8 * 72 + 5 * 8 + 80 + 10)
    assert torch.equal(source.example_args[0], load_source(source.model.path).example_args[0])


@pytest.mark.parametrize(
    ("shape", "image_size", "expected"),
    [
        (["n", 3, "h", "w"], None, (1, 3, 224, 224)),
        (["n", 3, "h", "w"], 64, (1, 3, 64, 64)),
        (["n", 3, 32, 48], None, (1, 3, 32, 48)),
        ([4, 3, 32, 32], 32, (4, 3, 32, 32)),
        (["n", "h", "w", 3], 64, (1, 64, 64, 3)),
        (["n", 7], None, (1, 7)),
        ([], None, ()),
    ],
)
def test_sizes_of_the_example(shape: Any, image_size: int | None, expected: tuple[int, ...], tmp_path: Path):
    (example,) = load_source(relu(tmp_path, shape), image_size=image_size).example_args
    assert example.shape == expected


@pytest.mark.parametrize(
    ("shape", "image_size", "message"),
    [
        (["n", "steps", 8], None, r"x float32\(n, steps, 8\) and leaves the size steps open: give example_input="),
        (["n", 3, 32, 32], 64, "takes images of 32 pixels only; export it at 64"),
        (["n", 7], 64, r"takes x float32\(n, 7\): no image that could be of 64 pixels"),
        (None, None, r"x float32\(\.\.\.\) and leaves its number of dimensions open"),
    ],
)
def test_sizes_that_nobody_gave(shape: Any, image_size: int | None, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        load_source(relu(tmp_path, shape), image_size=image_size)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            torch.zeros(1, 3, 9, 9),
            r"takes image float32\(batch, 3, 12, 12\), and the example's image is float32\(1, 3,",
        ),
        (torch.zeros(3, 12, 12), r"the example's image is float32\(3, 12, 12\)"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.float64), "the example's image is float64"),
        ((torch.zeros(1, 3, 12, 12),) * 2, "the example has 2 inputs"),
    ],
)
def test_examples_that_do_not_fit(example: Any, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        load_source(images(tmp_path), example_input=example)


def test_an_example_gives_the_sizes(tmp_path: Path):
    path = relu(tmp_path, ["n", "steps", 8])
    assert load_source(path, example_input=np.zeros((2, 5, 8), np.float32)).example_args[0].shape == (2, 5, 8)


def test_only_float32_images_with_channels_first_are_made_of_image_files(tmp_path: Path):
    assert load_source(relu(tmp_path, ["n", 3, 8, 8])).preprocess is not None
    assert load_source(relu(tmp_path, ["n", 8, 8, 3])).preprocess is None
    assert load_source(relu(tmp_path, ["n", 3, 8, 8], TensorProto.FLOAT16)).preprocess is None
    assert load_source(relu(tmp_path, ["n", 1, 8, 8])).preprocess is None


# --- files that cannot be used -----------------------------------------------------------------------------------


def test_no_file_and_a_folder(tmp_path: Path):
    for check in (load_source, check_model_name):
        with pytest.raises(ValueError, match=r"gone\.onnx: no such file"):
            check(str(tmp_path / "gone.onnx"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder, name one file"):
        load_source(tmp_path / "folder.onnx")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 an archive", b"<html></html>", bytes(range(256))])
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx: no ONNX model, or not all of it"):
        load_source(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off(share: float, tmp_path: Path):
    path = images(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"model\.onnx: no ONNX model, or not all of it"):
        load_source(path)


def test_files_of_weights_that_are_missing_short_or_elsewhere(tmp_path: Path):
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = save(chain_of_convolutions(), tmp_path / "model.onnx", **options)
    load_source(path)
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"'b_out' end at byte \d+ of .*w\.bin, which has \d+: copy it again"):
        load_source(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ValueError, match=r"'w0' are in .*w\.bin, which is not there: keep the file beside the model"):
        load_source(path)
    model = onnx.load(path, load_external_data=False)
    for location in ("../w.bin", "/etc/passwd"):
        next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = location
        onnx.save(model, path)
        with pytest.raises(ValueError, match="the format allows only files in or below the model's folder"):
            load_source(path)


def test_a_file_of_weights_may_be_a_link(tmp_path: Path):
    """As in the caches of model hubs."""
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = save(chain_of_convolutions(), tmp_path / "model.onnx", **options)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "blobs" / "1234")
    (tmp_path / "w.bin").symlink_to(tmp_path / "blobs" / "1234")
    assert load_source(path).model.data_paths == (tmp_path / "w.bin",)


@pytest.mark.parametrize(
    ("dtype", "name"), [(TensorProto.BFLOAT16, "BFLOAT16"), (TensorProto.STRING, "STRING"), (TensorProto.INT4, "INT4")]
)
def test_inputs_of_types_that_stages_cannot_exchange(dtype: int, name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"input 'x' has elements of type {name}; stages exchange bool, "):
        load_source(relu(tmp_path, [2], dtype))


def test_outputs_that_are_no_tensors(tmp_path: Path):
    split = helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = save(graph_of([split], [value("x", ["n", 4])], [output]), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="output 'y' is no tensor but a sequence_type"):
        load_source(path)


def test_a_model_without_inputs(tmp_path: Path):
    node = helper.make_node("Relu", ["k"], ["y"])
    path = save(graph_of([node], [], [value("y", [3])], [constant("k", 3)]), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="takes no input"):
        load_source(path)


def test_weights_are_the_file_s_own(tmp_path: Path):
    with pytest.raises(ValueError, match=r"model\.onnx: an ONNX file carries its weights; load w\.pth before"):
        load_source(images(tmp_path), weights="w.pth")


def test_the_package_onnx_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, find = images(tmp_path), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ValueError, match=r"the package onnx is needed, .*pip install 'odin-pipeline\[onnxruntime\]'"):
        load_source(path)


def test_a_file_that_is_too_large_for_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = images(tmp_path)
    monkeypatch.setattr(onnx_file, "_LARGEST_NBYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match="more than a protocol buffer can have; save its weights beside it"):
        load_source(path)


# --- engines -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ENGINES, reason="neither ONNX Runtime nor OpenVINO is installed")
def test_engines_of_a_file(tmp_path: Path):
    source = load_source(images(tmp_path))
    assert engine_for(source, None) == engine_for(source, "auto") == "auto"
    assert engine_for(source, ENGINES[0]) == ENGINES[0]
    with pytest.raises(ValueError, match="engine 'torch' does not go with model, an ONNX file: choose 'onnxruntime', "):
        engine_for(source, "torch")
    chain = to_chain(source, engine="auto")
    assert isinstance(chain, OnnxChain)
    assert engine_for(chain, None) == "auto"
    assert to_source(chain, weights=None, example_input=None) is chain
    assert weight_nbytes(chain) == weight_nbytes(source)


def test_engines_of_other_models():
    source = load_source(torch.nn.Conv2d(3, 2, 1), image_size=8)
    assert (engine_for(source, None), engine_for(source, "auto")) == ("torch", "auto")


def test_a_file_is_no_pytorch_model(tmp_path: Path):
    source = load_source(images(tmp_path))
    with pytest.raises(ValueError, match="model is an ONNX file, which PyTorch does not run"):
        build_chain(source.torch_model, source.example_args)


def test_the_digest_is_the_bytes(tmp_path: Path):
    path = images(tmp_path)
    digest = model_digest(load_source(path).model)
    path.rename(tmp_path / "other.onnx")
    assert model_digest(load_source(tmp_path / "other.onnx").model) == digest
    images(tmp_path, count=3)
    assert model_digest(load_source(path).model) != digest
