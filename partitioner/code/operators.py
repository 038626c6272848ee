"""What a graph calls that is not PyTorch's own: which module or library defines it, so that stages can load it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._library.custom_ops import OPDEFS

from odin.partitioner.graph.capture import TraceError

__all__ = ["Home", "homes_of", "load_home"]

_TORCH = str(Path(torch.__file__).parent)


class Home(NamedTuple):
    """What to load in another process.

    Attributes
    ----------
    name
        A module; the path of a library if ``folder`` is None.
    folder
        Where it was found here: looked at last, if an import does not find it.
    """

    name: str
    folder: str | None


# What registers on somebody's behalf: torch.library.define, custom_op.
_IN_BETWEEN = (f"{_TORCH}/library.py", f"{_TORCH}/_library/custom_ops.py")
_BUILT_IN = ("aten::", "prims::", "prim::", "mkldnn::", "mkl::", "onednn::", "quantized::")


def homes_of(function: Callable[..., Any]) -> tuple[Home, ...]:
    """Return what another process must load to have an operator or function, for :func:`load_home`.

    Parameters
    ----------
    function
        Anything that a graph calls; nothing is needed for what is PyTorch's or Python's own.

    Raises
    ------
    TraceError
        If the operator is defined where no other process can get it from.
    """
    if isinstance(function, torch._ops.OpOverload):
        name = function.name().partition(".")[0]
    elif isinstance(function, torch._ops.OpOverloadPacket):
        name = function._qualified_op_name
    else:
        module = str(getattr(function, "__module__", None))
        return (_home(module),) if _is_foreign(module) else ()
    if name.startswith(_BUILT_IN):
        return ()
    registered = re.search(r"^debug: registered at (.*):\d+", torch._C._dispatch_dump(name), re.MULTILINE)
    file = registered.group(1) if registered else ""
    home = _module_of(name, file)
    if home is not None:
        if home == "__main__" or not _can_be_imported(home):
            raise TraceError(
                f"the operator {name} is defined in {home}, which stages, processes of their own, cannot import: "
                "define it at the top of a module that is on the import path"
            )
        return (_home(home),)
    if file.endswith((".py", ">")):
        raise TraceError(
            f"the operator {name} is defined in {file}, and it cannot be told how stages, processes of their own, "
            "would get it: define it at the top of a module that is on the import path"
        )
    package = name.partition("::")[0]  # written in C++: PyTorch's own, or of an extension
    libraries = [Home(path, None) for path in sorted(torch.ops.loaded_libraries)]
    return (*([_home(package)] if _is_foreign(package) else []), *libraries)


def _is_foreign(module: str) -> bool:
    """Whether a module is loaded that every process with PyTorch does not have."""
    top = module.partition(".")[0]
    return module in sys.modules and top not in (*sys.stdlib_module_names, "__main__", "torch", "odin")


def _home(module: str) -> Home:
    top = sys.modules[module.partition(".")[0]]
    file = Path(getattr(top, "__file__", None) or ".").resolve()
    return Home(module, str(file.parent.parent if hasattr(top, "__path__") else file.parent))


def load_home(home: Home) -> None:
    """Load what defines an operator or function; ``ImportError`` if that fails."""
    try:
        if home.folder is None:
            torch.ops.load_library(home.name)
            return
        if home.name not in sys.modules and not _can_be_imported(home.name):
            sys.path.append(home.folder)
        importlib.import_module(home.name)
    except Exception as error:
        raise ImportError(f"cannot load {home.name}, which defines what the model calls: {error}") from error


def _module_of(name: str, file: str) -> str | None:
    """The Python module that defines an operator; ``"__main__"`` also for one that is made inside a function."""
    definition = OPDEFS.get(name)
    if definition is not None and not definition._init_fn.__module__.startswith("torch."):
        made_by = definition._init_fn
        if "<locals>" in made_by.__qualname__:
            raise TraceError(
                f"the operator {name} is defined inside of a function of {made_by.__module__}, where stages, processes "
                "of their own, cannot get it from: define it at the top of a module that is on the import path"
            )
        return str(made_by.__module__)
    if not file.endswith((".py", ">")):
        return None
    modules = {n: m for n, m in list(sys.modules.items()) if isinstance(getattr(m, "__file__", None), str)}
    for module_name, module in modules.items():
        if module.__file__ == file and file not in _IN_BETWEEN:
            return module_name
    for module_name, module in modules.items():  # defined by a call of torch.library.define, which hides the caller
        path = str(module.__file__)
        if path.endswith(".py") and not path.startswith(_TORCH) and name in _text(path):
            return module_name
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _can_be_imported(module: str) -> bool:
    """Whether an import by name would find it, were it not loaded already."""
    top = module.partition(".")[0]
    return any(finder.find_spec(top, None) is not None for finder in sys.meta_path)
