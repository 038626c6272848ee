"""A chain in another runtime: the same values however it is cut, weights in place, errors that say what to do."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from example_models import FAMILIES, Residual, seeded
from torch import Tensor, nn

from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.engines import names
from odin.partitioner.engines.build import TOLERANCE, build_form
from odin.partitioner.engines.export import ExportError, layer_of
from odin.partitioner.engines.form import EngineForm
from odin.partitioner.engines.processor import check_processor, processor_features
from odin.partitioner.engines.session import open_layers, run_layers
from odin.partitioner.engines.split import split, take_weights

ENGINES = [engine for engine in names.available_engines() if engine != "torch"]
both = pytest.mark.parametrize("engine", ENGINES)


def chain_of(family: str) -> Chain:
    build, example = FAMILIES[family]
    return build_chain(seeded(build), example(), name=family, keep=False)


def residual(batch: int = 1) -> Chain:
    return build_chain(seeded(Residual), (torch.zeros(batch, 3, 32, 32),), name="residual", keep=False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(form: EngineForm, *inputs: Tensor) -> tuple[np.ndarray[Any, Any], ...]:
    return run_layers(open_layers(form.model, form.weights), [tensor.contiguous().numpy() for tensor in inputs])


@both
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_of_models_computes_the_same(family: str, engine: str):
    chain = chain_of(family)
    form = build_form(chain, engine=engine)
    assert [layer.name for layer in form.model.layers] == [layer.name for layer in chain.layers]
    inputs = [noise(*spec.shape, seed=7).to(getattr(torch, spec.dtype)) for spec in chain.inputs]
    expected = chain.run(chain.layout(inputs))
    for found, wanted in zip(run(form, *inputs), expected, strict=True):
        reference = wanted.contiguous().numpy()
        assert np.abs(found - reference).max() <= TOLERANCE * max(1.0, float(np.abs(reference).max()))


@both
def test_any_leading_size_works_and_samples_do_not_depend_on_each_other(engine: str):
    form = build_form(residual(), engine=engine)
    together = noise(5, 3, 32, 32)
    (whole,) = run(form, together)
    for index in range(5):
        (alone,) = run(form, together[index : index + 1])
        assert np.allclose(alone, whole[index : index + 1], rtol=0, atol=1e-5)


@pytest.mark.skipif("onnxruntime" not in ENGINES, reason="onnxruntime is not installed")
def test_pieces_of_onnxruntime_give_the_bits_of_the_whole(tmp_path: Any):
    """Whatever is joined to one session: the optimised model was cut, and each node computes as in the whole."""
    chain = residual()
    form = build_form(chain, engine="onnxruntime")
    model = form.model
    image = noise(1, 3, 32, 32)
    (expected,) = run(form, image)
    one = dataclasses.replace(
        model.layers[0],
        nodes=tuple(node for layer in model.layers for node in layer.nodes),
        constants={name: data for layer in model.layers for name, data in layer.constants.items()},
        weights=tuple(dict.fromkeys(name for layer in model.layers for name in layer.weights)),
        reads=model.layers[0].reads,
        makes=frozenset(name for layer in model.layers for name in layer.makes),
    )
    whole = EngineForm(dataclasses.replace(model, layers=(one,), cuts=(model.cuts[0], model.cuts[-1])), form.weights)
    assert np.array_equal(run(whole, image)[0], expected)


@both
def test_the_model_travels_without_its_weights(engine: str):
    form = build_form(residual(), engine=engine)
    data = pickle.dumps(form.model)
    nbytes = sum(weight.nbytes for weight in form.weights.values())
    assert nbytes > 50_000
    assert len(data) < nbytes / 2
    assert np.array_equal(
        run(EngineForm(pickle.loads(data), form.weights), noise(1, 3, 32, 32))[0], run(form, noise(1, 3, 32, 32))[0]
    )


@both
def test_weights_may_be_read_only(engine: str):
    form = build_form(residual(), engine=engine)
    frozen = {name: weight.copy() for name, weight in form.weights.items()}
    for weight in frozen.values():
        weight.flags.writeable = False
    image = noise(1, 3, 32, 32)
    assert np.array_equal(run(EngineForm(form.model, frozen), image)[0], run(form, image)[0])


@pytest.mark.skipif("onnxruntime" not in ENGINES, reason="onnxruntime is not installed")
def test_onnxruntime_computes_with_weights_where_they_are():
    """Written after the layers were opened, they change the result: there is no copy."""
    form = build_form(residual(), engine="onnxruntime")
    weights = {name: weight.copy() for name, weight in form.weights.items()}
    layers = open_layers(form.model, weights)
    for weight in weights.values():
        weight[...] = 0
    values = run_layers(layers, [noise(1, 3, 32, 32).numpy()])
    assert not np.allclose(values[0], run(form, noise(1, 3, 32, 32))[0])


def test_a_layer_that_computes_otherwise_is_found(monkeypatch: pytest.MonkeyPatch):
    chain = residual()
    taken = take_weights

    def wrong(model: Any, folder: Any) -> dict[str, np.ndarray[Any, Any]]:
        weights = taken(model, folder)
        name = max(weights, key=lambda name: weights[name].size)
        return {**weights, name: weights[name] * 1.01}

    monkeypatch.setattr("odin.partitioner.engines.build.take_weights", wrong)
    with pytest.raises(ExportError, match=rf"residual: {ENGINES[0]} is off by .*: choose engine 'torch'"):
        build_form(chain, engine=ENGINES[0])


def test_layers_that_onnx_has_no_words_for_are_refused():
    class Lookup(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + 1

    chain = build_chain(Lookup().eval(), (torch.ones(1, 3, 8, 8),), name="bessel", keep=False)
    with pytest.raises(ExportError, match=r"bessel cannot be exported to ONNX \(.*\): choose engine 'torch'"):
        build_form(chain, engine=ENGINES[0])


def test_a_node_that_a_runtime_made_of_two_layers_belongs_to_the_later_one():
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Relu", ["input0"], ["layer0_0_0"], name="layer0_0_0"),
        helper.make_node("Neg", ["layer0_0_0"], ["unmarked"], name="reorder"),
        helper.make_node("Add", ["unmarked", "input0"], ["layer1_1_0_x"], name="fused layer1_1_0"),
        helper.make_node("Abs", ["layer1_1_0_x"], ["out"], name="layer1_2_0"),
        helper.make_node("Neg", ["out"], ["end"], name="layer0_3_0"),  # reads what a later layer makes
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("input0", "end")]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]))
    cut = split(model, {}, engine="onnxruntime", layer_names=["a", "b"])
    assert [len(layer.nodes) for layer in cut.layers] == [2, 3]
    assert [[value.name for value in values] for values in cut.cuts] == [["input0"], ["input0", "unmarked"], ["end"]]


def test_marks_survive_what_runtimes_put_around_them():
    assert layer_of("layer3_17_0_nchwc") == 3
    assert layer_of("fused layer12_1_0") == 12
    assert layer_of("player1") is None


def test_another_kind_of_processor_is_refused():
    check_processor("")
    check_processor(processor_features())
    with pytest.raises(ValueError, match=r"optimised for a processor with vector9, and this one has .*engine 'torch'"):
        check_processor("vector9")


def test_engines_that_are_not_installed_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda package: None)
    assert names.available_engines() == ("torch",)
    with pytest.raises(
        ValueError, match=r"needs openvino, onnx, onnxscript, .*pip install 'odin-pipeline\[openvino\]'"
    ):
        names.check_installed("openvino")
    names.check_installed("torch")
    with pytest.raises(ValueError, match="unknown engine 'tensorrt': choose torch, onnxruntime, openvino or auto"):
        names.check_engine("tensorrt")


def test_running_a_cut_model_imports_neither_torch_nor_onnx():
    loaded = (
        "import sys, odin.stages.compute.sessions; print([m for m in ('torch', 'onnx', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_layers_too_short_to_be_worth_a_call_are_joined():
    chain = residual()
    assert len(build_chain(seeded(Residual), (torch.zeros(1, 3, 32, 32),), minimum_s=1.0, keep=False).layers) == 1
    assert len(chain.layers) > 1
