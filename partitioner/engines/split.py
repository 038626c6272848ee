"""From one ONNX model whose names say the layers to a :class:`CutModel` and plain arrays of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odin.partitioner.engines.cut_model import Array, CutModel, LayerNodes, Value, field
from odin.partitioner.engines.export import layer_of
from odin.partitioner.engines.onnx_nodes import reads

__all__ = ["Array", "split", "take_weights"]


_SMALL_NBYTES = 1024
"""Constants below it stay in the model: runtimes look at shapes and the like while they read it."""
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})


def take_weights(model: Any, folder: Path) -> dict[str, Array]:
    """Return the large constants of an ``onnx.ModelProto`` as arrays; those in files are mapped, not read.

    Parameters
    ----------
    folder
        Where the files are in which the model has its data.
    """
    from onnx import numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    weights = {}
    for tensor in model.graph.initializer:
        dtype = _numpy_dtype(tensor.data_type)
        if dtype.isbuiltin != 1 or dtype.hasobject:  # half bytes and other types that numpy lacks stay in the model
            if tensor.external_data:
                load_external_data_for_tensor(tensor, str(folder))
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
            continue
        nbytes = int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize
        if tensor.external_data:
            where = {entry.key: entry.value for entry in tensor.external_data}
            array: Array = (
                np.memmap(folder / where["location"], dtype, "r", int(where.get("offset", 0)), tuple(tensor.dims))
                if nbytes
                else np.empty(tuple(tensor.dims), dtype)
            )
        elif nbytes >= _SMALL_NBYTES:
            array = numpy_helper.to_array(tensor)
        else:
            continue
        if nbytes < _SMALL_NBYTES:
            tensor.CopyFrom(numpy_helper.from_array(np.array(array), tensor.name))
        else:
            weights[tensor.name] = array
    return weights


def split(
    model: Any,
    weights: Mapping[str, Array],
    *,
    engine: str,
    layer_names: Sequence[str],
    processor: str = "",
) -> CutModel:
    """Cut a marked model at every layer.

    What a runtime has joined from two layers belongs to the later one, so more than the chain's values may cross a cut,
    and other ones.

    Parameters
    ----------
    model
        ``onnx.ModelProto``, nodes in an order in which they can be run.
    weights
        Of :func:`take_weights`.
    engine, processor
        As for :class:`CutModel`.
    layer_names
        Names of the chain's layers.
    """
    graph, count = model.graph, len(layer_names)
    inputs, outputs = [entry.name for entry in graph.input], [entry.name for entry in graph.output]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    for index, name in enumerate(outputs):
        if name in constants:
            outputs[index] = f"layer{count - 1}_{len(nodes)}_0_constant"
            nodes.append(type(nodes[0])(op_type="Identity", input=[name], output=[outputs[index]]))
    inputs = [name for name in inputs if name not in constants]
    made_in = dict.fromkeys(inputs, 0)
    last_read: dict[str, int] = {}
    by_layer: list[list[Any]] = [[] for _ in range(count)]
    places = _places(nodes, made_in)
    made_in = dict.fromkeys(inputs, 0)
    for node, layer in zip(nodes, places, strict=True):
        by_layer[layer].append(node)
        made_in.update(dict.fromkeys(filter(None, node.output), layer))
        for name in reads(node):
            last_read[name] = max(last_read.get(name, 0), layer)
    last_read.update(dict.fromkeys(outputs, count))
    crossing = [inputs]
    for cut in range(1, count):
        crossing.append([name for name, layer in made_in.items() if layer < cut and last_read.get(name, -1) >= cut])
    crossing.append(outputs)
    layers = []
    for name, nodes in zip(layer_names, by_layer, strict=True):
        makes = frozenset(value for node in nodes for value in node.output if value)
        read = dict.fromkeys(value for node in nodes for value in reads(node))
        layers.append(
            LayerNodes(
                name,
                tuple(node.SerializeToString() for node in nodes),
                {value: constants[value].SerializeToString() for value in read if value in constants.keys() - weights},
                tuple(value for value in read if value in weights),
                frozenset(value for value in read if value in made_in) - makes,
                makes,
            )
        )
    header = type(model)()
    header.CopyFrom(model)
    header.ClearField("graph")
    return CutModel(
        engine,
        header.SerializeToString(),
        tuple(layers),
        tuple(tuple(Value(name, "", (), field(1, name.encode())) for name in names) for names in crossing),
        {name: _declaration(name, array) for name, array in weights.items()},
        processor,
    )


def _places(nodes: Sequence[Any], inputs: Mapping[str, int]) -> list[int]:
    """Layer of each node: not before those whose values it reads.

    What a runtime has added to change a value's layout goes to the first layer that needs that: else the value would
    cross cuts twice.
    """
    made_in, places = dict(inputs), []
    for node in nodes:
        marks = [layer_of(name) for name in (node.name, *node.output)]
        places.append(
            max([0, *(mark for mark in marks if mark is not None), *(made_in.get(name, 0) for name in reads(node))])
        )
        made_in.update(dict.fromkeys(filter(None, node.output), places[-1]))
    needed_in: dict[str, int] = {}
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if node.op_type in _LAYOUT:
            places[index] = min([needed_in[name] for name in node.output if name in needed_in], default=places[index])
        for name in reads(node):
            needed_in[name] = min(needed_in.get(name, places[index]), places[index])
    return places


def _declaration(name: str, array: Array) -> bytes:
    from onnx import TensorProto, helper

    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    return bytes(tensor.SerializeToString())


def _numpy_dtype(data_type: int) -> np.dtype[Any]:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
