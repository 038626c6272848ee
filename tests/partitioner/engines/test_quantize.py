"""A quantised model: the same bits however it is cut, uint8 across the cuts, and as accurate as before."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_models import Residual, seeded
from PIL import Image

import odin
from odin.models.calibration import calibration_batches, load_examples, spread
from odin.partitioner.engines import build, processor
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.export import ExportError, export, layer_of
from odin.partitioner.engines.form import EngineForm
from odin.partitioner.engines.quantize import quantize
from odin.partitioner.engines.session import open_layers
from odin.stages.compute.sessions import SessionExecutor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits.py"


def chain_of(model: torch.nn.Module) -> odin.Chain:
    return odin.build_chain(model, (torch.zeros(1, 3, 32, 32),), name="small")


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def through(form: EngineForm, inputs: Any) -> list[tuple[np.ndarray, ...]]:
    """Values at every cut."""
    values = [tuple(inputs)]
    for run in open_layers(form.model, form.weights):
        values.append(tuple(run(values[-1])))
    return values


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return chain_of(seeded(Residual))


@pytest.fixture(scope="module")
def examples(chain: odin.Chain) -> list[tuple[np.ndarray, ...]]:
    return calibration_batches(chain, noise(32))


@pytest.fixture(scope="module")
def quantized(chain: odin.Chain, examples: list[tuple[np.ndarray, ...]]) -> EngineForm:
    return build_form(chain, engine="onnxruntime", precision="int8", examples=examples)


def session_of(model: bytes | str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def whole_of(form: EngineForm) -> bytes:
    """The layers' nodes in one graph again, whose outputs are what crosses the cuts."""
    model = onnx.ModelProto.FromString(form.model.header)
    graph = model.graph
    graph.name = "whole"
    for layer in form.model.layers:
        graph.node.extend(onnx.NodeProto.FromString(node) for node in layer.nodes)
        known = {tensor.name for tensor in graph.initializer}
        for name, constant in layer.constants.items():
            if name not in known:
                graph.initializer.append(onnx.TensorProto.FromString(constant))
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in form.weights.items())
    graph.input.extend(onnx.ValueInfoProto.FromString(value.info) for value in form.model.cuts[0])
    crossing = {value.name: value.info for cut in form.model.cuts[1:] for value in cut}
    graph.output.extend(onnx.ValueInfoProto.FromString(info) for info in crossing.values())
    return bytes(model.SerializeToString())


def test_pieces_give_the_bits_of_the_whole_at_every_cut(quantized: EngineForm):
    session = session_of(whole_of(quantized))
    names = [output.name for output in session.get_outputs()]
    image = noise(3).numpy()[2:]
    found = dict(zip(names, session.run(names, {"input0": image}), strict=True))
    for cut, values in zip(quantized.model.cuts[1:], through(quantized, (image,))[1:], strict=True):
        assert len(cut) == len(values)
        for value, array in zip(cut, values, strict=True):
            np.testing.assert_array_equal(array, found[value.name])
            assert array.dtype.name == value.dtype


def test_pieces_give_the_bits_of_the_quantised_file(
    chain: odin.Chain, examples: Any, quantized: EngineForm, tmp_path: Path
):
    path = tmp_path / "model.onnx"
    export(chain, path)
    _, target = quantize(path, examples, narrow_weights=not processor.has_feature("int8"))
    (expected,) = session_of(str(target)).run(None, {"input0": noise(5).numpy()})
    np.testing.assert_array_equal(through(quantized, (noise(5).numpy(),))[-1][0], expected)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_crosses_cuts_is_quantised(chain: odin.Chain, examples: Any, quantized: EngineForm, engine: str):
    form = quantized
    if engine == "openvino":
        pytest.importorskip("openvino")
        form = build_form(chain, engine=engine, precision="int8", examples=examples)
    first, *inner, last = form.model.cuts
    assert [value.dtype for value in (*first, *last)] == ["float32", "float32"]
    assert inner
    assert {value.dtype for cut in inner for value in cut} == {"uint8"}
    assert form.model.precision == "int8"
    assert all(layer.nodes for layer in form.model.layers)
    weights = sum(array.nbytes for array in form.weights.values())
    assert weights < sum(tensor.nbytes for tensor in chain.state.values()) / 3  # scales are beside them
    assert form.agreement is not None
    assert form.agreement.rms_error < 0.05


def test_every_node_belongs_to_the_layer_that_computes_with_it(chain: odin.Chain, examples: Any, tmp_path: Path):
    path = tmp_path / "model.onnx"
    export(chain, path)
    model, _ = quantize(path, examples, narrow_weights=False)
    readers: dict[str, set[int | None]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(layer_of(node.name))
    for node in model.graph.node:
        assert node.op_type != "Identity"
        if node.op_type == "DequantizeLinear" and node.output[0] in readers:
            assert readers[node.output[0]] == {layer_of(node.name)}
    made: set[str] = set()
    for node in model.graph.node:  # in an order in which they can be run
        known = {entry.name for entry in (*model.graph.initializer, *model.graph.input)} | made | {""}
        assert set(node.input) <= known
        made.update(node.output)


def test_without_exact_products_weights_have_seven_bits(
    chain: odin.Chain, examples: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(build, "has_feature", lambda _: False)
    with caplog.at_level(logging.INFO, "odin.startup"):
        narrow = build_form(chain, engine="onnxruntime", precision="int8", examples=examples)
    assert "7 bits" in caplog.text
    assert "int8" not in narrow.model.processor.split()  # it computes the same everywhere
    weights = [array for array in narrow.weights.values() if array.dtype == np.int8]
    assert weights
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) <= 64
    assert narrow.agreement is not None
    assert narrow.agreement.rms_error < 0.1


def test_a_model_with_full_weights_needs_exact_products(
    quantized: EngineForm, chain: odin.Chain, examples: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "has_feature", lambda _: True)
    full = build_form(chain, engine="onnxruntime", precision="int8", examples=examples)
    assert full.model.processor.split()[-1] == "int8"
    layout = processor.processor_features()
    monkeypatch.setattr(processor, "_cpu_flags", lambda: frozenset([layout]) - {"asimd"})
    with pytest.raises(ValueError, match="int8 instructions"):
        SessionExecutor(dataclasses.replace(full.model, processor="int8"), full.weights)


def test_absurd_outputs_are_refused(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    without_bias = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(7200, 4, bias=False)
    )
    scaled = chain_of(without_bias.eval())
    images = calibration_batches(scaled, noise(16))
    small = [tuple(array * 1e-3 for array in inputs) for inputs in images]

    def blind(path: Path, batches: Any, *, narrow_weights: bool) -> Any:
        return quantize(path, small, narrow_weights=narrow_weights)  # ranges that real images exceed

    assert build_form(scaled, engine="onnxruntime", precision="int8", examples=images).agreement is not None
    monkeypatch.setattr(build, "quantize", blind)
    with pytest.raises(ExportError, match=r"in int8 on onnxruntime gives outputs that are off by .*calibration images"):
        build_form(scaled, engine="onnxruntime", precision="int8", examples=images)


def test_an_engine_that_computes_the_quantised_model_otherwise_is_refused(
    chain: odin.Chain, examples: Any, monkeypatch: pytest.MonkeyPatch
):
    outputs = build._outputs
    monkeypatch.setattr(build, "_outputs", lambda path, inputs: [outputs(path, inputs)[0] * 0.8])
    with pytest.raises(ExportError, match=r"otherwise than ONNX Runtime, off by 25%.*choose engine 'onnxruntime'"):
        build_form(chain, engine="onnxruntime", precision="int8", examples=examples)


def test_pooling_is_exported_without_a_gather(chain: odin.Chain, tmp_path: Path):
    """Restoring strides with computed indices made OpenVINO sum its quantised input wrongly, by a fifth."""
    model = export(chain, tmp_path / "model.onnx")
    assert not {"Gather", "Range", "Shape"} & {node.op_type for node in model.graph.node}


def test_bfloat16_has_float32_values_at_cuts(chain: odin.Chain, examples: Any):
    pytest.importorskip("openvino")
    form = build_form(chain, engine="openvino", precision="bfloat16", examples=examples)
    assert {value.dtype for cut in form.model.cuts for value in cut} == {"float32"}
    assert form.model.processor == form.model.precision == "bfloat16"
    assert form.agreement is not None
    assert form.agreement.images == 32
    assert form.agreement.rms_error < 0.05
    if processor.has_feature("bfloat16"):
        assert form.agreement.rms_error > 1e-5  # else it was computed in float32


class TestExamples:
    """What may be given as calibration."""

    def test_a_tensor_is_cut_into_batches(self, chain: odin.Chain):
        batches = calibration_batches(chain, noise(20))
        assert [inputs[0].shape[0] for inputs in batches] == [16, 4]
        np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs in batches]), noise(20).numpy())

    def test_an_iterable_of_single_inputs(self, chain: odin.Chain):
        for given in (iter(noise(20).split(1)), ((image.numpy(),) for image in noise(20).split(1))):
            batches = calibration_batches(chain, given)
            np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs in batches]), noise(20).numpy())

    def test_none(self, chain: odin.Chain):
        assert calibration_batches(chain, None) == []

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ([], "holds no example"),
            ("folder", "calibration='folder' is no example input"),
            (3, "calibration=3 is no example input"),
            (
                torch.zeros(4, 3, 16, 16),
                r"example 0 is float32\[4, 3, 16, 16\], and small takes float32\[1, 3, 32, 32\]",
            ),
            ([noise(1), noise(1).double()], r"example 1 is float64\[1, 3, 32, 32\]"),
            ([(noise(1), noise(1))], r"example 0 is float32\[1, 3, 32, 32\], float32\["),
        ],
    )
    def test_what_does_not_fit_is_named(self, chain: odin.Chain, given: Any, problem: str):
        with pytest.raises(ValueError, match=problem):
            calibration_batches(chain, given)

    def test_images_of_a_folder(self, chain: odin.Chain, tmp_path: Path):
        for number in range(5):
            Image.new("RGB", (40, 40), (50 * number, 10, 10)).save(tmp_path / f"{number}.png")
        source = odin.load_source(seeded(Residual), example_input=torch.zeros(1, 3, 32, 32))
        loaded = load_examples(tmp_path, source, count=3)
        assert loaded.shape == (3, 3, 32, 32)
        assert loaded[:, 0].mean((1, 2)).diff().min() > 0  # sorted by path
        assert [inputs[0].shape for inputs in calibration_batches(chain, loaded)] == [(3, 3, 32, 32)]
        with pytest.raises(ValueError, match="how to turn image files into its input is not known"):
            load_examples(tmp_path, dataclasses.replace(source, preprocess=None))

    def test_images_are_taken_evenly(self):
        paths = [Path(str(number)) for number in range(10)]
        assert [path.name for path in spread(paths, 4)] == ["0", "2", "5", "7"]
        assert spread(paths, 20) == paths


def test_digits_are_read_as_well(digits: Any):
    module, images, form = digits
    (scores,) = through(form, (images.test_images.numpy(),))[-1]
    right = float((scores.argmax(1) == images.test_labels.numpy()).mean())
    with torch.inference_mode():
        float_right = float((module(images.test_images).argmax(1) == images.test_labels).float().mean())
    assert float_right > 0.95
    assert right >= float_right - 0.01


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def digits(request: pytest.FixtureRequest) -> Any:
    """A trained model, its images, and its int8 form, quantised by training images."""
    pytest.importorskip(request.param)
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    assert spec is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    images = example.load_images()
    module = example.train(images, width=8, epochs=4, seed=0)
    digits_chain = odin.build_chain(module, (images.test_images[:1],), name="digits")
    batches = calibration_batches(digits_chain, images.train_images[:128])
    return module, images, build_form(digits_chain, engine=request.param, precision="int8", examples=batches)
