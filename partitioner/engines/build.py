"""Bring a chain into the form that another engine runs, and check it against the chain."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from odin.partitioner.chain import Chain
from odin.partitioner.engines.agreement import Agreement, Comparison
from odin.partitioner.engines.cut_model import CutModel, Value
from odin.partitioner.engines.export import ExportError, export
from odin.partitioner.engines.form import EngineForm
from odin.partitioner.engines.names import check_installed, missing_packages
from odin.partitioner.engines.onnx_chain import OnnxChain
from odin.partitioner.engines.onnx_whole import open_whole, rounding
from odin.partitioner.engines.packing import packs
from odin.partitioner.engines.processor import BFLOAT16, FLOAT32, INT8, has_feature, processor_features
from odin.partitioner.engines.quantize import quantize
from odin.partitioner.engines.session import Array, Run, open_layers, run_layers
from odin.partitioner.engines.split import split, take_weights

__all__ = ["ABSURD", "TOLERANCE", "build_form"]

TOLERANCE = 1e-4
"""Largest difference from the chain's outputs, of their largest magnitude: runtimes sum in other orders."""

ABSURD = 0.5
"""Root mean square of the difference, of that of the chain's outputs, from which other precisions are refused: what
products that overflow would give."""

SAME_QUANTIZED = 0.1
"""The same of two runtimes that run the same quantised model."""

_logger = logging.getLogger("odin.startup")


def build_form(
    chain: Chain, *, engine: str, precision: str = "float32", examples: Sequence[Sequence[Array]] = ()
) -> EngineForm:
    """Export a chain, optimise it as the engine does, cut it, and compare it with the chain on one input.

    Parameters
    ----------
    chain
        Its weights are still here.
    engine
        ``"onnxruntime"`` or ``"openvino"``.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"int8"``; whether this engine and this processor have it was asked before.
    examples
        Inputs like those to come, several samples at a time: with ``"int8"`` they show the range of every value, and
        with any other precision than float32 they are what the outputs are compared on.

    Raises
    ------
    ValueError
        If a package is missing; the message says which.
    ExportError
        If the chain cannot be exported, or computes something else there.
    """
    import onnx

    check_installed(engine)
    if precision == INT8 and missing_packages("onnxruntime"):
        raise ValueError(
            "precision 'int8' is quantised by ONNX Runtime, not installed here: "
            "pip install 'odin-pipeline[onnxruntime]', or choose another precision"
        )
    names = [layer.name for layer in chain.layers]
    with tempfile.TemporaryDirectory(prefix="odin-export-") as folder:
        path = Path(folder, "model.onnx")
        model = chain.write(path) if isinstance(chain, OnnxChain) else export(chain, path)
        needs = []
        if precision == INT8:
            exact = has_feature(INT8)
            if not exact:
                _logger.info("this processor has no VNNI: weights get 7 bits, so that products do not overflow")
            model, path = quantize(path, examples, narrow_weights=not exact)
            expected = _outputs(path, examples[0])
        packed = packs(model.graph.node)
        if engine == "onnxruntime":
            path = _optimized(path)
            model = onnx.load(path, load_external_data=False)
            needs.append(processor_features())
        if precision == BFLOAT16 or (precision == INT8 and exact):
            needs.append(precision)
        weights = take_weights(model, path.parent)
        # in memory before the folder is gone
        weights = {name: np.array(array) for name, array in weights.items()}
    cut = split(model, weights, engine=engine, layer_names=names, processor=" ".join(needs))
    cut = dataclasses.replace(cut, precision=precision, packs=packed)
    inputs = chain.example if isinstance(chain, OnnxChain) else _inputs(chain)
    described = _described(cut, weights, chain, inputs)
    layers = open_layers(described, weights)
    agreement = _compare(chain, engine, layers, [inputs] if precision == FLOAT32 else examples or [inputs])
    if precision == FLOAT32:
        _check(chain, described, agreement)
    else:
        _logger.info("%s on %s: %s", precision, engine, agreement)
        _refuse_absurd(chain, precision, engine, agreement)
    if precision == INT8:
        _check_quantized(chain, engine, run_layers(layers, examples[0]), expected)
    return EngineForm(described, weights, agreement)


def _optimized(path: Path) -> Path:
    """Let ONNX Runtime optimise a model for this processor, and write what it made of it."""
    import onnxruntime

    target = path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.weights")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target


def _inputs(chain: Chain) -> tuple[Array, ...]:
    """Noise like a model's inputs."""
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for spec in chain.inputs:
        dtype = getattr(torch, spec.dtype)
        tensor = torch.randn(spec.shape, generator=generator)
        arrays.append((tensor if dtype.is_floating_point else tensor.abs()).to(dtype).numpy())
    return tuple(arrays)


def _described(model: CutModel, weights: Mapping[str, Array], chain: Chain, inputs: Sequence[Array]) -> CutModel:
    """Find out the types and shapes of what crosses the cuts by running the layers, each opened once they are known."""
    two = tuple(np.concatenate([array, array]) for array in inputs) if chain.dynamic_batch else tuple(inputs)
    cuts = [_values(model.cuts[0], inputs, two)]
    values = (tuple(inputs), two)
    for index in range(len(model.layers)):
        single = dataclasses.replace(model, layers=(model.layers[index],), cuts=(cuts[-1], model.cuts[index + 1]))
        (run,) = open_layers(single, weights)
        values = (tuple(run(values[0])), tuple(run(values[1])))
        cuts.append(_values(model.cuts[index + 1], *values))
    return dataclasses.replace(model, cuts=tuple(cuts))


def _values(unknown: Sequence[Value], arrays: Sequence[Array], larger: Sequence[Array]) -> tuple[Value, ...]:
    from onnx import helper

    values = []
    for value, array, other in zip(unknown, arrays, larger, strict=True):
        shape = [size if size == its else "batch" for size, its in zip(array.shape, other.shape, strict=True)]
        info = helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)
        values.append(Value(value.name, array.dtype.name, array.shape, info.SerializeToString()))
    return tuple(values)


def _compare(chain: Chain, engine: str, layers: Sequence[Run], batches: Sequence[Sequence[Array]]) -> Agreement:
    """Run examples through the layers and through the reference."""
    reference, comparison = _reference(chain, engine), Comparison()
    for inputs in batches:
        values, wanted = run_layers(layers, inputs), reference(inputs)
        for found, expected in zip(values, wanted, strict=True):
            if found.shape != expected.shape or found.dtype != expected.dtype:
                raise ExportError(
                    f"{chain.name}: {engine} returns {found.dtype}{found.shape}, {_what_else(chain)} "
                    f"{expected.dtype}{expected.shape}: {_remedy(chain)}"
                )
        comparison.add(values, wanted)
    return comparison.agreement


def _reference(chain: Chain, engine: str) -> Callable[[Sequence[Array]], Sequence[Array]]:
    """What the chain gives with PyTorch; of an ONNX file, what the engine gives for it in one piece."""
    if isinstance(chain, OnnxChain):
        return open_whole(chain.file, engine)
    layers = [layer.bind(chain.state) for layer in chain.program.layers]  # packed weights would be a second copy

    def run(inputs: Sequence[Array]) -> Sequence[Array]:
        values = chain.layout([torch.from_numpy(array) for array in inputs])
        with torch.inference_mode():
            for layer in layers:
                values = layer(values)
        return [tensor.contiguous().numpy() for tensor in values]

    return run


def _what_else(chain: Chain) -> str:
    return "in one piece" if isinstance(chain, OnnxChain) else "PyTorch"


def _remedy(chain: Chain) -> str:
    return "choose another engine" if isinstance(chain, OnnxChain) else "choose engine 'torch'"


def _check(chain: Chain, model: CutModel, agreement: Agreement) -> None:
    tolerance = max(TOLERANCE, rounding(value.dtype for cut in model.cuts for value in cut))
    if not agreement.finite:
        raise ExportError(
            f"{chain.name}: {model.engine} gives NaN or infinity where {_what_else(chain)} does not, or the other way "
            f"round: {_remedy(chain)}"
        )
    if not agreement.largest_error <= tolerance:
        raise ExportError(
            f"{chain.name}: {model.engine} is off by {agreement.largest_error:.2g} of the largest output: "
            f"{_remedy(chain)}"
        )


def _outputs(path: Path, inputs: Sequence[Array]) -> list[Array]:
    """Run a model whole in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def _check_quantized(chain: Chain, engine: str, found: Sequence[Array], expected: Sequence[Array]) -> None:
    """Compare with what ONNX Runtime makes of the same quantised model: engines differ by a step of rounding."""
    comparison = Comparison()
    comparison.add(found, expected)
    error = comparison.agreement.rms_error
    if not error <= SAME_QUANTIZED:
        raise ExportError(
            f"{chain.name}: {engine} computes the quantised model otherwise than ONNX Runtime, off by "
            f"{error:.0%} (root mean square): choose engine 'onnxruntime'"
        )


def _refuse_absurd(chain: Chain, precision: str, engine: str, agreement: Agreement) -> None:
    if not agreement.finite:
        found = "outputs that are no numbers"
    elif not agreement.rms_error <= ABSURD:
        found = f"outputs that are off by {agreement.rms_error:.0%} (root mean square), {agreement}"
    else:
        return
    raise ExportError(
        f"{chain.name} in {precision} on {engine} gives {found}: choose precision 'float32'"
        + (", or give calibration images like those to come" if precision == INT8 else "")
    )
