"""Number formats of GPU stages, by name."""

from __future__ import annotations

__all__ = ["PRECISION_NAMES", "check_precision"]

PRECISION_NAMES = ("float32", "tf32", "float16", "bfloat16")
"""What ``precision`` may be; ``tf32`` is float32 with products of 10 bits of mantissa (TensorFloat-32)."""


def check_precision(precision: str) -> None:
    """Raise ``ValueError`` unless it is one of :data:`PRECISION_NAMES`."""
    if precision not in PRECISION_NAMES:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISION_NAMES)}")
