"""A whole model in the runtime that a user would pick instead, as fast and as small as that runtime lets it be.

Each is opened with the file that it likes best of those that :mod:`benchmarks.exported` writes, and computes from
arrays into arrays, none of which it copies. Neither torch nor ODIN is imported: a process that serves with one of them
holds nothing else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["RUNTIMES", "Array", "ArraySpec", "Bind", "Form", "check_runtimes", "installed_runtimes", "open_runtime"]

Array = npt.NDArray[Any]
Bind = Callable[[Sequence[Array], Sequence[Array]], Callable[[], None]]
"""From the arrays of inputs and outputs to what computes the ones from the others, again and again."""

RUNTIMES = ("onnxruntime", "openvino")


class ArraySpec(NamedTuple):
    """What describes an array: sizes, bytes from element to element along each axis, type, and bytes in all."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    nbytes: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> ArraySpec:
        """From what JSON makes of it."""
        shape, strides, dtype, nbytes = values
        return cls(tuple(shape), tuple(strides), dtype, nbytes)

    def view(self, buffer: Any, offset: int) -> Array:
        """The array of this kind in memory that is there."""
        return np.ndarray(self.shape, self.dtype, buffer, offset, self.strides)


class Form(NamedTuple):
    """What goes into a model and comes out of it."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]


def installed_runtimes() -> tuple[str, ...]:
    """Those of :data:`RUNTIMES` that are installed here, without importing them."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name) is not None)


def check_runtimes(names: Sequence[str]) -> None:
    """Raise ``ValueError`` if one of the names is neither ``torch`` nor a runtime that is installed."""
    known = ("torch", *installed_runtimes())
    for name in names:
        if name not in known:
            raise ValueError(f"no runtime {name!r} here: choose from {', '.join(known)}, or pip install -e '.[bench]'")


def open_runtime(name: str, folder: Path, *, threads: int = 1, spinning: bool = False) -> Bind:
    """Load the exported model into a runtime.

    Parameters
    ----------
    name
        One of :data:`RUNTIMES`.
    folder
        Where :mod:`benchmarks.exported` has written ``model.onnx`` and ``model.xml``.
    threads
        Compute threads, the calling one among them.
    spinning
        Whether threads without work may wait busily for it: faster if nobody else wants their cores.

    Raises
    ------
    ValueError
        If there is no such runtime.
    """
    if name == "onnxruntime":
        return _open_onnxruntime(folder / "model.onnx", threads, spinning)
    if name == "openvino":
        return _open_openvino(folder / "model.xml", threads)
    raise ValueError(f"no runtime {name!r}: choose from {', '.join(RUNTIMES)}")


def _open_onnxruntime(path: Path, threads: int, spinning: bool) -> Bind:
    """All of its graph optimisations; one session, whose memory the C library gives (smaller, and no slower)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that it optimises for this processor
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = False
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spinning else "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    input_names = [entry.name for entry in session.get_inputs()]
    output_names = [entry.name for entry in session.get_outputs()]

    def bind(inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        binding = session.io_binding()
        for put, names, arrays in (
            (binding.bind_input, input_names, inputs),
            (binding.bind_output, output_names, outputs),
        ):
            for name, array in zip(names, arrays, strict=True):
                _check_plain(array)
                put(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        kept = (inputs, outputs)  # it holds addresses only

        def run(_kept: object = kept) -> None:
            session.run_with_iobinding(binding)

        return run

    return bind


def _open_openvino(path: Path, threads: int) -> Bind:
    """For least latency, held to 32-bit floats (it takes bfloat16 where the CPU has it); its file is mapped."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # the process is bound to its cores
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def bind(inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        request = compiled.create_infer_request()
        for put, arrays in ((request.set_input_tensor, inputs), (request.set_output_tensor, outputs)):
            for index, array in enumerate(arrays):
                _check_plain(array)
                put(index, openvino.Tensor(array, shared_memory=True))
        infer: Callable[[], None] = request.infer
        return infer

    return bind


def _check_plain(array: Array) -> None:
    if not (array.flags.c_contiguous and array.flags.aligned and isinstance(array, np.ndarray)):
        raise ValueError(f"an array of shape {array.shape} and strides {array.strides}: a runtime takes plain ones")
