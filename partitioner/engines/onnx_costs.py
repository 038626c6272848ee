"""Estimated time of an ONNX graph's steps, from the shapes of what they read and make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from odin.partitioner.engines.onnx_graph import OnnxGraph
from odin.partitioner.engines.onnx_nodes import reads
from odin.partitioner.graph.values import ValueSpec

__all__ = ["flops_of", "moved_nbytes", "value_specs"]

_CARRIED = frozenset(
    {"float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool", "uint16", "uint32", "uint64"}
)


def value_specs(graph: OnnxGraph, shapes: Sequence[Sequence[int]]) -> dict[str, ValueSpec]:
    """Return type and shape of values by name, where ONNX's shape inference finds them and stages can exchange them.

    Parameters
    ----------
    shapes
        Of each input.
    """
    import onnx
    from onnx import helper

    sized = type(graph.model)()
    sized.CopyFrom(graph.model)
    for entry, shape in zip(sized.graph.input, shapes, strict=True):
        entry.CopyFrom(helper.make_tensor_value_info(entry.name, entry.type.tensor_type.elem_type, shape))
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    found = {}
    for entry in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = entry.type.tensor_type
        sizes = [size.dim_value if size.WhichOneof("value") == "dim_value" else -1 for size in tensor.shape.dim]
        if not tensor.HasField("shape") or min(sizes, default=0) < 0:
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if dtype.name in _CARRIED:
            found[entry.name] = ValueSpec("tensor", tuple(sizes), dtype.name, math.prod(sizes) * dtype.itemsize)
    for constant in inferred.initializer:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(constant.data_type))
        shape = tuple(constant.dims)
        found[constant.name] = ValueSpec("tensor", shape, dtype.name, math.prod(shape) * dtype.itemsize)
    return found


def flops_of(node: Any, specs: Mapping[str, ValueSpec]) -> int:
    """Return the floating point operations of a node's products, a multiply-add as two; 0 for any other kind of node.

    Recurrences, products in subgraphs and what has no known shape count as nothing.
    """
    kind = node.op_type.removeprefix("Fused").removeprefix("QLinear").removesuffix("Integer")
    tensors = [specs[name].shape if name in specs else () for name in node.input]
    made = specs[node.output[0]].shape if node.output[0] in specs else ()
    if kind == "Conv":
        # inputs of quantised ones: x, scale, zero point, w
        weight = tensors[3] if node.op_type.startswith("QLinear") else tensors[1]
        return 2 * math.prod(made) * math.prod(weight[1:]) if made and weight else 0
    if kind == "ConvTranspose":
        return 2 * math.prod(tensors[0]) * math.prod(tensors[1][1:]) if tensors[0] and tensors[1] else 0
    if kind in ("Gemm", "MatMul", "QGemm"):
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        inner = tensors[0][-2 if transposed else -1] if len(tensors[0]) > int(transposed) else 0
        return 2 * math.prod(made) * inner if made else 0
    return 0


def moved_nbytes(node: Any, specs: Mapping[str, ValueSpec]) -> int:
    """Return the bytes of all that a node reads and makes, as far as they are known."""
    return sum(specs[name].nbytes for name in (*reads(node), *node.output) if name in specs)
