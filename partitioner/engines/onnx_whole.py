"""A whole ONNX file in a runtime: what its layers are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from odin.partitioner.engines.cut_model import Array
from odin.partitioner.engines.export import ExportError
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.partitioner.engines.packing import packs
from odin.partitioner.engines.runtimes import compile_openvino, import_runtime

__all__ = ["Array", "Whole", "difference", "open_whole", "rounding"]

Whole = Callable[[Sequence[Array]], tuple[Array, ...]]

_TOLERANCE = 1e-4
"""Of the largest magnitude: kernels for several samples sum in other orders than those for one."""


def open_whole(file: OnnxFile, engine: str) -> Whole:
    """Make the file itself, as it is, executable.

    Raises
    ------
    ExportError
        If the runtime does not take it; has the runtime's message.
    ImportError
        If it is not installed.
    """
    try:
        return {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](file)
    except ImportError:
        raise
    except Exception as error:  # each runtime has its own kinds
        raise _refusal(file, engine, error) from error


def _onnxruntime(file: OnnxFile) -> Whole:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not packs(file.load().graph.node):  # as in stages: the kernels for packed weights round otherwise
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in file.outputs]

    def run(inputs: Sequence[Array]) -> tuple[Array, ...]:
        feeds = {value.name: array for value, array in zip(file.inputs, inputs, strict=True)}
        return tuple(session.run(names, feeds))

    return _telling(file, "onnxruntime", run)


def _openvino(file: OnnxFile) -> Whole:
    openvino = import_runtime("openvino")

    core = openvino.Core()
    if file.has_functions:  # it does not know them
        model = core.read_model(file.load(all_data=True).SerializeToString(), b"")
    else:
        model = core.read_model(str(file.path))
    compiled = compile_openvino(core, model)
    request = compiled.create_infer_request()

    def run(inputs: Sequence[Array]) -> tuple[Array, ...]:
        feeds = {value.name: array for value, array in zip(file.inputs, inputs, strict=True)}
        found = request.infer(feeds, share_outputs=False)
        return tuple(np.array(found[output]) for output in compiled.outputs)

    return _telling(file, "openvino", run)


def _telling(file: OnnxFile, engine: str, run: Whole) -> Whole:
    def call(inputs: Sequence[Array]) -> tuple[Array, ...]:
        try:
            return run(inputs)
        except Exception as error:
            raise _refusal(file, engine, error) from error

    return call


def _refusal(file: OnnxFile, engine: str, error: Exception) -> ExportError:
    text = " ".join(str(error).split()) or type(error).__name__
    return ExportError(f"model {file.path}: {engine} does not take it: {text}")


def difference(found: Sequence[Array], expected: Sequence[Array], *, tolerance: float = _TOLERANCE) -> str:
    """Say how arrays deviate from others by more than rounding; an empty text if they do not.

    NaN and infinity have to be where they are expected.
    """
    for index, (array, wanted) in enumerate(zip(found, expected, strict=True)):
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            return f"output {index} is {array.dtype}{array.shape}, not {wanted.dtype}{wanted.shape}"
        if array.dtype.kind not in "fc":
            if not np.array_equal(array, wanted):
                return f"output {index} has other {wanted.dtype} values"
            continue
        finite = np.isfinite(wanted)
        if not np.array_equal(array[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(array[finite]).all():
            return f"output {index} has NaN or infinity elsewhere"
        if finite.any():
            scale = float(np.abs(wanted[finite]).max())
            error = float(np.abs(array[finite].astype(np.complex128) - wanted[finite]).max())
            if not error <= tolerance * scale:
                return f"output {index} is off by {error:.2g} where the largest is {scale:.2g}"
    return ""


def rounding(dtypes: Iterable[str]) -> float:
    """Largest error by rounding to one of these types, of the largest magnitude; 0.001 for ``"float16"``.

    Several in a row: values at cuts are rounded to their type, which runtimes do not do within a piece.
    """
    kinds = (np.dtype(dtype) for dtype in dtypes)
    return 4 * max((float(np.finfo(kind).eps) for kind in kinds if kind.kind == "f"), default=0.0)
