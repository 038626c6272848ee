"""Kinds of arguments that several commands have."""

from __future__ import annotations

import argparse

from odin.partitioner.engines.names import AUTO, ENGINES, TORCH
from odin.stages.compute.precision import FLOAT32, PRECISION_NAMES

__all__ = ["add_engine", "add_precision", "positive", "positive_number"]


def positive(text: str) -> int:
    """Parse an integer >= 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def positive_number(text: str) -> float:
    """Parse a number > 0, which may be infinite."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_engine(parser: argparse._ActionsContainer) -> None:
    """Add the option that chooses the engine."""
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, AUTO),
        help=f"what computes layers on CPU cores; {AUTO}: the fastest that is installed (default {TORCH}, for an .onnx "
        f"file {AUTO})",
    )


def add_precision(parser: argparse._ActionsContainer, *, default: str | None = FLOAT32, checked: bool = True) -> None:
    """Add the options that choose the number format.

    Parameters
    ----------
    checked
        Whether argparse checks the name; otherwise whoever reads it does.
    """
    parser.add_argument(
        "--precision",
        choices=PRECISION_NAMES if checked else None,
        default=default,
        help="number format: float32; tf32, float16 or bfloat16 of GPU stages; bfloat16 (engine openvino) or int8 "
        "(engine onnxruntime or openvino, with --calibration) of CPU stages (default float32)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="images by which the model is quantised to int8; 128 of them are taken",
    )
