"""``--output FILE.json`` and ``--plot FILE.png``: checked before anything is measured, written at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console

from odin.partitioner.files import check_different, check_writable, write_whole

__all__ = ["add_kept", "check_kept", "draw", "keep"]


def add_kept(parser: argparse.ArgumentParser, *, output: str, plot: str, log: str = "") -> None:
    """Add the options.

    Parameters
    ----------
    output, plot, log
        What is kept, drawn and logged, for the help; without ``log`` there is no ``--log``.
    """
    kept = parser.add_argument_group("results")
    if log:
        kept.add_argument("--log", metavar="FILE", help=log)
    kept.add_argument("--output", type=Path, metavar="FILE.json", help=output)
    kept.add_argument("--plot", type=Path, metavar="FILE.png", help=f"{plot} (also .svg, .pdf)")


def check_kept(arguments: argparse.Namespace) -> None:
    """Raise ``ValueError`` if one of the files cannot be written, or two are the same."""
    files = {name: Path(value) for name in ("output", "plot", "log") if (value := getattr(arguments, name, None))}
    for name, path in files.items():
        check_writable(path, f"--{name}")
    check_different(**files)
    if arguments.plot is not None:
        from odin_lab.report.figures import KINDS

        if arguments.plot.suffix.lower()[1:] not in KINDS:
            raise ValueError(f"--plot {arguments.plot}: end it in {', '.join(f'.{kind}' for kind in KINDS)}")


def keep(arguments: argparse.Namespace, console: Console, result: Struct) -> None:
    """Write a result as JSON, if that is wanted."""
    if arguments.output is not None:
        write_whole(arguments.output, msgspec.json.encode(result) + b"\n")
        console.print(f"saved in {arguments.output}", style="dim", markup=False)


def draw(arguments: argparse.Namespace, console: Console, plot: Any) -> None:
    """Write a figure, an :class:`odin_lab.report.figures.Plot`, to the file that is asked for."""
    from odin_lab.report.figures import write

    write(plot, arguments.plot)
    console.print(f"drawn in {arguments.plot}", style="dim", markup=False)
