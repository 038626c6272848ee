"""What of the processor decides how ONNX Runtime lays activations out in memory, and which precisions are fast."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BFLOAT16", "FLOAT32", "INT8", "check_processor", "has_feature", "processor_features"]

_LAYOUTS = ("avx512f", "avx2", "avx", "asimd")
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
_FEATURES = {
    BFLOAT16: ("avx512_bf16", "amx_bf16"),
    # Others saturate the sum of two products of unsigned and signed bytes; Arm's processors never do.
    INT8: ("avx512_vnni", "avx_vnni", "amx_int8", "asimd"),
}
"""Arithmetic that a model may need, and the flags of processors that have it."""


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    lines = (line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, ()))


def processor_features() -> str:
    """Return the instruction set on which the layout of ONNX Runtime's optimised models depends."""
    flags = _cpu_flags()
    return next((flag for flag in _LAYOUTS if flag in flags), "")


def has_feature(feature: str) -> bool:
    """Whether this processor has instructions for :data:`BFLOAT16`, or for exact products of :data:`INT8`."""
    return not _cpu_flags().isdisjoint(_FEATURES[feature])


def check_processor(features: str) -> None:
    """Raise ``ValueError`` if a model was made for another kind of processor than this one.

    Parameters
    ----------
    features
        Words: a layout of :func:`processor_features`, and arithmetic of :func:`has_feature`.
    """
    here = processor_features()
    for word in features.split():
        if word in _FEATURES:
            if not has_feature(word):
                raise ValueError(
                    f"the model was made for processors with {word} instructions ({', '.join(_FEATURES[word])}), and "
                    "this one has none: choose precision 'float32' for stages on processors of several kinds"
                )
        elif word != here:
            raise ValueError(
                f"the model was optimised for a processor with {word}, and this one has {here or 'none of its kind'}: "
                "choose engine 'torch' for stages on processors of several kinds"
            )
