"""Names of engines, and whether they can be used here."""

from __future__ import annotations

import importlib.util

__all__ = ["AUTO", "ENGINES", "TORCH", "available_engines", "check_engine", "check_installed", "missing_packages"]

TORCH, AUTO = "torch", "auto"
_NEEDS = {
    TORCH: (),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}
ENGINES = tuple(_NEEDS)
"""What can run layers on CPUs; GPU stages compute with PyTorch."""


def check_engine(engine: str) -> None:
    """Raise ``ValueError`` if there is no engine of that name."""
    if engine not in (*ENGINES, AUTO):
        raise ValueError(f"unknown engine {engine!r}: choose {', '.join(ENGINES)} or {AUTO}")


def missing_packages(engine: str) -> tuple[str, ...]:
    """Return the packages that an engine needs and that are not installed here; nothing is imported."""
    return tuple(package for package in _NEEDS[engine] if importlib.util.find_spec(package) is None)


def available_engines() -> tuple[str, ...]:
    """Return the engines whose packages are all installed here."""
    return tuple(engine for engine in ENGINES if not missing_packages(engine))


def check_installed(engine: str) -> None:
    """Raise ``ValueError``, which names the remedy, if a package is missing that an engine needs."""
    missing = missing_packages(engine)
    if missing:
        raise ValueError(
            f"engine {engine!r} needs {', '.join(missing)}, not installed here: "
            f"pip install 'odin-pipeline[{engine}]', or choose engine 'torch'"
        )
