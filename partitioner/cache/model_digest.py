"""A digest of all that a model's results and its graph depend on, to know it again at another start; or why not.

Everything that the model holds is taken by content (weights too), all code outside of PyTorch that a call of it
executes, with what that code names: globals, closures, defaults, other functions and classes, and the files they are
in. PyTorch, numpy and Python stand by their versions, PyTorch's settings by their values. What is not understood is
not guessed: then there is no digest.
"""

from __future__ import annotations

import array
import builtins
import collections
import enum
import fractions
import functools
import hashlib
import logging
import pathlib
import platform
import re
import sys
import threading
import types
import weakref
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odin.partitioner.check.executed import (
    Executed,
    NotCoveredError,
    check_home,
    home_of_builtin,
    is_library,
    is_standard,
    references,
)
from odin.partitioner.graph.values import obstacle

__all__ = ["example_digest", "model_digest"]

_LIMIT = 300_000  # objects
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
_BY_REPR = (
    torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, slice, range, fractions.Fraction,
    pathlib.PurePath, np.dtype, types.GenericAlias, types.UnionType,
)  # fmt: skip
_HOLD_NOTHING = (logging.Logger, logging.LoggerAdapter, type(threading.Lock()), type(threading.RLock()))
_CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque)
_BASES = frozenset(
    {object, list, tuple, dict, set, frozenset, int, float, str, Exception, BaseException, ValueError, TypeError}
    | {collections.OrderedDict, collections.defaultdict, collections.deque, collections.Counter, collections.UserDict}
    | {enum.Enum, enum.IntEnum, enum.Flag, enum.IntFlag, enum.ReprEnum}
)
_CALLED_BY_NAME = frozenset(
    {
        "__init__", "__new__", "__init_subclass__", "__repr__", "__str__", "__format__", "__hash__", "__del__",
        "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__dir__",
        "__sizeof__",
    }
)  # fmt: skip
"""Special methods that a call of the model is not led to by an operator or an attribute alone."""
_ANY = "*"
_BY_TEXT = frozenset({"getattr", "vars", "dir", "__dict__", "__getattribute__", "attrgetter", "methodcaller"})
"""Ways to reach what no code names."""
_LEFT_OUT = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__"})


def model_digest(model: nn.Module, args: tuple[Any, ...], executed: Executed) -> str:
    """Digest what a model and its chain depend on, besides the contents of the example's tensors.

    Parameters
    ----------
    model
        A copy of the model that was not called.
    args
        The example's arguments.
    executed
        What a call with them executed.

    Raises
    ------
    NotCoveredError
        If the model holds, executes or names something that cannot be compared with another process's.
    """
    if executed.problem:
        raise NotCoveredError(executed.problem)
    digest = _Digest()
    try:
        digest.add("process", _process())
        digest.walk([_description(leaf) for leaf in pytree.tree_leaves(args)])
        digest.add(str(pytree.tree_structure(args)))
        digest.walk(model)
        for code, (names, closure) in executed.codes.items():
            digest.walk_code(code, names)
            for value in closure:
                digest.walk(value)
        digest.walk_patches(Tensor)
        digest.walk_named_methods()
    except NotCoveredError:
        raise
    except Exception as error:  # objects of the model's may do anything when they are looked at
        raise NotCoveredError(f"{type(error).__name__} when it is looked at") from error
    return digest.hexdigest()


def example_digest(args: tuple[Any, ...]) -> str:
    """Digest an example's tensors by content."""
    digest = _Digest()
    digest.walk(pytree.tree_leaves(args))
    return digest.hexdigest()


def _description(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return ("tensor", str(leaf.shape), str(leaf.stride()), str(leaf.dtype), str(leaf.device), leaf.is_conj())


@functools.cache
def _own_code() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _process() -> str:
    """Versions, and the settings of PyTorch that its functions read."""
    try:
        odin = version("odin")
    except PackageNotFoundError:
        odin = ""
    backends = torch.backends
    settings: tuple[Any, ...] = (
        torch.__version__,
        torch.version.git_version,
        np.__version__,
        sys.version,
        platform.machine(),
        odin,
        _own_code(),
        backends.cpu.get_cpu_capability(),
        backends.mkldnn.is_available() and backends.mkldnn.enabled,
        backends.mha.get_fastpath_enabled(),
        [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ],
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.cuda.is_available(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    return repr(settings)


class _Digest:
    """What was walked so far; an object that comes again stands by the number that it had first."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._numbers: dict[Any, int] = {}
        self._kept: list[Any] = []  # so that identities stay taken
        self._files: set[str] = set()
        self._attributes: set[str] = set()
        self._methods: dict[str, list[types.FunctionType]] = {}

    def hexdigest(self) -> str:
        return self._sum.hexdigest()

    def add(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part.encode(errors="backslashreplace") if isinstance(part, str) else part
            self._sum.update(len(data).to_bytes(8, "little"))
            self._sum.update(data)

    def _is_known(self, key: Any, value: Any) -> bool:
        number = self._numbers.setdefault(key, len(self._numbers))
        if number < len(self._numbers) - 1:
            self.add("again", str(number))
            return True
        if number > _LIMIT:
            raise NotCoveredError(f"it refers to more than {_LIMIT} objects")
        self._kept.append(value)
        return False

    def walk(self, root: Any) -> None:
        # a list of its own rather than recursion: models are deep
        waiting: list[Any] = [root]
        while waiting:
            value = waiting.pop()
            kind = type(value)
            if kind in _PLAIN:
                self.add(kind.__name__, repr(value))
            elif isinstance(value, _BY_REPR):
                self.add(kind.__qualname__, repr(value))
            elif isinstance(value, _HOLD_NOTHING):
                self.add(kind.__qualname__)
            elif kind is tuple:  # equal ones may be one object in one process and two in another
                self.add("tuple", str(len(value)))
                waiting.extend(reversed(value))
            elif not self._is_known(id(value), value):
                waiting.extend(reversed(list(self._inside(value))))

    def _inside(self, value: Any) -> Iterable[Any]:
        """Add what can be said of a value itself; return what it refers to."""
        kind = type(value)
        self.add(kind.__module__, kind.__qualname__)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.hasobject:
                return [value.dtype.str, value.shape, value.tolist()]
            self.add(str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())
            return []
        if kind in (bytearray, array.array):
            self.add(bytes(value))
            return []
        if isinstance(value, re.Pattern):
            return [value.pattern, value.flags]
        if isinstance(value, weakref.ReferenceType):
            return [value()]
        if isinstance(value, types.ModuleType):
            self._module(value)
            return []
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            return self._builtin(value)
        if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            self.add(str(value))
            packet = value.overloadpacket if isinstance(value, torch._ops.OpOverload) else value
            _check_operators(packet._qualified_op_name.partition("::")[0])
            return []
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords, vars(value)]
        if isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            return _inside_descriptor(value)
        if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType)):
            self.add(value.__objclass__.__qualname__, value.__name__)
            return []
        if isinstance(value, types.MemberDescriptorType):
            return [value.__name__]
        if isinstance(value, types.MappingProxyType):
            return [dict(value)]
        return self._object(value)

    def _tensor(self, value: Tensor) -> Iterable[Any]:
        if problem := obstacle(value):
            raise NotCoveredError(f"it holds {problem.partition(':')[0]}")
        if value.device.type != "cpu":
            raise NotCoveredError(f"it holds a tensor on {value.device}")
        described = (tuple(value.shape), value.stride(), value.dtype, value.is_conj(), value.is_neg())
        self.add(repr((*described, value.requires_grad)))
        with torch.inference_mode(False), torch.no_grad():
            flat = value.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
            self._sum.update(flat.numpy().data)
        attributes = vars(value) if hasattr(value, "__dict__") else {}
        return [dict(attributes)] if attributes else []

    def _object(self, value: Any) -> Iterable[Any]:
        kind = type(value)
        for base in kind.__mro__:
            if base not in _BASES and not is_library(base.__module__) and not _is_python_class(base):
                raise NotCoveredError(f"it holds a {kind.__module__}.{kind.__qualname__}")
        if is_library(kind.__module__) and not isinstance(value, (nn.Module, *_CONTAINERS)):
            raise NotCoveredError(f"it holds a {kind.__module__}.{kind.__qualname__}")
        inside: list[Any] = [kind]
        if isinstance(value, dict):
            inside += [part for item in dict.items(value) for part in item]
            inside.append(getattr(value, "default_factory", None))
        elif isinstance(value, (set, frozenset)):
            if not all(type(item) in _PLAIN for item in value):
                raise NotCoveredError("it holds a set of objects")
            inside += sorted(map(repr, value))
        elif isinstance(value, (list, tuple, collections.deque)):
            inside += [len(value), *value]
        elif isinstance(value, (int, float, str)):
            inside.append(repr(value))
        for name, attribute in (getattr(value, "__dict__", None) or {}).items():
            inside += [name, attribute]
        for base in kind.__mro__:
            for name, slot in vars(base).items():
                if isinstance(slot, types.MemberDescriptorType) and base not in _BASES:
                    inside += [name, getattr(value, name, None)]
        return inside

    def _class(self, value: type) -> Iterable[Any]:
        meta = type(value)  # its methods are the class's own operators and attributes
        inside: list[Any] = [] if is_library(meta.__module__) or is_standard(meta.__module__) else [meta]
        for base in value.__mro__:
            self.add(base.__module__, base.__qualname__)
            if is_standard(base.__module__):
                check_home(base.__module__, base.__qualname__)
            elif is_library(base.__module__):
                # by its version, but for what a program may have put in the place of a method
                if issubclass(base, nn.Module) and not self._is_known(("class", base), base):
                    for name, item in vars(base).items():
                        if isinstance(item, types.FunctionType):
                            self.add(name, *_code(item.__code__))
            elif not self._is_known(("class", base), base):
                self._file(base.__module__)
                for name, item in vars(base).items():
                    if name in _LEFT_OUT or name.startswith("_abc_"):
                        continue
                    inside.append(name)
                    # methods are walked when they are executed or named, or need not be; here it is what they are
                    if isinstance(item, types.FunctionType):
                        self.add(name, *_code(item.__code__))
                        inside += [item.__defaults__, item.__kwdefaults__]
                        if name.startswith("__") and name.endswith("__") and name not in _CALLED_BY_NAME:
                            inside.append(item)
                        else:
                            self._methods.setdefault(name, []).append(item)
                    else:
                        inside.append(item)
        return inside

    def _function(self, value: types.FunctionType) -> Iterable[Any]:
        module = value.__module__ or ""
        self.add(module, value.__qualname__, *_code(value.__code__))
        home = str(value.__globals__.get("__name__"))  # functools.wraps gives a program's function another's module
        if all(is_standard(name) or is_library(name) for name in (module, home)):
            check_home(module, value.__qualname__)
            return []
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        self.walk_code(value.__code__, value.__globals__)
        return [value.__defaults__, value.__kwdefaults__, dict(vars(value)), len(cells), *cells]

    def walk_code(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """Add a function's code and what it names."""
        if self._is_known(("code", code, id(names)), (code, names)):
            return
        self.add(*_code(code))
        if not code.co_filename.startswith("<"):
            self._file(str(names.get("__name__")))
        read = references(code)
        self._attributes |= read.attributes
        by_text = bool(_BY_TEXT & (read.globals | read.attributes))
        if by_text:
            self._attributes.add(_ANY)
        for name in sorted(read.globals):
            if name in names:
                self.add(name)
                if isinstance(names[name], types.ModuleType):
                    self._module(names[name], read.attributes, by_text=by_text)
                else:
                    self._named(names[name])
            elif hasattr(builtins, name):
                check_home("builtins", name)
        for module in sorted(read.modules):
            self.add(module)
            if module in sys.modules:
                self._module(sys.modules[module], read.attributes, by_text=by_text)
            elif is_standard(module):
                check_home(module)

    def walk_named_methods(self) -> None:
        """Add methods that were not executed, but are named in code: other sizes may lead there."""
        while named := sorted(self._methods if _ANY in self._attributes else self._attributes & self._methods.keys()):
            for name in named:
                for method in self._methods.pop(name):
                    self.walk(method)

    def walk_patches(self, kind: type) -> None:
        """Add functions that a program has put into a class of PyTorch's: they need not have been executed."""
        for name, item in vars(kind).items():
            if isinstance(item, types.FunctionType) and not is_library(str(item.__globals__.get("__name__"))):
                self.add(name)
                self.walk(item)

    def _named(self, value: Any) -> None:
        """Add what code names; it may call a class, which makes an object."""
        self.walk(value)
        if isinstance(value, type):
            for base in value.__mro__:
                if not is_library(base.__module__) and not is_standard(base.__module__):
                    self.walk([vars(base).get("__init__"), vars(base).get("__new__")])

    def _module(self, module: types.ModuleType, read: Iterable[str] = (), *, by_text: bool = False) -> None:
        """Add what is read of a module by any of these names; all that the program's own has if it is read by text."""
        name = module.__name__
        self.add(name)
        if is_standard(name):
            check_home(name)
            return
        if isinstance(module, torch._ops._OpNamespace):
            _check_operators(module.name)
        if not is_library(name):
            own = {key for key in vars(module) if not key.startswith("__")} if by_text else set()
            read = {*read, *own, "__getattr__"}  # the last is called for what the module does not have
        for attribute in sorted(read):
            value = vars(module).get(attribute)
            if value is None or self._is_known(("attribute", name, attribute, id(value)), value):
                continue
            self.add(attribute)
            if is_library(name):
                check_home(name, attribute)
            if isinstance(value, types.ModuleType):
                self._module(value, () if by_text else read)
            elif not is_library(name) or isinstance(value, types.FunctionType) or type(value) in _PLAIN:
                self._named(value)

    def _builtin(self, value: Any) -> Iterable[Any]:
        home = "numpy" if isinstance(value, np.ufunc) else home_of_builtin(value)
        self.add(home, value.__name__)
        check_home(home, value.__name__)
        owner = getattr(value, "__self__", None)
        return [] if owner is None or isinstance(owner, (types.ModuleType, type)) or is_library(home) else [owner]

    def _file(self, module: str) -> None:
        """Add the text of the file that a class or function comes from."""
        if module in self._files:
            return
        self._files.add(module)
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            if module not in sys.modules:
                raise NotCoveredError(f"the module {module} of what it uses is not loaded")
            return  # typed in; its code is taken as it is
        if not str(file).endswith(".py"):
            raise NotCoveredError(f"it uses {module}, which is no Python code")
        try:
            self.add(module, hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError as error:
            raise NotCoveredError(f"{file} cannot be read") from error


def _check_operators(namespace: str) -> None:
    if namespace not in ("aten", "prims", "prim", "mkldnn", "mkl", "onednn", "quantized"):
        raise NotCoveredError(f"it uses operators of {namespace}, which is not PyTorch's own")


def _inside_descriptor(value: Any) -> list[Any]:
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    return [value.func] if isinstance(value, functools.cached_property) else [value.__func__]


def _is_python_class(kind: type) -> bool:
    """Whether a class was written in Python, so that its objects hold nothing but attributes."""
    if is_standard(kind.__module__):
        return kind.__module__.partition(".")[0] in ("abc", "typing", "types", "dataclasses", "collections", "logging")
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return bool(kind.__flags__ & (1 << 9)) and (file is None or str(file).endswith(".py"))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _code(code: types.CodeType) -> list[str]:
    """Describe compiled code, but not where it stands."""
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    parts = [code.co_name, code.co_code.hex(), code.co_exceptiontable.hex(), repr(counts), repr(names)]
    for constant in code.co_consts:
        parts.extend(_code(constant) if isinstance(constant, types.CodeType) else [_constant(constant)])
    return parts


def _constant(value: Any) -> str:
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"
