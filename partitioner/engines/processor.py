"""What of the processor decides how ONNX Runtime lays activations out in memory."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_processor", "processor_features"]

_FLAGS = ("avx512f", "avx2", "avx", "asimd")


def processor_features() -> str:
    """Return the instruction set on which the layout of ONNX Runtime's optimised models depends."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    flags = next(
        (line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))), []
    )
    return next((flag for flag in _FLAGS if flag in flags), "")


def check_processor(features: str) -> None:
    """Raise ``ValueError`` if a model was optimised for another kind of processor than this one."""
    here = processor_features()
    if features and features != here:
        raise ValueError(
            f"the model was optimised for a processor with {features}, and this one has {here or 'none of its kind'}: "
            "choose engine 'torch' for stages on processors of several kinds"
        )
