"""What a model's code can read between calls: its attributes, and what its own functions refer to, by path.

Paths read as in code: ``Net.h`` (an attribute of the model itself), ``block.2.n`` (of a submodule), ``Net.queue[0]``.
"""

from __future__ import annotations

import array
import contextvars
import functools
import hashlib
import itertools
import logging
import random
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["Contents", "contents"]

_LIMIT = 300_000  # entries; a model that refers to more is compared in part
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.memory_format, slice)
# Objects that hold nothing a result could come from, or the whole program.
_OPAQUE = (types.ModuleType, logging.Logger, fx.Graph, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(torch.__file__).parent))
_INSTALLED = {"site-packages", "dist-packages"}  # parts of the paths of what pip and distributions install


class _Random(Protocol):
    """A generator of random numbers that a model holds."""

    def restore(self) -> None: ...


class _TorchRandom:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._state = generator, generator.get_state()

    def restore(self) -> None:
        self._generator.set_state(self._state)


class _NumpyRandom:
    def __init__(self, generator: np.random.Generator) -> None:
        self._bits, self._state = generator.bit_generator, generator.bit_generator.state

    def restore(self) -> None:
        self._bits.state = self._state


class _PythonRandom:
    def __init__(self, generator: random.Random) -> None:
        self._generator, self._state = generator, generator.getstate()

    def restore(self) -> None:
        self._generator.setstate(self._state)


class Contents:
    """Snapshot of everything that the model's code can reach.

    Attributes
    ----------
    values
        What lies at each path: plain values themselves, digests of tensors, types and sizes of containers.
    generators
        Random number generators, which are no state in this sense; they can be put back to where they were.
    """

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.generators: list[_Random] = []

    def changed(self, other: Contents) -> list[str]:
        """Attributes that differ, those of containers once for all that is inside."""
        mine, its = self.values, other.values
        paths = [path for path in {**mine, **its} if mine.get(path, _ABSENT) != its.get(path, _ABSENT)]
        return list(dict.fromkeys(path.partition("[")[0] for path in paths))

    def changed_itself(self, other: Contents, owners: Container[str]) -> list[str]:
        """Attributes of ``owners`` that differ themselves, not only in what a container there holds."""
        mine, its = self.values, other.values
        own = (path for path in mine if "[" not in path and path.rpartition(".")[0] in owners)
        return [path for path in own if mine[path] != its.get(path, _ABSENT)]


_ABSENT = object()


def contents(root: object) -> Contents:
    """Look at everything that ``root`` refers to, directly or through others.

    Looked into are modules, containers, objects, tensors and arrays; of code that is not installed in the standard
    places (the user's own) also class attributes, default arguments, closures and the globals that functions name.
    Nothing is called: no property, no ``__getattr__``.
    """
    found = Contents()
    seen: dict[int, tuple[str, object]] = {}  # the object too, so that its number stays taken
    waiting: deque[tuple[str, object]] = deque([("", root)])
    while waiting and len(found.values) < _LIMIT:
        path, value = waiting.popleft()
        if value is None or isinstance(value, _PLAIN):
            found.values[path] = (type(value), repr(value))
        elif id(value) in seen:
            first = seen[id(value)][0]
            if first != path:
                found.values[path] = ("same as", first)
        elif (generator := _generator(value)) is not None:
            found.generators.append(generator)
        else:
            seen[id(value)] = (path, value)
            found.values[path] = _summary(value)
            waiting.extend(_inside(path, value))
    return found


def _generator(value: object) -> _Random | None:
    if isinstance(value, torch.Generator):
        return _TorchRandom(value)
    if isinstance(value, np.random.Generator):
        return _NumpyRandom(value)
    return _PythonRandom(value) if type(value) is random.Random else None


def _summary(value: object) -> object:
    """What can be compared of a value without what is inside it."""
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, str(value.dtype), hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, dict):
        return type(value), tuple(_key(key) for key in value)
    if isinstance(value, (set, frozenset)):
        return type(value), tuple(sorted(_key(item) for item in value))
    if isinstance(value, (list, tuple, deque)):
        return type(value), len(value)
    if isinstance(value, (bytearray, array.array)):
        return type(value), bytes(value)
    if isinstance(value, (itertools.count, itertools.repeat)):
        return repr(value)  # says where it is
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        held = {} if frame is None else frame.f_locals
        return type(value), frame and frame.f_lasti, sorted((name, repr(local)) for name, local in held.items())
    if isinstance(value, contextvars.ContextVar):
        return type(value), repr(value.get(None))
    return type(value)


def _of_tensor(tensor: Tensor) -> object:
    described = (tuple(tensor.shape), str(tensor.dtype), str(tensor.device))
    try:
        with torch.inference_mode(False), torch.no_grad():
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            if isinstance(tensor, nn.Parameter):  # they are large, and no queues that turn round
                words = flat[: flat.numel() // 8 * 8].view(torch.int64)
                return (*described, int(words.sum()), flat[words.numel() * 8 :].tolist())
            return (*described, hashlib.blake2b(flat.cpu().numpy().data).digest())
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        ValueError,
    ):  # meta, sparse, packed, a subclass
        return described


def _key(key: object) -> str:
    return repr(key) if key is None or isinstance(key, (*_PLAIN, tuple)) else type(key).__qualname__


def _inside(path: str, value: object) -> Iterator[tuple[str, object]]:
    """What a value refers to, with paths."""
    if isinstance(value, (Tensor, *_OPAQUE)) or (isinstance(value, np.ndarray) and value.dtype != object):
        return
    if isinstance(value, dict):
        yield from ((f"{path}[{_key(key)}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, deque, np.ndarray)):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, types.MethodType):
        yield from ((f"{path}.__self__", value.__self__), (f"{path}.__func__", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from _inside_function(path, value)
    elif isinstance(value, type):
        yield from _inside_class(value)
    elif isinstance(value, (property, staticmethod, classmethod)):
        function = value.fget if isinstance(value, property) else value.__func__
        yield f"{path}()", function
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return
    yield from _attributes(path, value)
    if _is_own(type(value)):
        yield f"{type(value).__module__}.{type(value).__qualname__}", type(value)


def _attributes(path: str, value: object) -> Iterator[tuple[str, object]]:
    prefix = path or ("ExportedProgram" if isinstance(value, fx.GraphModule) else type(value).__name__)
    attributes = getattr(value, "__dict__", None)
    for name, item in (attributes if isinstance(attributes, dict) else {}).items():
        if isinstance(value, nn.Module) and name in ("_parameters", "_buffers", "_modules"):
            children = item.items() if isinstance(item, dict) else ()
            for child, part in children:
                yield (f"{path}.{child}" if path else child) if name == "_modules" else f"{prefix}.{child}", part
        elif not (isinstance(value, nn.Module) and isinstance(item, dict) and not item):  # the hooks that it has not
            yield f"{prefix}.{name}", item
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            slot = vars(base).get(name)
            if isinstance(slot, types.MemberDescriptorType):
                try:
                    yield f"{prefix}.{name}", slot.__get__(value)
                except AttributeError:  # not set
                    continue


def _inside_function(path: str, function: types.FunctionType) -> Iterator[tuple[str, object]]:
    if not _is_own(function):
        return
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{variable} in the closure of {path}", cell.cell_contents
        except ValueError:  # not set yet
            continue
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"default argument {number} of {path}", value
    for argument, value in (function.__kwdefaults__ or {}).items():
        yield f"default of {argument} in {path}", value
    for attribute, value in vars(function).items():
        yield f"{path}.{attribute}", value
    for used in sorted(_names(function.__code__)):
        if used in function.__globals__:
            yield f"{function.__module__}.{used}", function.__globals__[used]


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _inside_class(value: type) -> Iterator[tuple[str, object]]:
    for base in value.__mro__:
        if _is_own(base):
            for name, item in vars(base).items():
                if not name.startswith("__") or isinstance(item, types.FunctionType):
                    yield f"{base.__module__}.{base.__qualname__}.{name}", item


def _is_own(code: Any) -> bool:
    """Whether a class or function is the user's: neither built in nor installed."""
    return _is_own_module(getattr(code, "__module__", None) or "")


@functools.lru_cache(maxsize=4096)
def _is_own_module(name: str) -> bool:
    module = sys.modules.get(name)
    if module is None or module.__name__ in sys.builtin_module_names:
        return module is None
    file = getattr(module, "__file__", None)
    return file is None or not (file.startswith(_STANDARD) or _INSTALLED & set(Path(file).parts))
