"""Importing the runtimes that compute in PyTorch's place."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["compile_openvino", "import_runtime", "keeping_signal_stack"]

_TELEMETRY = "openvino_telemetry"


def import_runtime(name: str) -> ModuleType:
    """Import a runtime, ``"onnxruntime"`` or ``"openvino"``, without news of that being sent to anybody.

    OpenVINO reports its import over the network, from a process that it forks for that. It does without where the
    package that sends is not installed, so that one is hidden meanwhile.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    modules: dict[str, Any] = sys.modules
    hidden = name == "openvino" and _TELEMETRY not in modules
    if hidden:
        modules[_TELEMETRY] = None
    try:
        return importlib.import_module(name)
    finally:
        if hidden and modules.get(_TELEMETRY, name) is None:
            del modules[_TELEMETRY]


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("nbytes", ctypes.c_size_t))


@contextlib.contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Leave this thread's alternate signal stack as it is; for compiling with OpenVINO.

    That sets one of its own, and unmaps it with the last compiled model, in whichever thread that is: the next signal,
    such as Ctrl-C, would end the process.
    """
    libc, before = ctypes.CDLL(None), _SignalStack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)


def compile_openvino(core: Any, model: Any, *, threads: int = 1, hint: str = "f32") -> Any:
    """Compile a model for this processor, for least latency, in a process that is pinned.

    Parameters
    ----------
    core, model
        An ``openvino.Core``, and a model or the path of one.
    hint
        Precision inside: ``"f32"``, or ``"bf16"``.
    """
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    with keeping_signal_stack():
        return core.compile_model(model, "CPU", {**options, "ENABLE_CPU_PINNING": False})
