"""Policies, detectors and callbacks of the user's: what they are called, and where in their own files they failed."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import odin.monitor
import odin.partitioner
import odin.stages
from odin.partitioner.policies import GivenPolicy, Policy, Setting

__all__ = ["describe", "name_of", "start_policy", "where_raised"]


def _folder(package: ModuleType) -> str:
    return f"{Path(package.__file__ or '').parent}{os.sep}"


_OURS = tuple(
    _folder(package)
    for package in (sys.modules[__name__.partition(".")[0]], odin.stages, odin.partitioner, odin.monitor)
)
_FAKES = f"{_OURS[0]}testing{os.sep}"
"""Fakes that stand in for the user's own policies and detectors, and count as the user's files."""
_PYTHONS = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def describe(error: BaseException) -> str:
    """``repr(error)``, or the class alone where that raises."""
    try:
        return repr(error)
    except BaseException:
        return f"{type(error).__name__}(...)"


def name_of(policy: Policy) -> str:
    """A policy's name as text, whatever it is."""
    try:
        return str(policy.name)
    except BaseException:
        return type(policy).__name__


def start_policy(policy: Policy, setting: Setting) -> None:
    """Start a policy; ``ValueError`` names it and the place if it raises."""
    try:
        policy.start(setting)
    except Exception as error:
        raise ValueError(
            f"policy {name_of(policy)} raised {describe(error)} at its start{where_raised(error, policy, 'start')}"
        ) from error


def where_raised(error: BaseException, owner: Any = None, method: str = "") -> str:
    """The place in the user's own files where an error arose, as text for a message.

    Parameters
    ----------
    error
        What was raised, by their code or because of what it gave.
    owner, method
        The object whose code ran, if known, and which method was called.

    Returns
    -------
    str
        `` (FILE, line N)``: the innermost place in the owner's files, or in others that are neither ODIN's nor a
        library's; else where the method begins, if that is the user's; else the innermost place. Empty without any.
    """
    if isinstance(owner, GivenPolicy):
        owner = owner.policy
    own = _files(type(owner)) if owner is not None else set()
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [place for place in places if place[0] in own or not _is_library(place[0])]
    if not theirs:
        code = getattr(inspect.unwrap(getattr(type(owner), method, _nothing)), "__code__", None)
        if code is not None and code.co_filename in own:
            theirs = [(code.co_filename, code.co_firstlineno)]
    found = theirs or places
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""


def _nothing() -> None:
    """Stand for a method that there is not."""


def _files(cls: type) -> set[str]:
    """Files that the methods of a class and of those it stands on are written in, without ODIN's and Python's."""
    functions = [inspect.unwrap(member) for base in cls.__mro__ for member in vars(base).values() if callable(member)]
    files = {code.co_filename for function in functions if (code := getattr(function, "__code__", None)) is not None}
    return {file for file in files if not (_is_ours(file) or file.startswith("<frozen") or _is_pythons(file))}


def _is_ours(file: str) -> bool:
    return file.startswith(_OURS) and not file.startswith(_FAKES)


def _is_library(file: str) -> bool:
    installed = _is_ours(file) or any(part in file for part in _INSTALLED)
    return installed or _is_pythons(file) or (file.startswith("<") and file != "<stdin>")


def _is_pythons(file: str) -> bool:
    return file.startswith(_PYTHONS) and not any(part in file for part in _INSTALLED)
