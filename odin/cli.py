"""The ``odin`` command: one sub-command per module of :mod:`odin.commands`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = ("run", "demo", "top", "replay", "inject", "partition", "record", "simulate", "report", "bench", "cluster")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="odin", description="Interference-aware pipeline-parallel CNN inference.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if argv is None else list(argv)
    asked = [command for command in COMMANDS if words[:1] == [command]]
    for command in asked or COMMANDS:  # those not asked for may take seconds to import
        importlib.import_module(f"odin.commands.{command}").add_parser(subparsers)
    arguments = parser.parse_args(words)
    try:
        return int(importlib.import_module(f"odin.commands.{arguments.command}").run(arguments))
    except ValueError as error:
        print(f"odin {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read the output has gone, as in "odin ... | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 0


if __name__ == "__main__":
    sys.exit(main())
