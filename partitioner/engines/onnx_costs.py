"""Estimated time of an ONNX graph's steps, from the shapes of what they read and make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from odin.partitioner.engines.onnx_nodes import reads
from odin.partitioner.graph.values import ValueSpec

__all__ = ["flops_of", "moved_nbytes"]


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
