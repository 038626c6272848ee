"""Number formats in which stages compute, by name, and which engine has which."""

from __future__ import annotations

from odin.partitioner.engines.names import AUTO, ENGINES
from odin.partitioner.engines.processor import BFLOAT16, FLOAT32, INT8, has_feature

__all__ = [
    "BFLOAT16",
    "CPU_PRECISIONS",
    "FLOAT32",
    "GPU_PRECISIONS",
    "INT8",
    "PRECISION_NAMES",
    "check_precision",
    "why_not_on_cpu",
]

GPU_PRECISIONS = (FLOAT32, "tf32", "float16", BFLOAT16)
"""Those of GPU stages; ``tf32`` is float32 with products of 10 bits of mantissa (TensorFloat-32)."""
PRECISION_NAMES = (*GPU_PRECISIONS, INT8)
"""What ``precision`` may be."""
_ENGINES = {FLOAT32: ENGINES, BFLOAT16: ("openvino",), INT8: ("onnxruntime", "openvino")}
"""What computes in it on CPU cores."""
CPU_PRECISIONS = tuple(_ENGINES)
"""Those of CPU stages."""


def check_precision(precision: str) -> None:
    """Raise ``ValueError`` unless it is one of :data:`PRECISION_NAMES`."""
    if precision not in PRECISION_NAMES:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISION_NAMES)}")


def why_not_on_cpu(precision: str, engine: str, *, on_this_machine: bool = True) -> str:
    """Say why an engine cannot compute in a precision on a processor, and what can; empty if it can.

    Parameters
    ----------
    precision
        One of :data:`PRECISION_NAMES`.
    engine
        An engine's name, or ``"auto"``.
    on_this_machine
        Whether this machine's processor is the one.
    """
    engines = _ENGINES.get(precision, ())
    if not engines:
        return (
            f"precision {precision!r} is one of GPU stages, and CPU cores have no instructions for it: choose "
            f"{', '.join(_ENGINES)}"
        )
    if engine not in (*engines, AUTO):
        return (
            f"engine {engine!r} does not compute in {precision} on CPU cores: choose engine "
            f"{' or '.join(map(repr, engines))}"
        )
    if precision == BFLOAT16 and on_this_machine and not has_feature(BFLOAT16):
        return (
            "this processor has no bfloat16 instructions (avx512_bf16 or amx_bf16) and would only emulate them, which "
            "was measured to take 9.6 times as long as float32: choose precision 'float32' or 'int8'"
        )
    return ""
