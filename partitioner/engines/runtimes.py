"""Importing the runtimes that compute in PyTorch's place."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["import_runtime"]

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
