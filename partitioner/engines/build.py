"""Bring a chain into the form that another engine runs, and check it against the chain."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from odin.partitioner.chain import Chain
from odin.partitioner.engines.cut_model import CutModel, Value
from odin.partitioner.engines.export import ExportError, export
from odin.partitioner.engines.form import EngineForm
from odin.partitioner.engines.names import check_installed
from odin.partitioner.engines.onnx_chain import OnnxChain
from odin.partitioner.engines.onnx_whole import open_whole, rounding
from odin.partitioner.engines.processor import processor_features
from odin.partitioner.engines.session import Array, open_layers
from odin.partitioner.engines.split import split, take_weights

__all__ = ["TOLERANCE", "build_form"]

TOLERANCE = 1e-4
"""Largest difference from the chain's outputs, of their largest magnitude: runtimes sum in other orders."""


def build_form(chain: Chain, *, engine: str, batch: int) -> EngineForm:
    """Export a chain, optimise it as the engine does, cut it, and compare it with the chain on one input.

    Parameters
    ----------
    chain
        Its weights are still here.
    engine
        ``"onnxruntime"`` or ``"openvino"``.
    batch
        Leading size of the requests to come.

    Raises
    ------
    ValueError
        If a package is missing; the message says which.
    ExportError
        If the chain cannot be exported, or computes something else there.
    """
    import onnx

    check_installed(engine)
    names = [layer.name for layer in chain.layers]
    with tempfile.TemporaryDirectory(prefix="odin-export-") as folder:
        path = Path(folder, "model.onnx")
        model = chain.write(path) if isinstance(chain, OnnxChain) else export(chain, path)
        processor = ""
        if engine == "onnxruntime":
            path = _optimized(path)
            model = onnx.load(path, load_external_data=False)
            processor = processor_features()
        weights = take_weights(model, path.parent)
        # in memory before the folder is gone
        weights = {name: np.array(array) for name, array in weights.items()}
    cut = split(model, weights, engine=engine, layer_names=names, processor=processor)
    inputs = chain.example if isinstance(chain, OnnxChain) else _inputs(chain, batch)
    described = _described(cut, weights, chain, inputs)
    _check(chain, described, weights, inputs)
    return EngineForm(described, weights)


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


def _inputs(chain: Chain, batch: int) -> tuple[Array, ...]:
    """Noise like a model's inputs."""
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for spec in chain.inputs:
        shape = (batch, *spec.shape[1:]) if chain.dynamic_batch else spec.shape
        dtype = getattr(torch, spec.dtype)
        tensor = torch.randn(shape, generator=generator)
        arrays.append((tensor if dtype.is_floating_point else tensor.abs()).to(dtype).numpy())
    return tuple(arrays)


def _described(model: CutModel, weights: Mapping[str, Array], chain: Chain, inputs: Sequence[Array]) -> CutModel:
    """Find out the types and shapes of what crosses the cuts by running the layers, each opened once they are known."""
    two = tuple(np.concatenate([array, array]) for array in inputs) if chain.dynamic_batch else tuple(inputs)
    cuts = [_values(model.cuts[0], inputs, two)]
    values = (tuple(inputs), two)
    for index in range(len(model.layers)):
        following = [dataclasses.replace(model, cuts=(*cuts, *model.cuts[index + 1 :]))][0]
        single = dataclasses.replace(
            following, layers=(following.layers[index],), cuts=(cuts[-1], model.cuts[index + 1])
        )
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


def _check(chain: Chain, model: CutModel, weights: Mapping[str, Array], inputs: Sequence[Array]) -> None:
    values = tuple(inputs)
    for run in open_layers(model, weights):
        values = tuple(run(values))
    for found, reference in zip(values, _expected(chain, model.engine, inputs), strict=True):
        scale = float(np.abs(reference).max()) if reference.size else 0.0
        if found.shape != reference.shape or found.dtype != reference.dtype:
            raise ExportError(
                f"{chain.name}: {model.engine} returns {found.dtype}{found.shape}, PyTorch "
                f"{reference.dtype}{reference.shape}: {_remedy(chain)}"
            )
        error = float(np.abs(found.astype(np.float64) - reference.astype(np.float64)).max()) if reference.size else 0.0
        if not error <= max(TOLERANCE, rounding(value.dtype for cut in model.cuts for value in cut)) * scale:
            raise ExportError(
                f"{chain.name}: {model.engine} is off by {error:.2g} where the largest output is "
                f"{scale:.2g}: {_remedy(chain)}"
            )


def _remedy(chain: Chain) -> str:
    return "choose another engine" if isinstance(chain, OnnxChain) else "choose engine 'torch'"


def _expected(chain: Chain, engine: str, inputs: Sequence[Array]) -> Sequence[Array]:
    """What the chain gives with PyTorch; of an ONNX file, what the engine gives for it in one piece."""
    if isinstance(chain, OnnxChain):
        return open_whole(chain.file, engine)(inputs)
    values = chain.layout([torch.from_numpy(array) for array in inputs])
    with torch.inference_mode():
        for layer in chain.program.layers:  # with plain weights: packed ones would be a second copy
            values = layer.bind(chain.state)(values)
    return [tensor.contiguous().numpy() for tensor in values]
