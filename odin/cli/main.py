"""The ``odin`` command: one sub-command per module of this package and of ``odin_lab.commands``."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from odin.cli.standard_streams import StandardStreams, say
from odin.errors import OdinError
from odin.process.signals import Signals
from odin.version import __version__

__all__ = ["COMMANDS", "main", "make_parser"]

COMMANDS = (
    *(
        "run",
        "serve",
        "demo",
        "top",
        "replay",
        "inject",
        "partition",
        "engines",
        "record",
        "simulate",
        "report",
        "bench",
        "load",
        "cost",
        "tune",
        "cluster",
        "pack",
        "reduce",
        "profile",
    ),
    "completion",
)


LABORATORY = ("demo", "inject", "record", "simulate", "report", "bench", "load", "cost", "tune")
"""Commands of the laboratory; imported by name, so that serving does not import ``odin_lab``."""
_as_python_writes = warnings.formatwarning


def _module(command: str) -> str:
    return f"odin_lab.commands.{command}" if command in LABORATORY else f"odin.cli.{command}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 failed, 2 wrong usage; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, see
    :mod:`odin.process.signals`. Without ``argv`` this is the program: signals are handled until the process ends.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        if argv is None:
            stack.pop_all()
            warnings.formatwarning = _warning_text
        streams = StandardStreams()
        words = sys.argv[1:] if argv is None else list(argv)
        try:
            status = _run(words, signals)
        except KeyboardInterrupt:
            status = 130
        except BrokenPipeError:  # the reader of the output has closed it, as in "odin ... | head"
            streams.drop_output()
            status = 0
        except SystemExit as ended:  # of argparse, after its message; of rich, if nobody reads
            status = int(ended.code or 0) if isinstance(ended.code, int | None) else 1
            if streams.dropped:
                status = 0 if status == 1 else status
            elif not (problem := _flushed(streams, 0)):
                raise
            else:
                status = problem
        except Exception as error:
            if signals.status is None:
                raise
            # A consequence: whoever signals all processes of a group or a container takes the stages away as well.
            say(f"odin: while ending: {type(error).__name__}: {error}")
            status = 1
        status = _flushed(streams, status)
        signals.finish()
        return status if signals.status is None else signals.status


def make_parser(commands: Iterable[str] = COMMANDS, signals: Signals | None = None) -> argparse.ArgumentParser:
    """The parser of these commands, whose modules are imported for it; neither torch nor Ray is."""
    parser = argparse.ArgumentParser(
        prog="odin",
        description="Interference-aware pipeline-parallel CNN inference.",
        epilog="'odin COMMAND --help' shows the options of a command. docs/README.md lists the documentation. Exit "
        "status of every command: 0 done; 1 failed, at least in part; 2 wrong usage; 130 after Ctrl-C, 143 after "
        "SIGTERM, 129 after SIGHUP.",
    )
    parser.add_argument("--version", action="version", version=f"odin {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    with (signals or Signals()).importing():
        for command in commands:
            importlib.import_module(_module(command)).add_parser(subparsers)
    return parser


def _run(words: Sequence[str], signals: Signals) -> int:
    # Those not asked for take time to import.
    parser = make_parser([command for command in COMMANDS if words[:1] == [command]] or COMMANDS, signals)
    if not words:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(words)
    command = f"odin {arguments.command}"
    try:
        return int(importlib.import_module(_module(arguments.command)).run(arguments))
    except BrokenPipeError:
        raise
    except ValueError as error:
        say(f"{command}: {error}")
        return 2
    except OSError as error:
        say(f"{command}: {_text(error)}")
        return 1
    except OdinError as error:
        say(f"{command}: {type(error).__name__}: {error}")
        return 1
    except MemoryError as error:
        say(f"{command}: {str(error) or 'out of memory'}")
        return 1


def _text(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What is wrong; for whom the program is, not where in its code it was noticed."""
    if category is UserWarning:
        return f"odin: {message}\n"
    return _as_python_writes(message, category, filename, lineno, line)


def _flushed(streams: StandardStreams, status: int) -> int:
    """The status once all is written, another one if it cannot be."""
    problem = streams.flush()
    if problem and not status:  # else it has been told
        say(f"odin: {problem}")
    return status or int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
