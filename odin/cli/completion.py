"""``odin completion bash | zsh | tcsh``: what a shell needs to complete commands, options and file names.

Exit status: 0; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

__all__ = ["add_parser", "run"]

_SHELLS = ("bash", "zsh", "tcsh")
_FILES, _FOLDERS = ("FILE", "PATH", "LOG", "RESULTS"), ("DIR", "FOLDER")
"""What the names of arguments have in them that are files, or folders."""


def add_parser(subparsers: Any) -> None:
    """Add ``odin completion`` and its argument."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "completion",
        help="print a script for completion by the tab key",
        description="Print a script that lets a shell complete commands, options and file names by the tab key.",
        epilog='For bash: odin completion bash > ~/.local/share/bash-completion/completions/odin; or eval "$(odin '
        'completion bash)" in ~/.bashrc. For zsh: odin completion zsh > _odin in a folder of $fpath.',
    )
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit status."""
    import shtab

    from odin.cli.main import make_parser

    parser = make_parser()
    for action in _actions(parser):
        words = str(action.metavar).upper()
        if any(word in words for word in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
        elif any(word in words for word in _FOLDERS):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of those within it."""
    for action in parser._actions:  # argparse has no other way
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
