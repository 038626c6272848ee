"""Small ONNX models made node by node, and PyTorch's exports of small models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FLOAT", "chain_of_convolutions", "constant", "graph_of", "save", "value"]

FLOAT = TensorProto.FLOAT


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = FLOAT) -> Any:
    """An input or output."""
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, *shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    """A weight: seeded noise."""
    noise = np.random.default_rng(seed).standard_normal(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5
    return numpy_helper.from_array(noise.astype(dtype), name)


def graph_of(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Sequence[Any] = (),
    *,
    opset: int = 18,
    ir_version: int = 9,
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> Any:
    """A model of one graph."""
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(constants))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def save(model: Any, path: Path, **options: Any) -> Path:
    """Write a model to a file."""
    onnx.save(model, path, **options)
    return path


def chain_of_convolutions(
    *, batch: int | str = "batch", size: int | str = 12, count: int = 5, channels: int = 8, **options: Any
) -> Any:
    """``count`` convolutions with ReLUs, the mean of each channel, and a linear layer."""
    nodes, constants, last = [], [], "image"
    for index in range(count):
        constants += [
            constant(f"w{index}", channels, 3 if not index else channels, 3, 3, seed=index),
            constant(f"b{index}", channels, seed=index + 100),
        ]
        nodes += [
            helper.make_node(
                "Conv", [last, f"w{index}", f"b{index}"], [f"c{index}"], f"body/{index}/Conv", pads=[1] * 4
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"body/{index}/Relu"),
        ]
        last = f"r{index}"
    constants += [constant("w_out", channels, 10), constant("b_out", 10)]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"], "head/mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "head/flat"),
        helper.make_node("Gemm", ["flat", "w_out", "b_out"], ["scores"], "head/linear/Gemm"),
    ]
    return graph_of(
        nodes, [value("image", [batch, 3, size, size])], [value("scores", [batch, 10])], constants, **options
    )
