"""The graph of an ONNX file as steps in the order in which they are run, with names of our own.

What a runtime would compute only once is no step: constants, and nodes that read only constants. Each layer gets its
own copy of those that it reads, so that they cross no cut. ::

    file --functions inlined, dead nodes gone, weights apart, all names new--> OnnxGraph
         --marked(cuts)--> one ONNX model in which the names of nodes and values say the layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.partitioner.engines.onnx_nodes import reads, subgraphs
from odin.partitioner.engines.split import take_weights

__all__ = ["OnnxGraph", "read_graph", "write_model"]


_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_VARYING = frozenset({"RandomNormal", "RandomUniform"})
"""They read nothing and are no constants."""


@dataclass(frozen=True)
class OnnxGraph:
    """A model's graph.

    Attributes
    ----------
    model
        ``onnx.ModelProto``, large constants without their data. Its nodes are the steps and what they read that is
        computed from constants only, in an order in which they can be run.
    weights
        The large constants' values.
    steps
        Nodes of which layers are made.
    folded
        Nodes that read only constants, by the name of each value that they make.
    names
        The file's names of values by ours.
    """

    model: Any
    weights: Mapping[str, Array]
    steps: tuple[Any, ...]
    folded: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [entry.name for entry in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [entry.name for entry in self.model.graph.output]

    def crossing(self) -> list[tuple[str, ...]]:
        """For each step the values that are made before or by it, and read after it or returned."""
        made = dict.fromkeys(self.inputs, -1)
        last_read: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            last_read.update(dict.fromkeys(reads(step), index))
            made.update(dict.fromkeys(filter(None, step.output), index))
        last_read.update(dict.fromkeys(self.outputs, len(self.steps)))
        found = []
        alive = list(self.inputs)
        for index, step in enumerate(self.steps):
            alive = [name for name in (*alive, *filter(None, step.output)) if last_read.get(name, -1) > index]
            found.append(tuple(alive))
        return found

    def marked(self, cuts: Sequence[int]) -> Any:
        """Return the model with each node's and value's layer in its name.

        Parameters
        ----------
        cuts
            Steps after which a layer ends; ascending, without the last one.
        """
        marked = _copy(self.model)
        nodes: list[Any] = []
        values = {name: name for name in self.inputs}
        starts = [0, *(cut + 1 for cut in cuts)]
        for layer, (first, last) in enumerate(zip(starts, [*starts[1:], len(self.steps)], strict=True)):
            own = self.with_folded(self.steps[first:last])
            for node in own:
                number = len(nodes)
                renamed = _copy(node)
                renamed.name = f"layer{layer}_{number}_0"
                del renamed.metadata_props[:]  # where it came from, at length
                renamed.ClearField("doc_string")
                fresh = {name: f"layer{layer}_{number}_{i}" for i, name in enumerate(node.output) if name}
                _rename(renamed, values | fresh)
                values |= fresh
                nodes.append(renamed)
        del marked.graph.node[:]
        marked.graph.node.extend(nodes)
        for entry in marked.graph.output:
            entry.name = values[entry.name]
        return marked

    def with_folded(self, steps: Sequence[Any]) -> list[Any]:
        """Steps, and before each what it reads that is computed from constants, once."""
        found: list[Any] = []
        seen: set[int] = set()

        def add(node: Any) -> None:
            for name in reads(node):
                before = self.folded.get(name)
                if before is not None and id(before) not in seen:
                    seen.add(id(before))
                    add(before)
            found.append(node)

        for step in steps:
            add(step)
        return found


def read_graph(file: OnnxFile, shapes: Sequence[Sequence[int | str]]) -> OnnxGraph:
    """Read a file's graph.

    Parameters
    ----------
    shapes
        Of each input; a text is the name of a size that is free.

    Raises
    ------
    ValueError
        If the graph reads what nothing before has made.
    """
    from onnx import helper

    model = file.load()
    graph = model.graph
    model.ir_version = max(model.ir_version, 4)  # before it, constants had to be inputs as well
    _load_inner(graph, file.path.parent)
    _constants_apart(graph)
    names = _rename_all(file, graph)
    weights = take_weights(model, file.path.parent)
    for tensor in graph.initializer:
        if tensor.name in weights:
            for field in (*_DATA_FIELDS, "external_data", "data_location"):
                tensor.ClearField(field)
    steps, folded = _steps(file, graph)
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")  # follows from the inputs'
    del graph.input[:], graph.value_info[:]
    for index, (value, shape) in enumerate(zip(file.inputs, shapes, strict=True)):
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
        graph.input.append(helper.make_tensor_value_info(f"input{index}", dtype, list(shape)))
    return OnnxGraph(model, weights, tuple(steps), folded, names)


def write_model(model: Any, weights: Mapping[str, Array], path: Path) -> None:
    """Write an ``onnx.ModelProto``, the data of its large constants in a file beside it, whose place it gets."""
    import onnx

    beside = path.with_suffix(".weights")
    with open(beside, "wb") as file:
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                file.write(bytes(-file.tell() % 64))
                offset, array = file.tell(), np.ascontiguousarray(weights[tensor.name])
                file.write(array.reshape(-1).view(np.uint8).data)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in {"location": beside.name, "offset": offset, "length": array.nbytes}.items():
                    tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, path)


def _load_inner(graph: Any, folder: Path, *, outermost: bool = True) -> None:
    """Read what constants in nodes and subgraphs have in other files."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    tensors = [] if outermost else list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
        for inner in subgraphs(node):
            _load_inner(inner, folder, outermost=False)
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")


def _constants_apart(graph: Any) -> None:
    """Make initializers of nodes that hold a constant, and nodes of sparse initializers."""
    from onnx import helper, numpy_helper

    kept = [
        helper.make_node("Constant", [], [sparse.values.name], sparse_value=sparse)
        for sparse in graph.sparse_initializer
    ]
    del graph.sparse_initializer[:]
    for node in graph.node:
        held = {attribute.name: attribute for attribute in node.attribute} if node.op_type == "Constant" else {}
        if "value" in held:
            tensor = held["value"].t
        elif held.keys() & {"value_float", "value_floats"}:
            values = next(helper.get_attribute_value(attribute) for attribute in held.values())
            tensor = numpy_helper.from_array(np.array(values, np.float32))
        elif held.keys() & {"value_int", "value_ints"}:
            values = next(helper.get_attribute_value(attribute) for attribute in held.values())
            tensor = numpy_helper.from_array(np.array(values, np.int64))
        else:
            kept.append(node)
            continue
        constant = graph.initializer.add()
        constant.CopyFrom(tensor)
        constant.name = node.output[0]
    kept = [_copy(node) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)


def _rename_all(file: OnnxFile, graph: Any) -> dict[str, str]:
    """Give every value a name without meaning; an output that no node makes gets one. Returns the old names by new."""
    from onnx import helper

    names = {value.name: f"input{index}" for index, value in enumerate(file.inputs)}
    names |= {tensor.name: f"constant{index}" for index, tensor in enumerate(graph.initializer)}
    made = {name for node in graph.node for name in node.output}
    for index, entry in enumerate(graph.output):
        if entry.name not in made:
            graph.node.append(helper.make_node("Identity", [entry.name], [f"output{index} of {entry.name}"]))
            entry.name = f"output{index} of {entry.name}"
    values = [name for node in graph.node for name in node.output if name]
    names |= {name: f"value{index}" for index, name in enumerate(values)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for entry in graph.output:
        entry.name = names[entry.name]
    for node in graph.node:
        _rename(node, names)
    return {new: old for old, new in names.items()}


def _rename(node: Any, names: Mapping[str, str], inner: list[int] | None = None) -> None:
    """Rename what a node reads and makes, also in its subgraphs, whose own values get names that are nobody else's."""
    inner = [0] if inner is None else inner
    for fields in (node.input, node.output):
        for index, name in enumerate(fields):
            fields[index] = names.get(name, name)
    for graph in subgraphs(node):
        own = [entry.name for entry in (*graph.input, *graph.initializer)]
        own += [sparse.values.name for sparse in graph.sparse_initializer]
        own += [name for within in graph.node for name in within.output if name]
        scope = dict(names)
        for name in own:
            scope[name] = f"{node.output[0]}_inner{inner[0]}"
            inner[0] += 1
        for entry in (*graph.input, *graph.initializer, *graph.output):
            entry.name = scope.get(entry.name, entry.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = scope[sparse.values.name]
        del graph.value_info[:]
        for within in graph.node:
            within.name = ""
            _rename(within, scope, inner)


def _steps(file: OnnxFile, graph: Any) -> tuple[list[Any], dict[str, Any]]:
    """Nodes that are run for each request, and by their values those that depend on constants only."""
    needed = {entry.name for entry in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            alive.append(node)
            needed.update(reads(node))
    constant = {tensor.name for tensor in graph.initializer}
    known = constant | {f"input{index}" for index, _ in enumerate(file.inputs)}
    outputs = {entry.name for entry in graph.output}
    steps, folded = [], {}
    for node in reversed(alive):
        read = reads(node)
        unknown = next((name for name in read if name not in known), None)
        if unknown is not None:
            raise ValueError(
                f"model {file.path}: node {node.name or node.op_type!r} reads a value that no node before it makes"
            )
        known.update(node.output)
        if constant.issuperset(read) and node.op_type not in _VARYING and outputs.isdisjoint(node.output):
            constant.update(node.output)
            folded.update(dict.fromkeys(filter(None, node.output), node))
        else:
            steps.append(node)
    return steps, folded


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
