"""ONNX files in layers: the same values as the whole file gives, wherever it is cut, whatever its graph has in it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # only where it is installed
from onnx_models import chain_of_convolutions, constant, graph_of, save, value  # noqa: E402

from odin.partitioner.engines import onnx_chain  # noqa: E402
from odin.partitioner.engines.build import build_form  # noqa: E402
from odin.partitioner.engines.export import ExportError  # noqa: E402
from odin.partitioner.engines.names import available_engines  # noqa: E402
from odin.partitioner.engines.onnx_chain import OnnxChain, build_onnx_chain  # noqa: E402
from odin.partitioner.engines.onnx_file import read_onnx  # noqa: E402
from odin.partitioner.engines.onnx_whole import difference, open_whole, rounding  # noqa: E402
from odin.partitioner.engines.session import open_layers, run_layers  # noqa: E402

ENGINES = [engine for engine in available_engines() if engine != "torch"]
pytestmark = pytest.mark.skipif(not ENGINES, reason="neither ONNX Runtime nor OpenVINO is installed")
both = pytest.mark.parametrize("engine", ENGINES)
only_onnxruntime = pytest.mark.skipif("onnxruntime" not in ENGINES, reason="ONNX Runtime is not installed")
node = helper.make_node
Array = np.ndarray[Any, Any]


def conv(index: int, taken: str, made: str) -> Any:
    return node("Conv", [taken, f"w{index}"], [made], pads=[1, 1, 1, 1])


def weights(count: int, dtype: Any = np.float32) -> list[Any]:
    return [constant(f"w{index}", 8, 8, 3, 3, seed=index, dtype=dtype) for index in range(count)]


def x(batch: int | str = "n", dtype: int = TensorProto.FLOAT) -> Any:
    return value("x", [batch, 8, 10, 10], dtype)


def y(batch: int | str = "n", dtype: int = TensorProto.FLOAT) -> Any:
    return value("y", [batch, 8, 10, 10], dtype)


def number(name: str, its: Any, dtype: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(its, dtype), name)


def two_in_two_out() -> Any:
    nodes = [
        conv(0, "x", "a"),
        node("Add", ["a", "z"], ["b"]),
        conv(1, "b", "c"),
        node("Relu", ["c"], ["y"]),
        conv(2, "y", "d"),
        node("ArgMax", ["d"], ["k"], axis=1),
    ]
    outputs = [y(), value("k", ["n", 1, 10, 10], TensorProto.INT64)]
    return graph_of(nodes, [x(), value("z", ["n", 8, 10, 10])], outputs, weights(3))


def branches_that_capture() -> Any:
    """Both read values from outside, one made before the cut at which the condition is known, and a weight."""
    then = helper.make_graph(
        [node("Mul", ["a", "s"], ["t1"]), node("Conv", ["t1", "w1"], ["t2"], pads=[1] * 4)],
        "then",
        [],
        [value("t2", None)],
        [number("s", 2, np.float32)],
    )
    other = helper.make_graph([node("Add", ["a", "x"], ["t2"], "layer9_9_9")], "else", [], [value("t2", None)])
    nodes = [
        conv(0, "x", "a"),
        node("ReduceSum", ["a"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["cond"]),
        conv(2, "a", "q"),
        node("If", ["cond"], ["f"], then_branch=then, else_branch=other),
        node("Add", ["f", "q"], ["g"]),
        conv(3, "g", "y"),
    ]
    return graph_of(nodes, [x(1)], [y(1)], [*weights(4), number("zero", 0, np.float32)])


def loop() -> Any:
    body = helper.make_graph(
        [
            node("Identity", ["cin"], ["cout"]),
            node("Conv", ["v", "w1"], ["v1"], pads=[1] * 4),
            node("Add", ["v1", "a"], ["v2"]),
        ],
        "body",
        [value("it", [], TensorProto.INT64), value("cin", [], TensorProto.BOOL), value("v", None)],
        [value("cout", [], TensorProto.BOOL), value("v2", None)],
    )
    nodes = [
        conv(0, "x", "a"),
        conv(2, "a", "p"),
        node("Loop", ["three", "", "p"], ["l"], body=body),
        conv(3, "l", "y"),
    ]
    return graph_of(nodes, [x()], [y()], [*weights(4), number("three", 3)])


def scan() -> Any:
    body = helper.make_graph(
        [node("Add", ["si", "xi"], ["so"]), node("Mul", ["so", "a"], ["yo"])],
        "scan",
        [value("si", [4]), value("xi", [4])],
        [value("so", [4]), value("yo", [4])],
    )
    nodes = [
        node("Add", ["x", "k"], ["x1"]),
        node("ReduceSum", ["x1", "axis"], ["a"], keepdims=0),
        node("Scan", ["z", "x1"], ["state", "y"], num_scan_inputs=1, body=body),
    ]
    constants = [constant("k", 4), number("axis", [0]), number("z", np.zeros(4), np.float32)]
    return graph_of(nodes, [value("x", [6, 4])], [value("y", [6, 4])], constants)


def functions() -> Any:
    block = helper.make_function(
        "my",
        "Block",
        ["x", "w"],
        ["y"],
        [node("Conv", ["x", "w"], ["t"], pads=[1] * 4), node("Relu", ["t"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [node("Block", [taken, f"w{i}"], [made], domain="my") for i, (taken, made) in enumerate(("xa", "ab", "by"))]
    return graph_of(nodes, [x()], [y()], weights(3), functions=[block], domains=["my"])


def outputs_that_no_node_makes() -> Any:
    outputs = [y(), x(), value("k", [2])]
    return graph_of([conv(0, "x", "a"), conv(1, "a", "y")], [x()], outputs, [*weights(2), constant("k", 2)])


def constants_computed_and_shared() -> Any:
    nodes = [
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["w0", "two"], ["w"]),
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        conv(1, "a", "b"),
        node("Mul", ["b", "two"], ["b2"]),
        node("Conv", ["b2", "w"], ["c"], pads=[1] * 4),
        conv(2, "c", "y"),
    ]
    return graph_of(nodes, [x()], [y()], weights(3))


def half_precision() -> Any:
    nodes = [conv(0, "x", "a"), conv(1, "a", "y")]
    return graph_of(nodes, [x(dtype=10)], [y(dtype=10)], weights(2, np.float16))


def types_that_numpy_lacks() -> Any:
    noise = np.random.default_rng(0)
    bfloat16 = helper.make_tensor("wb", TensorProto.BFLOAT16, [8, 8, 3, 3], (noise.standard_normal(576) / 8).tolist())
    four_bits = helper.make_tensor("w4", TensorProto.INT4, [40, 64], noise.integers(-7, 8, 2560))
    nodes = [
        node("Cast", ["wb"], ["w"], to=TensorProto.FLOAT),
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("GlobalAveragePool", ["a"], ["b"]),
        node("Flatten", ["b"], ["c"]),
        node("MatMul", ["c", "v"], ["d"]),
        node("DequantizeLinear", ["w4", "scale"], ["u"]),
        node("MatMul", ["d", "u"], ["y"]),
    ]
    constants = [bfloat16, four_bits, number("scale", 0.1, np.float32), constant("v", 8, 40)]
    return graph_of(nodes, [x()], [value("y", ["n", 64])], constants, opset=21, ir_version=10)


def shapes_that_are_computed() -> Any:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "first"], ["b"]),
        conv(0, "x", "a"),
        conv(1, "a", "c"),
        conv(2, "c", "d"),
        node("Concat", ["b", "rest"], ["ns"], axis=0),
        node("Reshape", ["d", "ns"], ["y"]),
    ]
    return graph_of(nodes, [x()], [value("y", ["n", 800])], [*weights(3), number("first", [0]), number("rest", [-1])])


def lists_inside() -> Any:
    nodes = [
        conv(0, "x", "a"),
        node("SplitToSequence", ["a"], ["q"], axis=1),
        conv(1, "a", "b"),
        node("ConcatFromSequence", ["q"], ["c"], axis=1),
        node("Add", ["b", "c"], ["y"]),
    ]
    return graph_of(nodes, [x()], [y()], weights(2))


def quantized() -> Any:
    """Pairs of QuantizeLinear and DequantizeLinear, as quantisers write them."""
    nodes, constants, last = [], [number("zero", 128, np.uint8), number("zero_w", 0, np.int8)], "x"
    for index in range(3):
        integers = np.random.default_rng(index).integers(-63, 64, (8, 8, 3, 3))
        constants += [
            number(f"q{index}", integers, np.int8),
            number(f"s{index}", 0.004, np.float32),
            number(f"t{index}", 0.05, np.float32),
        ]
        nodes += [
            node("QuantizeLinear", [last, f"t{index}", "zero"], [f"a{index}"]),
            node("DequantizeLinear", [f"a{index}", f"t{index}", "zero"], [f"b{index}"]),
            node("DequantizeLinear", [f"q{index}", f"s{index}", "zero_w"], [f"w{index}"]),
            conv(index, f"b{index}", f"c{index}"),
        ]
        last = f"c{index}"
    nodes.append(node("Relu", [last], ["y"]))
    return graph_of(nodes, [x()], [y()], constants)


def old_ir() -> Any:
    """Before version 4 every constant was an input, too."""
    model = chain_of_convolutions(ir_version=3, opset=9)
    model.graph.input.extend(value(tensor.name, list(tensor.dims)) for tensor in model.graph.initializer)
    return model


GRAPHS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        chain_of_convolutions, two_in_two_out, branches_that_capture, loop, scan, functions, outputs_that_no_node_makes,
        constants_computed_and_shared, half_precision, types_that_numpy_lacks, shapes_that_are_computed, lists_inside,
        quantized, old_ir,
    )
}  # fmt: skip
NOT_OPENVINO = {"loop", "scan"}
"""It says so of the whole file as well."""


def noise(chain_or_shapes: Sequence[tuple[tuple[int, ...], str]], seed: int) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for shape, dtype in chain_or_shapes]


def chain_of(model: Any, folder: Path, *, batch: int = 1, **options: Any) -> OnnxChain:
    file = read_onnx(save(model, folder / "model.onnx"))
    sizes = [
        tuple(
            size if isinstance(size, int) else batch if not axis else 12 for axis, size in enumerate(entry.sizes or ())
        )
        for entry in file.inputs
    ]
    example = noise([(shape, entry.dtype) for shape, entry in zip(sizes, file.inputs, strict=True)], seed=0)
    return build_onnx_chain(file, example, name="model", **options)


def run(chain: OnnxChain, engine: str, inputs: Sequence[Array]) -> tuple[Array, ...]:
    form = build_form(chain, engine=engine)
    return run_layers(open_layers(form.model, form.weights), inputs)


def other_inputs(chain: OnnxChain) -> list[Array]:
    """Of another leading size, where that is free."""
    shapes = [(3, *spec.shape[1:]) if chain.dynamic_batch else spec.shape for spec in chain.inputs]
    return noise([(shape, spec.dtype) for shape, spec in zip(shapes, chain.inputs, strict=True)], seed=1)


@both
@pytest.mark.parametrize("name", GRAPHS)
def test_layers_give_what_the_whole_file_gives(name: str, engine: str, tmp_path: Path):
    if engine == "openvino" and name in NOT_OPENVINO:
        pytest.skip("OpenVINO does not take the file")
    chain = chain_of(GRAPHS[name](), tmp_path, minimum_share=0)
    assert len(chain.layers) >= 2
    inputs = other_inputs(chain)
    expected = open_whole(chain.file, engine)(inputs)
    rough = max(1e-4, rounding(spec.dtype for spec in chain.inputs))
    found = run(chain, engine, inputs)
    assert difference(found, expected, tolerance=0 if engine == "onnxruntime" else rough) == ""
    described = chain.layers[-1].output
    assert [spec.dtype for spec in described] == [array.dtype.name for array in expected]


@only_onnxruntime
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {"chain_of_convolutions"}))
def test_any_legal_cuts_give_the_same_bits(name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen: list[int] = []

    def any_cuts(costs: Any, heavy: Any, crossings: Sequence[Any], **_: Any) -> tuple[int, ...]:
        legal = [index for index, crossing in enumerate(crossings[:-1]) if crossing.legal]
        generator = random.Random(seed)
        chosen[:] = sorted(generator.sample(legal, generator.randint(1, len(legal))))
        return tuple(chosen)

    monkeypatch.setattr(onnx_chain, "choose_cuts", any_cuts)
    chain = chain_of(GRAPHS[name](), tmp_path)
    assert len(chain.layers) == len(chosen) + 1
    inputs = other_inputs(chain)
    expected = open_whole(chain.file, "onnxruntime")(inputs)
    assert difference(run(chain, "onnxruntime", inputs), expected, tolerance=0) == ""


def test_layers_are_named_sized_and_estimated(tmp_path: Path):
    chain = chain_of(chain_of_convolutions(count=2), tmp_path, minimum_share=0)
    assert [layer.name for layer in chain.layers] == ["body.0", "body.1", "head.linear"]
    pixels = 12 * 12
    assert [layer.flops for layer in chain.layers] == [2 * 8 * pixels * 27, 2 * 8 * pixels * 72, 2 * 8 * 10]
    assert [layer.parameter_nbytes for layer in chain.layers] == [4 * (8 * 27 + 8), 4 * (8 * 72 + 8), 4 * (80 + 10)]
    # where the fewest bytes cross: not before the mean of each channel
    assert [layer.output[0].shape for layer in chain.layers] == [(1, 8, 12, 12), (1, 8), (1, 10)]
    assert (chain.inputs[0].shape, chain.inputs[0].dtype, chain.dynamic_batch) == ((1, 3, 12, 12), "float32", True)


def test_small_layers_join_where_a_call_costs_more_than_they_do(tmp_path: Path):
    model = chain_of_convolutions(count=4)
    assert len(chain_of(model, tmp_path, minimum_share=0).layers) == 5
    assert len(chain_of(model, tmp_path, minimum_s=1.0).layers) == 1


def test_the_fingerprint_is_the_structure_s(tmp_path: Path):
    def fingerprint(model: Any, **options: Any) -> str:
        return chain_of(model, tmp_path, **options).fingerprint

    first = fingerprint(chain_of_convolutions())
    assert first == fingerprint(chain_of_convolutions())
    trained_on = chain_of_convolutions()
    weight = next(tensor for tensor in trained_on.graph.initializer if tensor.name == "w1")
    weight.CopyFrom(constant("w1", 8, 8, 3, 3, seed=77))
    assert first == fingerprint(trained_on)
    assert first != fingerprint(chain_of_convolutions(count=4))
    assert first != fingerprint(chain_of_convolutions(size=14))
    assert first != fingerprint(chain_of_convolutions(), minimum_s=1.0)


def test_one_output_is_a_tensor_and_several_are_a_tuple(tmp_path: Path):
    import torch

    one, two = chain_of(chain_of_convolutions(), tmp_path), chain_of(two_in_two_out(), tmp_path)
    first, second = torch.zeros(1), torch.ones(1)
    assert one.unpack((first,)) is first
    assert two.unpack((first, second)) == (first, second)
    with pytest.raises(ValueError, match="expected shape"):
        one.pack((torch.zeros(1, 3, 9, 9),))
    with pytest.raises(ValueError, match="expected dtype float32, got float64"):
        one.pack((torch.zeros(1, 3, 12, 12, dtype=torch.float64),))
    with pytest.raises(ValueError, match="arguments have the structure"):
        two.pack((torch.zeros(1, 8, 10, 10),))


def test_a_leading_size_that_is_fixed_or_mixes_samples_stays_as_it_is(tmp_path: Path):
    assert not chain_of(chain_of_convolutions(batch=4), tmp_path).dynamic_batch
    mixes = graph_of(
        [
            conv(0, "x", "a"),
            node("ReduceMean", ["a", "axis"], ["m"], keepdims=1),
            node("Sub", ["a", "m"], ["c"]),
            conv(1, "c", "y"),
        ],
        [x()],
        [y()],
        [*weights(2), number("axis", [0])],
    )
    chain = chain_of(mixes, tmp_path, batch=2)
    assert (chain.dynamic_batch, chain.inputs[0].shape) == (False, (2, 8, 10, 10))
    fixed_inside = graph_of(
        [conv(0, "x", "a"), node("Reshape", ["a", "one"], ["y"])], [x()], [value("y", [1, 800])],
        [*weights(1), number("one", [1, 800])],
    )  # fmt: skip
    assert not chain_of(fixed_inside, tmp_path).dynamic_batch


def test_random_numbers_are_refused(tmp_path: Path):
    nodes = [conv(0, "x", "a"), node("RandomNormalLike", ["a"], ["r"]), node("Add", ["a", "r"], ["y"])]
    with pytest.raises(ExportError, match=r"results differ from call to call .* it draws random numbers"):
        chain_of(graph_of(nodes, [x()], [y()], weights(1)), tmp_path)


def test_outputs_whose_size_depends_on_the_data_are_refused(tmp_path: Path):
    """The example has one positive number in its first half only, which is looked at."""
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Greater", ["a", "zero"], ["c"]),
        node("NonZero", ["c"], ["y"]),
    ]
    constants = [number("sizes", [2, 2]), number("zero", 0, np.float32)]
    model = graph_of(nodes, [value("x", [1, 4])], [value("y", [2, "found"], TensorProto.INT64)], constants)
    file = read_onnx(save(model, tmp_path / "model.onnx"))
    with pytest.raises(ExportError, match=r"the size of output 'y' depends on the data .*\(2, 1\) and \(2, 0\)"):
        build_onnx_chain(file, [np.array([[1, -1, -1, -1]], np.float32)], name="model")


def test_operators_that_the_runtime_lacks_are_named(tmp_path: Path):
    nodes = [conv(0, "x", "a"), node("Magic", ["a"], ["y"], domain="acme")]
    model = graph_of(nodes, [x()], [y()], weights(1), domains=["acme"])
    for engine in ENGINES:
        with pytest.raises(ExportError, match=f"model .*model.onnx: {engine} does not take it: .*acme.Magic"):
            chain_of(model, tmp_path, engine=engine)


def test_a_graph_that_is_not_in_order_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="node 'Conv' reads a value that no node before it makes"):
        chain_of(graph_of([conv(1, "a", "y"), conv(0, "x", "a")], [x()], [y()], weights(2)), tmp_path)


@only_onnxruntime
def test_sizes_behind_operators_that_only_the_runtime_knows(tmp_path: Path):
    """As in quantised files of an older kind, and in those that ONNX Runtime has optimised."""
    nodes = [
        node("FusedConv", ["x", "w0"], ["a"], domain="com.microsoft", pads=[1] * 4, activation="Relu"),
        conv(1, "a", "b"),
        node("FusedConv", ["b", "w2"], ["c"], domain="com.microsoft", pads=[1] * 4, activation="Relu"),
        conv(3, "c", "y"),
    ]
    model = graph_of(nodes, [x()], [y()], weights(4), domains=["com.microsoft"])
    chain = chain_of(model, tmp_path, minimum_share=0)
    assert [layer.output[0].shape for layer in chain.layers] == [(1, 8, 10, 10)] * 4
    assert [layer.flops for layer in chain.layers] == [2 * 8 * 100 * 72] * 4
    inputs = other_inputs(chain)
    expected = open_whole(chain.file, "onnxruntime")(inputs)
    assert difference(run(chain, "onnxruntime", inputs), expected, tolerance=0) == ""


def test_no_cut_where_a_size_depends_on_the_data(tmp_path: Path):
    nodes = [
        conv(0, "x", "a"),
        node("NonZero", ["a"], ["found"]),
        conv(1, "a", "b"),
        node("Shape", ["found"], ["s"]),
        node("Cast", ["s"], ["number"], to=TensorProto.FLOAT),
        node("ReduceSum", ["number"], ["sum"], keepdims=0),
        node("Mul", ["b", "sum"], ["c"]),
        conv(2, "c", "y"),
    ]
    chain = chain_of(graph_of(nodes, [x(1)], [y(1)], weights(3)), tmp_path, minimum_share=0)
    assert [spec.dtype for layer in chain.layers for spec in layer.output] == ["float32"] * len(chain.layers)


@both
def test_weights_in_files_beside_the_model(engine: str, tmp_path: Path):
    (tmp_path / "alone").mkdir()
    alone = chain_of(chain_of_convolutions(), tmp_path / "alone", minimum_share=0)
    model = chain_of_convolutions()
    path = save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    file = read_onnx(path)
    assert file.data_paths == (tmp_path / "w.bin",)
    assert file.weight_nbytes == alone.file.weight_nbytes
    chain = build_onnx_chain(file, alone.example, name="model", minimum_share=0)
    inputs = other_inputs(chain)
    assert difference(run(chain, engine, inputs), run(alone, engine, inputs), tolerance=0) == ""
    before = file.digest()
    (tmp_path / "w.bin").write_bytes(bytes((tmp_path / "w.bin").stat().st_size))
    assert file.digest() != before


def test_released_weights_are_gone(tmp_path: Path):
    chain = chain_of(chain_of_convolutions(), tmp_path)
    chain.release_weights()
    assert chain.released
    with pytest.raises(RuntimeError, match="were released"):
        chain.write(tmp_path / "again.onnx")


@only_onnxruntime
def test_a_form_that_is_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The check compares with the file itself, not with what was made of it."""
    chain = chain_of(chain_of_convolutions(), tmp_path, minimum_share=0)
    assert chain._graph is not None
    spoiled = {name: array * 1.01 for name, array in chain._graph.weights.items()}
    chain._graph = dataclasses.replace(chain._graph, weights=spoiled)
    with pytest.raises(ExportError, match=r"onnxruntime is off by .* choose another engine"):
        build_form(chain, engine="onnxruntime")


def test_no_engine_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_chain, "available_engines", lambda: ("torch",))
    with pytest.raises(ValueError, match="an ONNX file needs ONNX Runtime or OpenVINO"):
        onnx_chain.onnx_engines()
