"""Kinds of arguments that several commands have."""

from __future__ import annotations

import argparse

from odin.partitioner.engines.names import AUTO, ENGINES, TORCH

__all__ = ["add_engine", "positive"]


def positive(text: str) -> int:
    """Parse an integer >= 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the engine."""
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, AUTO),
        help=f"what computes layers on CPU cores; {AUTO}: the fastest that is installed (default {TORCH}, for an .onnx "
        f"file {AUTO})",
    )
