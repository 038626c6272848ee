"""Short names of processes, for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

__all__ = ["is_ray_daemon", "process_name"]

_KERNEL_NAME_LENGTH = 15  # the kernel keeps no more
_LONGEST = 40
_INTERPRETER = re.compile(r"(python|pypy|node|perl|ruby|bash|dash|sh|zsh)[0-9.]*")
_RAY_PROGRAMS = ("gcs_server", "raylet")
_RAY_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE", "ray-dashboard-")
_RAY_SCRIPTS = ("/ray/dashboard/", "/ray/_private/", "/ray/autoscaler/", "/ray/util/client/server/")


def process_name(kernel_name: str, command: Sequence[str]) -> str:
    """Name a process: in full if the kernel has cut it, and an interpreter with its script.

    Parameters
    ----------
    kernel_name
        At most 15 characters, kernel threads in brackets.
    command
        Command line; empty if unknown.

    Returns
    -------
    str
        At most 40 printable characters; anyone may call a process anything, so others are shown as ``?``.

    Examples
    --------
    >>> process_name("python3.11", ["/usr/bin/python3.11", "-u", "/home/me/train.py", "--fast"])
    'python3.11 train.py'
    """
    name = kernel_name
    if command:
        first = PurePosixPath(command[0]).name
        if len(name) >= _KERNEL_NAME_LENGTH and first.startswith(name):
            name = first.split(" ")[0]  # programs that rewrite their title append what they are doing
        if _INTERPRETER.fullmatch(name):
            name = " ".join(filter(None, (name, _script(command))))
    shown = "".join(character if character.isprintable() else "?" for character in name.strip())
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."


def is_ray_daemon(kernel_name: str, command: Sequence[str]) -> bool:
    """Whether a process is one of Ray's own: servers, agents, and workers that wait for work; not an actor."""
    if kernel_name in _RAY_PROGRAMS:
        return True
    title = command[0].strip() if command else kernel_name
    # Ray writes titles over command lines; the kernel's name is the title's beginning.
    if title.startswith(_RAY_TITLES):
        return True
    return _INTERPRETER.fullmatch(kernel_name) is not None and any(
        mark in argument and argument.endswith(".py") for argument in command[1:] for mark in _RAY_SCRIPTS
    )


def _script(command: Sequence[str]) -> str:
    """What an interpreter runs: a module, a script's name, or ``-c`` for a text."""
    arguments = iter(command[1:])
    for argument in arguments:
        if argument == "-m":
            return next(arguments, "")
        if argument == "-c":
            return argument
        if argument in ("-X", "-W"):  # Python's options with a value of their own
            next(arguments, "")
            continue
        if not argument.startswith("-"):
            return PurePosixPath(argument).name
    return ""
