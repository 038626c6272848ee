"""From a prepared chain to one ONNX model in which every value's name says which layer makes it.

What is exported are the layers that the stages would run with PyTorch, in its own operators: batch norms are folded,
dropouts gone. Its exporter writes them side by side, each with inputs of its own, and they are joined then. The marks
are in names, which runtimes keep through their optimisations.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odin.partitioner.chain import Chain
from odin.partitioner.code.program import LayerFunction

__all__ = ["ExportError", "export", "input_name", "layer_of"]

_MARK = re.compile(r"layer(\d+)_\d+_\d+")


class ExportError(ValueError):
    """A model that an engine cannot take; says why and what to do."""


def input_name(index: int) -> str:
    """Name of a model's input."""
    return f"input{index}"


def layer_of(name: str) -> int | None:
    """Layer that a value's or node's name is marked with, whatever a runtime has put around it; None without.

    Examples
    --------
    >>> layer_of("layer12_3_0_nchwc"), layer_of("ReorderOutput")
    (12, None)
    """
    found = _MARK.search(name)
    return int(found.group(1)) if found else None


def export(chain: Chain, path: Path) -> Any:
    """Write a chain as an ONNX model, its weights in a file beside it, and return the ``onnx.ModelProto`` without them.

    Parameters
    ----------
    path
        Where to write.

    Raises
    ------
    ExportError
        If PyTorch cannot export a layer.
    ImportError
        If ``onnx`` or ``onnxscript`` is not installed.
    """
    import onnx

    # In the order of ONNX: for tensors in another order the exporter writes down how each element is found.
    state = {name: tensor.contiguous() for name, tensor in chain.state.items()}
    layers = [layer.bind(state, device="cpu", portable=True) for layer in chain.program.layers]
    taken = _values_before(chain, layers, 2)
    shapes = (
        [
            _shape_names(*pair, layer=index)
            for index, pair in enumerate(zip(taken, _values_before(chain, layers, 3), strict=True))
        ]
        if chain.dynamic_batch
        else None
    )
    input_names = [[f"in{index}_{number}" for number, _ in enumerate(values)] for index, values in enumerate(taken)]
    output_names = [
        [f"out{index}_{number}" for number, _ in enumerate(layer.output)] for index, layer in enumerate(chain.layers)
    ]
    # Cloned, for one tensor twice would become one input. In the plain layout, else pooling would be exported with a
    # gather that only restores strides.
    flat = tuple(value.clone(memory_format=torch.contiguous_format) for values in taken for value in values)
    try:
        with _quiet():
            exported = torch.export.export(
                _SideBySide(layers, [len(values) for values in taken]),
                flat,
                dynamic_shapes=None if shapes is None else (tuple(shape for row in shapes for shape in row),),
            )
            program = torch.onnx.export(
                exported,
                flat,
                dynamo=True,
                verbose=False,
                input_names=[name for names in input_names for name in names],
                output_names=[name for names in output_names for name in names],
            )
            assert program is not None
            program.save(path, external_data=True)
    except ImportError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{chain.name} cannot be exported to ONNX ({first}): choose engine 'torch'") from error
    model = onnx.load(path, load_external_data=False)
    _pool_means(model.graph)
    _join(model.graph, input_names, output_names)
    onnx.save(model, path)
    return model


class _SideBySide(nn.Module):
    """All layers of a chain in one module, each with inputs of its own.

    So nothing that a layer computes, such as the leading size, is taken from an earlier layer's values.
    """

    def __init__(self, layers: Sequence[LayerFunction], counts: Sequence[int]) -> None:
        super().__init__()
        self._layers, self._counts = layers, counts

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        first = 0
        for layer, count in zip(self._layers, self._counts, strict=True):
            outputs.extend(layer(inputs[first : first + count]))
            first += count
        return tuple(outputs)


def _values_before(chain: Chain, layers: Sequence[LayerFunction], batch: int) -> list[tuple[Tensor, ...]]:
    """What crosses the cut before each layer, for inputs of ones with this leading size, if that is free."""
    shapes = [(batch, *spec.shape[1:]) if chain.dynamic_batch else spec.shape for spec in chain.inputs]
    values: tuple[Tensor, ...] = tuple(
        torch.ones(shape, dtype=getattr(torch, spec.dtype)) for shape, spec in zip(shapes, chain.inputs, strict=True)
    )
    before = []
    with torch.no_grad():
        for layer in layers:
            before.append(values)
            values = tuple(layer(values))
    return before


def _shape_names(two: Sequence[Tensor], three: Sequence[Tensor], *, layer: int) -> list[dict[int, Any]]:
    """Which sizes before a layer grow with the batch, from its values for batches of 2 and 3."""
    batch = torch.export.Dim(f"batch{layer}")
    shapes = []
    for value, larger in zip(two, three, strict=True):
        grows = {axis: larger.shape[axis] - size for axis, size in enumerate(value.shape)}
        shapes.append({axis: batch if step == 1 else step * batch for axis, step in grows.items() if step})
    return shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling users of its own deprecations, and of libraries that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _join(graph: Any, inputs: Sequence[Sequence[str]], outputs: Sequence[Sequence[str]]) -> None:
    """Put layers that are side by side in an ``onnx.GraphProto`` behind one another, and name values after them.

    Parameters
    ----------
    inputs, outputs
        Names of each layer's. A result that no node makes is a constant, and is one in later layers as well.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    entries = {entry.name: entry for entry in (*graph.input, *graph.output)}
    names = {name: input_name(index) for index, name in enumerate(inputs[0])}
    kept: list[Any] = []
    for layer, results in enumerate(outputs):
        own, waiting = set(), list(results)
        while waiting:
            node = made_by.get(waiting.pop())
            if node is not None and id(node) not in own:
                own.add(id(node))
                waiting.extend(node.input)
        nodes = [_copy(node) for node in graph.node if id(node) in own]  # what layers share is computed in each
        local = {name: names.get(name, name) for name in inputs[layer]}
        for node in nodes:
            number = len(kept)
            kept.append(node)
            node.name = f"layer{layer}_{number}_0"
            for index, name in enumerate(node.output):
                if name:
                    local[name] = f"layer{layer}_{number}_{index}"
            for fields in (node.input, node.output):
                for index, name in enumerate(fields):
                    fields[index] = local.get(name, name)
        if layer + 1 < len(outputs):
            names = {after: local.get(result, result) for after, result in zip(inputs[layer + 1], results, strict=True)}
        else:
            last = [local.get(result, result) for result in results]
    first_entries = [_renamed(entries[name], input_name(index)) for index, name in enumerate(inputs[0])]
    last_entries = [_renamed(entries[name], last[index]) for index, name in enumerate(outputs[-1])]
    for fields, values in ((graph.node, kept), (graph.input, first_entries), (graph.output, last_entries)):
        del fields[:]
        fields.extend(values)
    del graph.value_info[:]


def _pool_means(graph: Any) -> None:
    """Write means over height and width as the pooling that they are, which runtimes compute in their own layout."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {
        entry.name: len(entry.type.tensor_type.shape.dim)
        for entry in (*graph.value_info, *graph.input, *graph.output)
        if entry.type.tensor_type.HasField("shape")
    }
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        axes = sorted(int(axis) % 4 for axis in numpy_helper.to_array(constants[node.input[1]]))
        if keeps and axes == [2, 3] and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _renamed(entry: Any, name: str) -> Any:
    copy = _copy(entry)
    copy.name = name
    return copy


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
