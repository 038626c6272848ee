"""The ``odin`` command: one sub-command per module of :mod:`odin.commands`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = ("run", "partition", "cluster")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="odin", description="Interference-aware pipeline-parallel CNN inference.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        importlib.import_module(f"odin.commands.{command}").add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        return int(importlib.import_module(f"odin.commands.{arguments.command}").run(arguments))
    except ValueError as error:
        print(f"odin {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
