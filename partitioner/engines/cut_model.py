"""An ONNX model that can be cut at every layer: what stages get that do not compute with PyTorch.

It is made of pieces of serialised protocol buffers, which need only be put one behind the other: neither PyTorch nor
the ``onnx`` package is needed to read it. ::

    header | layer 0: nodes, small constants, names of weights | layer 1 ... | cut 0: values | cut 1: values ...

Weights are not in it: they are plain arrays, one copy for all stages of a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Array", "CutModel", "LayerModel", "LayerNodes", "Value", "field", "varint"]

Array = np.ndarray[Any, np.dtype[Any]]
"""What engines other than PyTorch compute with."""

_GRAPH = 7  # of ModelProto
_NODE, _GRAPH_NAME, _INITIALIZER, _INPUT, _OUTPUT = 1, 2, 5, 11, 12  # of GraphProto


def varint(value: int) -> bytes:
    r"""Encode an integer as protocol buffers do.

    Examples
    --------
    >>> varint(1), varint(300)
    (b'\x01', b'\xac\x02')
    """
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, payload: bytes) -> bytes:
    """Encode a field that holds a message, a text or bytes."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


class Value(NamedTuple):
    """A value that crosses a cut.

    Attributes
    ----------
    name
        In the model.
    dtype
        Element type, such as ``"float32"``.
    shape
        As in the example.
    info
        The serialised ``ValueInfoProto``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    info: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in the example."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class LayerNodes:
    """What one layer computes.

    Attributes
    ----------
    name
        The layer's name in the chain.
    nodes
        Serialised ``NodeProto``, in an order in which they can be run.
    constants
        Serialised ``TensorProto`` of small constants by name.
    weights
        Names of the weights that it reads.
    reads, makes
        Names of values that it reads and did not make itself, and that it makes.
    """

    name: str
    nodes: tuple[bytes, ...]
    constants: Mapping[str, bytes]
    weights: tuple[str, ...]
    reads: frozenset[str]
    makes: frozenset[str]


class LayerModel(NamedTuple):
    """One layer as a model of its own.

    Attributes
    ----------
    proto
        Serialised ``ModelProto``; empty if the layer computes nothing.
    inputs, outputs
        Values that it takes and returns, by name.
    weights
        Names of its weights.
    """

    proto: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class CutModel:
    """A model in layers. Picklable.

    Attributes
    ----------
    engine
        Name of the engine that runs it.
    header
        Serialised fields of ``ModelProto`` without the graph.
    layers
        In order.
    cuts
        For each of the ``layers + 1`` cuts what crosses it; the first are the model's inputs, the last its outputs.
    declared
        For each weight the serialised fields of its ``TensorProto`` without data: name, type and shape.
    processor
        Features of the processor for which it was made, as for ``check_processor``; it computes nothing sensible on
        others. Empty: on all.
    precision
        In which it is computed: ``"float32"``, ``"bfloat16"`` or ``"int8"``. With bfloat16 weights are float32 here, as
        are the values at cuts; with int8 both are quantised.
    packs
        Whether each process makes packed copies of some weights, see :func:`odin.partitioner.engines.packing.packs`.
    """

    engine: str
    header: bytes
    layers: tuple[LayerNodes, ...]
    cuts: tuple[tuple[Value, ...], ...]
    declared: Mapping[str, bytes]
    processor: str = ""
    packs: bool = False
    precision: str = "float32"

    def layer_model(self, index: int, data_of: Callable[[str], bytes]) -> LayerModel:
        """Return one layer as a model of its own.

        Parameters
        ----------
        index
            The layer's.
        data_of
            Given a weight's name, the further fields of its ``TensorProto``: its data, or where it is.
        """
        layer = self.layers[index]
        if not layer.nodes:
            return LayerModel(b"", (), (), ())
        inputs = [value for value in self.cuts[index] if value.name in layer.reads]
        outputs = [value for value in self.cuts[index + 1] if value.name in layer.makes]
        graph = b"".join(
            (
                *(field(_NODE, node) for node in layer.nodes),
                field(_GRAPH_NAME, b"layer"),
                *(field(_INITIALIZER, constant) for constant in layer.constants.values()),
                *(field(_INITIALIZER, self.declared[name] + data_of(name)) for name in layer.weights),
                *(field(_INPUT, value.info) for value in inputs),
                *(field(_OUTPUT, value.info) for value in outputs),
            )
        )
        return LayerModel(
            self.header + field(_GRAPH, graph),
            tuple(value.name for value in inputs),
            tuple(value.name for value in outputs),
            layer.weights,
        )
