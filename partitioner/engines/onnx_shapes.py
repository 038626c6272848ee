"""Types and shapes of the values of an ONNX graph: inferred, or of what only the runtime knows, seen in a call."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.names import missing_packages
from odin.partitioner.engines.onnx_graph import OnnxGraph, write_model
from odin.partitioner.engines.onnx_nodes import reads
from odin.partitioner.graph.values import ValueSpec

__all__ = ["value_specs"]


_CARRIED = frozenset(
    {"float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool", "uint16", "uint32", "uint64"}
)
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""Domains whose operators ONNX's shape inference knows: where it finds no size, that depends on the data."""


def value_specs(graph: OnnxGraph, inputs: Sequence[Array]) -> dict[str, ValueSpec]:
    """Return type and shape of constants by name, and of values where they are known and stages can exchange them.

    Parameters
    ----------
    inputs
        Of the example.
    """
    found = _inferred(graph, inputs)
    unknown = _only_the_runtime_knows(graph, found)
    if unknown and not missing_packages("onnxruntime"):
        found |= _seen(graph, unknown, inputs)
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    return {name: spec for name, spec in found.items() if spec.dtype in _CARRIED or name in constants}


def _inferred(graph: OnnxGraph, inputs: Sequence[Array]) -> dict[str, ValueSpec]:
    import onnx
    from onnx import helper

    sized = type(graph.model)()
    sized.CopyFrom(graph.model)
    for entry, array in zip(sized.graph.input, inputs, strict=True):
        entry.CopyFrom(helper.make_tensor_value_info(entry.name, entry.type.tensor_type.elem_type, array.shape))
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    found = {}
    for entry in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = entry.type.tensor_type
        sizes = [size.dim_value if size.WhichOneof("value") == "dim_value" else -1 for size in tensor.shape.dim]
        if tensor.HasField("shape") and min(sizes, default=0) >= 0:
            found[entry.name] = _spec(sizes, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    for constant in inferred.initializer:
        found[constant.name] = _spec(constant.dims, helper.tensor_dtype_to_np_dtype(constant.data_type))
    return found


def _only_the_runtime_knows(graph: OnnxGraph, known: dict[str, ValueSpec]) -> list[str]:
    """Values of operators that are no standard ones, and of standard ones that read these."""
    found: dict[str, None] = {}
    for step in graph.steps:
        unknown = [name for name in step.output if name and name not in known]
        read = [name for name in reads(step) if name not in known and name not in graph.folded]
        if all(name in found for name in read) and (read or step.domain not in _STANDARD):
            found.update(dict.fromkeys(unknown))
    return list(found)


def _seen(graph: OnnxGraph, names: Sequence[str], inputs: Sequence[Array]) -> dict[str, ValueSpec]:
    """Compute values with ONNX Runtime; those that are no arrays are left out."""
    import onnx
    import onnxruntime

    model = type(graph.model)()
    model.CopyFrom(graph.model)
    given = set(graph.outputs)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="odin-shapes-") as folder:
        path = Path(folder, "model.onnx")
        write_model(model, graph.weights, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        arrays = session.run(list(names), dict(zip(graph.inputs, inputs, strict=True)))
    return {
        name: _spec(array.shape, array.dtype)
        for name, array in zip(names, arrays, strict=True)
        if isinstance(array, np.ndarray)
    }


def _spec(shape: Sequence[int], dtype: Any) -> ValueSpec:
    dtype = np.dtype(dtype)
    return ValueSpec("tensor", tuple(shape), dtype.name, math.prod(shape) * dtype.itemsize)
