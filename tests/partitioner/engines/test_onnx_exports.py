"""PyTorch's own exports of the built-in models, by both of its exporters."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")

from odin.models.sources import load_source
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.names import available_engines
from odin.partitioner.engines.onnx_chain import OnnxChain, build_onnx_chain
from odin.partitioner.engines.onnx_file import read_onnx
from odin.partitioner.engines.onnx_whole import difference, open_whole
from odin.partitioner.engines.session import open_layers, run_layers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("onnxruntime" not in available_engines(), reason="ONNX Runtime is not installed"),
]


def exported(name: str, folder: Path, *, dynamo: bool) -> OnnxChain:
    source = load_source(name, image_size=64)
    (example,), path = source.example_args, folder / f"{name}.onnx"
    sizes = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"image": {0: "batch"}}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            source.torch_model, (example,), path, dynamo=dynamo, verbose=False, input_names=["image"], **sizes
        )
    return build_onnx_chain(read_onnx(path), [example.numpy()], name=name)


@pytest.mark.parametrize(
    ("name", "dynamo", "layers"),
    [
        ("resnet18", True, ["bn1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]),
        ("resnet18", False, ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]),
        ("mobilenet_v2", False, ["features.0.0", "features.1.conv.0.0", "features.1.conv.1"]),
    ],
)
def test_exports_are_cut_at_their_modules_and_give_the_same_bits(
    name: str, dynamo: bool, layers: list[str], tmp_path: Path
):
    chain = exported(name, tmp_path, dynamo=dynamo)
    assert [layer.name for layer in chain.layers][: len(layers)] == layers
    assert chain.dynamic_batch
    inputs = [np.random.default_rng(2).standard_normal((2, 3, 64, 64), dtype=np.float32)]
    form = build_form(chain, engine="onnxruntime")
    values = run_layers(open_layers(form.model, form.weights), inputs)
    assert difference(values, open_whole(chain.file, "onnxruntime")(inputs), tolerance=0) == ""
