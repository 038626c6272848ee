"""One layer, or a whole model, in a runtime other than PyTorch: arrays in, arrays out."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odin.partitioner.engines.cut_model import Array, CutModel, LayerModel, field, varint
from odin.partitioner.engines.runtimes import compile_openvino, import_runtime

__all__ = ["Array", "Run", "open_layers", "run_layers"]

Run = Callable[[tuple[Array, ...]], tuple[Array, ...]]
"""From what crosses the cut before a layer to what crosses the one after it."""

_RAW, _EXTERNAL, _LOCATION = 9, 13, 14  # of TensorProto

_SPIN_US = 20
"""For so long a thread of ONNX Runtime waits busily for the next operator, on a core that others may want. Without a
limit MobileNetV2 took 1.8 times as long with a load on one of two cores. Versions before 1.26 do not know it."""


def open_layers(model: CutModel, weights: Mapping[str, Array], *, threads: int = 1) -> list[Run]:
    """Make every layer of a model executable.

    Parameters
    ----------
    weights
        Arrays by name. ONNX Runtime computes with them in place; OpenVINO makes its own copy of each layer's. They may
        be read-only.
    threads
        Compute threads.

    Raises
    ------
    ImportError
        If the runtime is not installed.
    """
    with {"onnxruntime": _onnxruntime, "openvino": _openvino}[model.engine](model, weights, threads) as open_layer:
        return [_open(model, index, open_layer) for index in range(len(model.layers))]


def run_layers(layers: Sequence[Run], inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Run layers one after the other."""
    values = tuple(inputs)
    for layer in layers:
        values = tuple(layer(values))
    return values


def _open(model: CutModel, index: int, open_layer: _OpenLayer) -> Run:
    layer = model.layer_model(index, open_layer.data_of)
    return _around(model, index, layer, open_layer.run(layer) if layer.proto else lambda arrays: ())


class _OpenLayer(NamedTuple):
    """How a runtime is told a weight's data, and how it makes a layer executable."""

    data_of: Callable[[str], bytes]
    run: Callable[[LayerModel], Run]


@contextlib.contextmanager
def _onnxruntime(model: CutModel, weights: Mapping[str, Array], threads: int) -> Iterator[_OpenLayer]:
    import onnxruntime

    def run(layer: LayerModel) -> Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was optimised
        # The allocator of the C library gives the memory of one layer to the next while it is in the cache.
        options.enable_cpu_mem_arena = False
        # Threads of its own. Those of a pool for all sessions could not be kept from spinning between requests.
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # the next layer needs the cores
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        if not model.packs:  # a packed weight would be a copy in every process
            options.add_session_config_entry("session.disable_prepacking", "1")
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in layer.weights}
        for name, value in values.items():
            options.add_initializer(name, value)
        session = onnxruntime.InferenceSession(layer.proto, options, providers=["CPUExecutionProvider"])
        return _onnxruntime_run(session, layer, tuple(values.values()))

    in_file = _external(b"location", b"weights") + varint(_LOCATION << 3) + varint(1)
    # The file that the model names has to exist, though it is not read: what is given under its name comes first.
    with tempfile.TemporaryDirectory(prefix="odin-engine-") as folder:
        Path(folder, "weights").touch()
        yield _OpenLayer(lambda _: in_file, run)


def _onnxruntime_run(session: Any, layer: LayerModel, kept: tuple[Any, ...]) -> Run:
    run, names, outputs = session._sess.run, layer.inputs, list(layer.outputs)
    single = names[0] if len(names) == 1 else None

    def call(arrays: tuple[Array, ...], _kept: object = (session, kept)) -> Any:
        if single is not None:
            return run(outputs, {single: arrays[0]}, None)
        return run(outputs, dict(zip(names, arrays, strict=True)), None)

    return call


@contextlib.contextmanager
def _openvino(model: CutModel, weights: Mapping[str, Array], threads: int) -> Iterator[_OpenLayer]:
    core = import_runtime("openvino").Core()
    hint = "bf16" if model.precision == "bfloat16" else "f32"

    def data_of(name: str) -> bytes:
        return field(_RAW, np.ascontiguousarray(weights[name]).tobytes())

    def run(layer: LayerModel) -> Run:
        compiled = compile_openvino(core, core.read_model(layer.proto, b""), threads=threads, hint=hint)
        return _openvino_run(compiled.create_infer_request(), layer)

    yield _OpenLayer(data_of, run)


def _openvino_run(request: Any, layer: LayerModel) -> Run:
    infer, outputs = request.infer, [request.model_outputs[index] for index in range(len(layer.outputs))]
    names = layer.inputs

    def call(arrays: tuple[Array, ...]) -> Any:
        found = infer(dict(zip(names, arrays, strict=True)), share_inputs=True, share_outputs=False)
        return [found[output] for output in outputs]

    return call


def _around(model: CutModel, index: int, layer: LayerModel, call: Run) -> Run:
    """Give a layer what it reads of the values at the cut, and pass on those that it does not touch."""
    before = [value.name for value in model.cuts[index]]
    after = [value.name for value in model.cuts[index + 1]]
    if tuple(before) == layer.inputs and tuple(after) == layer.outputs:
        return call
    reads = [before.index(name) for name in layer.inputs]
    takes = [
        (True, layer.outputs.index(name)) if name in layer.outputs else (False, before.index(name)) for name in after
    ]

    def run(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        made = call(tuple(arrays[position] for position in reads))
        return tuple(made[position] if own else arrays[position] for own, position in takes)

    return run


def _external(key: bytes, value: bytes) -> bytes:
    return field(_EXTERNAL, field(1, key) + field(2, value))
