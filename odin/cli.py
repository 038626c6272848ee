"""The ``odin`` command: one sub-command per module of :mod:`odin.commands`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from odin.signals import Signals

__all__ = ["main"]

COMMANDS = ("run", "demo", "top", "replay", "inject", "partition", "record", "simulate", "report", "bench", "cluster")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 failed, 2 wrong usage; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, see :mod:`odin.signals`.
    Without ``argv`` this is the program: signals are handled until the process ends.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        if argv is None:
            stack.pop_all()
        words = sys.argv[1:] if argv is None else list(argv)
        try:
            status = _run(words, signals)
        except KeyboardInterrupt:
            status = 130
        except BrokenPipeError:  # who read the output has gone, as in "odin ... | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            status = 0
        except Exception as error:
            if signals.status is None:
                raise
            # A consequence: whoever signals all processes of a group or a container takes the stages away as well.
            _say(f"odin: while ending: {type(error).__name__}: {error}")
            status = 1
        signals.finish()
        return status if signals.status is None else signals.status


def _run(words: Sequence[str], signals: Signals) -> int:
    parser = argparse.ArgumentParser(prog="odin", description="Interference-aware pipeline-parallel CNN inference.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = [command for command in COMMANDS if words[:1] == [command]]
    for command in asked or COMMANDS:  # those not asked for may take seconds to import
        with signals.importing():
            module = importlib.import_module(f"odin.commands.{command}")
        module.add_parser(subparsers)
    arguments = parser.parse_args(words)
    try:
        return int(importlib.import_module(f"odin.commands.{arguments.command}").run(arguments))
    except ValueError as error:
        _say(f"odin {arguments.command}: {error}")
        return 2


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:  # nobody is there to read it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    sys.exit(main())
