"""An ONNX file as a chain of layers, which ONNX Runtime or OpenVINO compute; there is no PyTorch code of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odin.partitioner.chain import Chain, Layer, Program, _Call
from odin.partitioner.engines.names import TORCH, available_engines
from odin.partitioner.engines.onnx_costs import flops_of, moved_nbytes
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.partitioner.engines.onnx_graph import OnnxGraph, read_graph, write_model
from odin.partitioner.engines.onnx_nodes import reads
from odin.partitioner.engines.onnx_shapes import value_specs
from odin.partitioner.engines.onnx_trial import try_file
from odin.partitioner.engines.onnx_whole import Array
from odin.partitioner.graph.capture import Slot
from odin.partitioner.graph.cuts import Crossing, choose_cuts
from odin.partitioner.graph.names import layer_names
from odin.partitioner.graph.values import ValueSpec

__all__ = ["OnnxChain", "build_onnx_chain", "onnx_engines"]

# as for PyTorch's graphs, see odin.partitioner.check.agreement
_FLOPS_PER_S = 100e9
_BYTES_PER_S = 10e9


class OnnxChain(Chain):
    """An ONNX model as an ordered list of layers; made by :func:`build_onnx_chain`.

    What it returns is the tensor if the file has one output, otherwise a tuple of them in the file's order.

    Attributes
    ----------
    file
        Where it comes from.
    example
        Inputs of one call.
    """

    def __init__(
        self,
        file: OnnxFile,
        graph: OnnxGraph,
        *,
        name: str,
        layers: tuple[Layer, ...],
        cuts: Sequence[int],
        inputs: tuple[ValueSpec, ...],
        example: tuple[Array, ...],
        dynamic_batch: bool,
    ) -> None:
        count, results = len(inputs), len(layers[-1].output)
        call: Any = SimpleNamespace(
            arguments=[Slot(index) for index in range(count)],
            in_spec=pytree.tree_flatten(tuple(range(count)))[1],
            outcome=Slot(0) if results == 1 else tuple(Slot(index) for index in range(results)),
        )
        super().__init__(
            name=name,
            layers=(),
            program=Program(()),
            state={},
            inputs=inputs,
            dynamic_batch=dynamic_batch,
            call=_Call(call, (torch.device("cpu"),) * count),
            channels_last=False,
            captured_with="onnx",
        )
        self.layers = layers
        self.file = file
        self.example = example
        self._graph: OnnxGraph | None = graph
        self._cuts = tuple(cuts)
        self.fingerprint = self._digest(graph)

    def write(self, path: Path) -> Any:
        """Write the model with its layers in its names, the weights in a file beside it; returns it without them.

        As :func:`odin.partitioner.engines.export.export` does with other chains.
        """
        if self._graph is None:
            raise RuntimeError(f"the weights of {self.name} were released; build the chain anew")
        model = self._graph.marked(self._cuts)
        write_model(model, self._graph.weights, path)
        return model

    def run(
        self, values: tuple[Tensor, ...], first: int = 0, last: int | None = None, *, keep_nan: bool = False
    ) -> tuple[Tensor, ...]:
        """Raise ``RuntimeError``: its layers run in stages, and whole it runs in any runtime."""
        raise RuntimeError(
            f"{self.name} has no PyTorch code: serve it with odin.Pipeline, or run {self.file.path} with a runtime"
        )

    def release_weights(self) -> None:
        """See :meth:`Chain.release_weights`."""
        super().release_weights()
        self._graph = None

    def _digest(self, graph: OnnxGraph) -> str:
        digest = hashlib.sha256()
        digest.update(graph.marked(self._cuts).SerializeToString(deterministic=True))
        described = [(name, array.shape, array.dtype.str) for name, array in sorted(graph.weights.items())]
        digest.update(repr((self.layers, self.inputs, self.dynamic_batch, described)).encode())
        return digest.hexdigest()


def onnx_engines() -> tuple[str, ...]:
    """Return the installed engines that take ONNX files.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = tuple(engine for engine in available_engines() if engine != TORCH)
    if not found:
        raise ValueError(
            "an ONNX file needs ONNX Runtime or OpenVINO, and neither is installed here: "
            "pip install 'odin-pipeline[onnxruntime]' or 'odin-pipeline[openvino]'"
        )
    return found


def build_onnx_chain(
    file: OnnxFile,
    example: Sequence[Array],
    *,
    name: str,
    engine: str | None = None,
    coarse_share: float = 0.10,
    minimum_share: float = 0.005,
    minimum_s: float = 0.0,
) -> OnnxChain:
    """Cut an ONNX model into layers.

    Parameters
    ----------
    file
        The model.
    example
        Inputs of one call, of the sizes of the requests to come; the leading one may be another where the file leaves
        it free and samples turn out to be independent of each other.
    name
        The chain's name.
    engine
        With which it is tried; None: any that is installed and takes it.
    coarse_share, minimum_share, minimum_s
        As for :func:`odin.partitioner.chain.build_chain`.

    Raises
    ------
    ExportError
        If the runtime does not take the model, or results differ from call to call.
    ValueError
        If the graph is not in order.
    """
    inputs = tuple(np.array(array, order="C") for array in example)
    outputs, any_batch = try_file(file, inputs, onnx_engines() if engine is None else (engine,))
    free = "batch" if any_batch else None
    graph = read_graph(file, [(free or array.shape[0], *array.shape[1:]) if array.ndim else () for array in inputs])
    specs = value_specs(graph, inputs)
    costs, flops, heavy = _estimates(graph, specs)
    crossings = [_crossing(names, specs) for names in graph.crossing()]
    if sum(costs) > 0:
        minimum_share = min(1.0, max(minimum_share, minimum_s / sum(costs)))
    cuts = choose_cuts(costs, heavy, crossings, coarse_share=coarse_share, minimum_share=minimum_share)
    layers = _layers(graph, cuts, specs, flops, heavy, tuple(map(_spec, outputs)))
    return OnnxChain(
        file,
        graph,
        name=name,
        layers=layers,
        cuts=cuts,
        inputs=tuple(map(_spec, inputs)),
        example=inputs,
        dynamic_batch=any_batch,
    )


def _estimates(graph: OnnxGraph, specs: dict[str, ValueSpec]) -> tuple[list[float], list[int], list[bool]]:
    """Seconds and floating point operations of each step, and whether it is worth a layer of its own."""
    flops = [flops_of(step, specs) for step in graph.steps]
    moved = [moved_nbytes(step, specs) for step in graph.steps]
    costs = [max(work / _FLOPS_PER_S, nbytes / _BYTES_PER_S) for work, nbytes in zip(flops, moved, strict=True)]
    return costs, flops, [amount > 0 for amount in (flops if any(flops) else moved)]


def _crossing(names: Sequence[str], specs: dict[str, ValueSpec]) -> Crossing:
    known = [specs[name] for name in names if name in specs]
    return Crossing(bool(names) and len(known) == len(names), len(known), sum(spec.nbytes for spec in known))


def _layers(
    graph: OnnxGraph,
    cuts: Sequence[int],
    specs: dict[str, ValueSpec],
    flops: Sequence[int],
    heavy: Sequence[bool],
    outputs: tuple[ValueSpec, ...],
) -> tuple[Layer, ...]:
    starts = [0, *(cut + 1 for cut in cuts)]
    ranges = list(zip(starts, [*starts[1:], len(graph.steps)], strict=True))
    paths = [_path(step, graph) for step in graph.steps]
    names = layer_names([[(paths[i], heavy[i]) for i in range(first, last)] for first, last in ranges])
    crossing = graph.crossing()
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    layers = []
    for index, (first, last) in enumerate(ranges):
        read = {name for step in graph.with_folded(graph.steps[first:last]) for name in reads(step)}
        layers.append(
            Layer(
                index=index,
                name=names[index],
                flops=sum(flops[first:last]),
                parameter_nbytes=sum(specs[name].nbytes for name in read & constants),
                output=tuple(specs[name] for name in crossing[last - 1]) if last < len(graph.steps) else outputs,
            )
        )
    return tuple(layers)


def _path(step: Any, graph: OnnxGraph) -> str:
    """Module that a step comes from, as far as its exporter has said it: ``"layer3.2.conv1"``."""
    scopes = next((e.value for e in step.metadata_props if e.key == "pkg.torch.onnx.name_scopes"), "")
    inside = [scope.strip(" '\"") for scope in scopes.strip("[]").split(",")][:-1]
    if any(inside):  # PyTorch: each scope has the names of those around it in its own
        return inside[-1]
    # TensorFlow, and PyTorch of old: "/layer1/layer1.0/conv1/Conv"
    path: list[str] = []
    for part in (step.name or graph.names.get(step.output[0], step.op_type)).strip("/").split("/"):
        path = [*path[:-1], part] if path and part.startswith(f"{path[-1]}.") else [*path, part]
    return ".".join(path[:-1] or path) or step.op_type


def _spec(array: Array) -> ValueSpec:
    return ValueSpec("tensor", array.shape, array.dtype.name, math.prod(array.shape) * array.itemsize)
