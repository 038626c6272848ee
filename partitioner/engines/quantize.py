"""From a marked float32 model to one of eight bits: static quantisation after training, with examples.

ONNX Runtime's quantiser puts pairs of ``QuantizeLinear`` and ``DequantizeLinear`` around what is computed in int8. So
that the model can be cut at every layer, each layer gets dequantisers of its own, named after it: what crosses a cut is
quantised, a quarter of the bytes. ::

    layer 0: conv -> QuantizeLinear ==uint8==> layer 1: DequantizeLinear -> conv -> QuantizeLinear ==uint8==> ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.export import input_name, layer_of

__all__ = ["Array", "quantize"]


def quantize(path: Path, batches: Sequence[Sequence[Array]], *, narrow_weights: bool) -> tuple[Any, Path]:
    """Quantise a marked model; returns the ``onnx.ModelProto`` and the file that it was written to, beside it.

    Activations become uint8, between the least and the largest value that they have on the examples; weights int8,
    symmetric, with a scale for each channel.

    Parameters
    ----------
    path
        Of the model; it is written anew.
    batches
        The examples' inputs, several samples at a time where the model takes that.
    narrow_weights
        Weights of seven bits: where a processor adds two products in 16 bits they cannot overflow then.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(path, load_external_data=False)
    _drop_identities(model.graph)
    add_pre_process_metadata(model)  # nothing is left to be prepared: the chain is
    onnx.save(model, path)
    target = path.with_name("quantized.onnx")
    quantization.quantize_static(
        str(path),
        str(target),
        _reader(batches),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=narrow_weights,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    model = onnx.load(target)
    _give_each_layer_its_dequantizers(model.graph)
    ONNXModel(model).topological_sort()
    onnx.save(model, target)
    return model, target


def _reader(batches: Sequence[Sequence[Array]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._feeds = self._all()

        def _all(self) -> Iterator[Mapping[str, Array]]:
            for inputs in batches:
                yield {input_name(index): array for index, array in enumerate(inputs)}

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self._feeds, None)

    return Reader()


def _drop_identities(graph: Any) -> None:
    """Read what an ``Identity`` passes on where it comes from: it would be quantised a second time."""
    kept_names = {entry.name for entry in graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = source.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in kept_names:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    nodes = [_copy(node) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)


def _give_each_layer_its_dequantizers(graph: Any) -> None:
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {entry.name for entry in graph.output}
    nodes = []
    for number, node in enumerate(graph.node):
        if node.op_type != "DequantizeLinear" or node.output[0] in outputs:
            nodes.append(node)
            continue
        dequantized = node.output[0]
        by_layer: dict[int, list[Any]] = {}
        for reader in readers.get(dequantized, ()):
            marks = [layer_of(name) for name in (reader.name, *reader.output)]
            by_layer.setdefault(max(0, *(mark for mark in marks if mark is not None), 0), []).append(reader)
        for layer, own in by_layer.items():
            copy = _copy(node)
            copy.name = copy.output[0] = f"layer{layer}_{number}_0_dequantized"
            nodes.append(copy)
            for reader in own:
                for index, name in enumerate(reader.input):
                    if name == dequantized:
                        reader.input[index] = copy.output[0]
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
