"""Which Python code a call executes outside of PyTorch, and whether anything from outside the program may come in."""

from __future__ import annotations

import dis
import functools
import gc
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch

__all__ = [
    "Executed",
    "NotCoveredError",
    "References",
    "check_home",
    "home_of_builtin",
    "is_library",
    "is_standard",
    "references",
]

_LIBRARIES = tuple(str(Path(str(library.__file__)).parent) for library in (torch, np))
_STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen")
_INSTALLED = {"site-packages", "dist-packages"}
_OURS = str(Path(__file__).parents[1])

_COMPUTING = frozenset(
    {
        "__future__", "abc", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum",
        "fractions", "functools", "heapq", "itertools", "logging", "math", "numbers", "operator", "re", "statistics",
        "string", "types", "typing", "typing_extensions", "warnings",
    }
)  # fmt: skip
"""Modules of the standard library that only compute: no file, no environment, no time."""
_OUTSIDE = {
    "builtins": frozenset(
        {"open", "input", "exec", "eval", "compile", "__import__", "globals", "breakpoint", "id", "hash"}
    ),
    "torch": frozenset({"load", "from_file", "hub", "classes", "environ", "getenv"}),
    "numpy": frozenset({"load", "fromfile", "memmap", "loadtxt", "genfromtxt", "open_memmap", "environ", "getenv"}),
}
"""Ways to read files and other things that are not the program's own."""


class NotCoveredError(Exception):
    """A model may depend on something that cannot be compared with what it was at another start; says what."""


class References(NamedTuple):
    """Names in a function's code."""

    globals: frozenset[str]
    attributes: frozenset[str]
    modules: frozenset[str]


@functools.lru_cache(maxsize=4096)
def references(code: CodeType) -> References:
    """Return what a function's code, and that of functions inside, reads by name."""
    globals_, attributes, modules = set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            globals_.add(str(instruction.argval))
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"):
            attributes.add(str(instruction.argval))
        elif instruction.opname == "IMPORT_NAME":
            modules.add(str(instruction.argval))
    for inner in (references(constant) for constant in code.co_consts if isinstance(constant, CodeType)):
        globals_ |= inner.globals
        attributes |= inner.attributes
        modules |= inner.modules
    return References(frozenset(globals_), frozenset(attributes), frozenset(modules))


def is_library(module: str) -> bool:
    """Whether a module is PyTorch's or numpy's, which their versions stand for."""
    return module.partition(".")[0] in ("torch", "numpy")


def is_standard(module: str) -> bool:
    """Whether a module belongs to Python."""
    return module.partition(".")[0] in sys.stdlib_module_names or module.startswith("importlib.")


def check_home(module: str, name: str = "") -> None:
    """Raise :class:`NotCoveredError` if ``name`` in ``module``, of Python or a library, may read what is outside.

    An empty name stands for the module itself.
    """
    top = module.partition(".")[0]
    if is_standard(module) and not {top, top.lstrip("_")} & _COMPUTING:
        raise NotCoveredError(f"it uses {module}{name and '.'}{name}")
    if name in _OUTSIDE.get(top, ()):
        raise NotCoveredError(f"it uses {name}")


class _Ran(NamedTuple):
    globals: dict[str, Any]
    closure: tuple[Any, ...]


class Executed:
    """While it is entered, notices the Python code that this thread executes.

    Garbage is not collected meanwhile: finalizers of whatever else is in the process would run in this thread.

    Attributes
    ----------
    codes
        Code that is neither PyTorch's, numpy's nor Python's, with its globals and what its free variables held first.
    problem
        The first thing called from such code that may bring in something from outside; empty if nothing did.
    """

    def __init__(self) -> None:
        self.codes: dict[CodeType, _Ran] = {}
        self.problem = ""
        self._began = self._collected = False
        self._importing: FrameType | None = None

    def __enter__(self) -> Self:
        if sys.getprofile() is None:
            self._began = True
            self._collected = gc.isenabled()
            gc.disable()
            sys.setprofile(self._see)
        else:
            self.problem = "a profiler is at work"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._began:
            sys.setprofile(None)
            if self._collected:
                gc.enable()

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._importing is not None:  # what a module does when it is loaded shows in its globals
            if event == "return" and frame is self._importing:
                self._importing = None
            return
        try:
            if event == "call" and frame.f_code.co_filename.startswith("<frozen importlib"):
                self._importing = frame
            elif event == "call":
                self._called(frame)
            elif event == "c_call" and _whose(frame.f_code.co_filename) == "model":
                check_home(home_of_builtin(argument), argument.__name__)
        except NotCoveredError as found:
            self.problem = self.problem or str(found)
        except Exception as error:  # a model's own objects may do anything; it must not fail because it is watched
            self.problem = self.problem or f"{type(error).__name__} while it was watched"

    def _called(self, frame: FrameType) -> None:
        code = frame.f_code
        whose = _whose(code.co_filename)
        if whose == "model":
            if code not in self.codes:
                held = frame.f_locals if code.co_freevars else {}
                closure = tuple(held[name] for name in code.co_freevars if name in held)
                self.codes[code] = _Ran(frame.f_globals, closure)
        elif whose == "standard" and frame.f_back is not None and _whose(frame.f_back.f_code.co_filename) == "model":
            check_home(str(frame.f_globals.get("__name__")), code.co_name)


@functools.lru_cache(maxsize=4096)
def _whose(file: str) -> str:
    if file.startswith(_OURS):
        return "ours"
    if file.startswith(_LIBRARIES):
        return "library"
    if file.startswith(_STANDARD) and not _INSTALLED & set(Path(file).parts):
        return "standard"
    return "model"


def home_of_builtin(function: Any) -> str:
    """Module of a function not written in Python; :class:`NotCoveredError` unless it is Python's or a library's."""
    module = getattr(function, "__module__", None)
    if isinstance(module, str):
        home = module
    else:
        owner = getattr(function, "__self__", None)
        kind = owner if isinstance(owner, (type, ModuleType)) else type(owner)
        home = kind.__name__ if isinstance(kind, ModuleType) else str(kind.__module__)
    if not is_standard(home) and not is_library(home):
        loaded = sys.modules.get(home)
        file = str(getattr(loaded, "__file__", None) or "")
        if not file.endswith(".py"):  # written in another language: what it does cannot be seen
            raise NotCoveredError(f"it calls {home}.{function.__name__}, which is no Python code")
    return home
