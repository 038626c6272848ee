"""A model's code as data, and back: nothing but straight-line calls of PyTorch's own functions is read.

A layer's program is generated source (:mod:`odin.partitioner.code.program`). A file that holds it is data: the source
is read as a syntax tree and refused unless every step is one that the generator writes, and functions are looked up in
PyTorch's own tables, without those that touch files. No name in a file is imported.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from odin.partitioner.code.fuse import Packing
from odin.partitioner.code.program import LayerProgram

__all__ = ["NotPackableError", "layer_from_data", "layer_to_data"]

_OWN_FUNCTIONS = frozenset(
    {
        "odin.partitioner.code.rows.convolve_row",
        "odin.partitioner.code.rows.convolve_row_add",
        "odin.partitioner.graph.observe.as_dense",
        "odin.partitioner.graph.prepare._dense_copy",
        *(
            f"odin.partitioner.graph.values.{way}_{kind}"
            for way in ("encode", "decode")
            for kind in ("int", "bool", "float", "size")
        ),
        "builtins.getattr",
        "_operator.getitem",
    }
)
_OPERATORS = frozenset(
    {
        "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "getitem", "eq", "ne", "lt", "le", "gt", "ge",
        "and_", "or_", "not_", "iadd", "isub", "imul", "itruediv", "matmul",
    }
)  # fmt: skip
_NAMESPACES = ("aten", "mkldnn", "prims")
_TOUCH_FILES = frozenset({"from_file", "save", "load"})
_ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT"})
_FORBIDDEN_METHODS = frozenset(
    {
        "apply_", "map_", "map2_", "backward", "set_", "resize_", "resize_as_", "share_memory_", "storage",
        "untyped_storage", "data_ptr", "numpy", "tolist", "register_hook", "requires_grad_", "module_load", "cuda",
        "pin_memory",
    }
)  # fmt: skip
_TORCH_VALUES: dict[str, Any] = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format))
}
_LOCAL = re.compile(r"v\d+")
_GIVEN = re.compile(r"[vwk]\d+")


class NotPackableError(ValueError):
    """A program cannot be written as data, or data is not that of a program."""


def layer_to_data(layer: LayerProgram) -> dict[str, Any]:
    """Write what is the same for all models of an architecture.

    Raises
    ------
    NotPackableError
        If the layer calls what is not PyTorch's own.
    """
    if layer.modules:
        kinds = ", ".join(sorted({type(module.skeleton).__name__ for module in layer.modules}))
        raise NotPackableError(
            f"layer {layer.name} calls modules as a whole ({kinds}), which a packed model cannot; serve it by a "
            "pipeline (odin.Pipeline)"
        )
    if layer.imports:
        raise NotPackableError(
            f"layer {layer.name} calls operators that are not PyTorch's own, which a packed model cannot name; serve "
            "it by a pipeline (odin.Pipeline)"
        )
    for function in layer.functions:
        if not isinstance(function, str):
            raise NotPackableError(f"layer {layer.name} calls {function}, which is not PyTorch's own")
        _check_function(function)
    data = {
        "name": layer.name,
        "source": layer.source,
        "checked_source": layer.checked_source,
        "functions": list(layer.functions),
        "state_names": list(layer.state_names),
        "weights": list(layer.weights),
        "constants": [_constant(value) for value in layer.constants],
        "packings": [[list(part) if isinstance(part, tuple) else part for part in one] for one in layer.packings],
    }
    layer_from_data(data, limits=layer.limits, output_bounds=layer.output_bounds)  # what is written can be read
    return data


def layer_from_data(
    data: Mapping[str, Any], *, limits: Sequence[float], output_bounds: Sequence[float]
) -> LayerProgram:
    """Read :func:`layer_to_data`'s values, with those that depend on a model's weights.

    Raises
    ------
    NotPackableError
        If they are not those of a layer.
    """
    try:
        functions = tuple(str(name) for name in data["functions"])
        for name in functions:
            _check_function(name)
        sources = str(data["source"]), str(data["checked_source"])
        for source in filter(None, sources):
            _check_source(source, functions)
        return LayerProgram(
            name=str(data["name"]),
            source=sources[0],
            functions=functions,
            state_names=tuple(map(str, data["state_names"])),
            weights=tuple(map(str, data["weights"])),
            constants=tuple(_read_constant(value) for value in data["constants"]),
            modules=(),
            packings=tuple(map(_packing, data["packings"])),
            checked_source=sources[1],
            limits=tuple(map(float, limits)),
            output_bounds=tuple(map(float, output_bounds)),
        )
    except NotPackableError:
        raise
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError) as error:
        raise NotPackableError(f"not a layer: {type(error).__name__}: {error}") from error


def _packing(values: Sequence[Any]) -> Packing:
    weight, padding, stride, dilation, groups, input_shape = values
    return Packing(str(weight), tuple(padding), tuple(stride), tuple(dilation), int(groups), tuple(input_shape))


# -- functions and constants -----------------------------------------------------------------------------------------


@functools.cache
def _check_function(path: str) -> None:
    if path in _OWN_FUNCTIONS or (path.rpartition(".")[0] in ("operator", "_operator") and _is_operator(path)):
        return
    home, _, name = path.rpartition(".")
    if not path.isascii() or (name.startswith("_") and not home.startswith("torch.ops.")):
        raise NotPackableError(f"{path!r} is no function of PyTorch's that a packed model may call")
    if home.startswith("torch.ops.") and _is_library_call(path.split(".")[2:]):
        return
    if home in ("torch", "torch._C._nn", "torch._C._VariableFunctions") and name not in _TOUCH_FILES:
        found = getattr(torch._C._nn if home == "torch._C._nn" else torch, name, None)
        if isinstance(found, (types.BuiltinFunctionType, types.BuiltinMethodType)):
            return
    if home == "torch.nn.functional":
        found = getattr(torch.nn.functional, name, None)
        where = str(getattr(found, "__module__", None))
        if callable(found) and where in ("torch.nn.functional", "torch._jit_internal", "torch._C._nn", "None", "torch"):
            return
    raise NotPackableError(
        f"{path!r} is no function of PyTorch's own that a packed model may call; serve it by a pipeline (odin.Pipeline)"
    )


def _is_operator(path: str) -> bool:
    name = path.rpartition(".")[2]
    return name in _OPERATORS and hasattr(operator, name)


def _is_library_call(words: Sequence[str]) -> bool:
    """Whether ``namespace.name[.overload]`` is an operator with a kernel: those without are TorchScript's."""
    namespace, *path = words
    if namespace not in _NAMESPACES or not path or len(path) > 2 or path[0] in _TOUCH_FILES or "__" in path[0]:
        return False
    packet = getattr(getattr(torch.ops, namespace), path[0], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    overloads = [path[1]] if len(path) == 2 else packet.overloads()
    found = [getattr(packet, name, None) for name in overloads]
    return all(
        isinstance(one, torch._ops.OpOverload) and torch._C._dispatch_has_kernel(one.name()) for one in found
    ) and bool(found)


def _constant(value: Any) -> list[Any]:
    """Write an argument without a literal form as a list that begins with what it is."""
    if isinstance(value, torch.device):
        return ["device", value.type]  # which one, binding says
    if str(value) in _TORCH_VALUES and _TORCH_VALUES[str(value)] is value:
        return ["torch", str(value)]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return ["plain", value]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, torch.Size):
        return ["size", *map(int, value)]
    raise NotPackableError(f"an argument is a {type(value).__name__}, which a packed model cannot hold")


def _read_constant(value: Sequence[Any]) -> Any:
    kind, *parts = value
    if kind == "device":
        return torch.device(str(parts[0]))
    if kind == "torch":
        return _TORCH_VALUES[parts[0]]
    if kind == "plain" and (parts[0] is None or isinstance(parts[0], (bool, str))):
        return parts[0]
    if kind == "float":
        return float.fromhex(parts[0])
    if kind == "complex":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if kind == "size":
        return torch.Size(parts)
    raise NotPackableError(f"{kind!r} is no kind of constant")


# -- source ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _check_source(source: str, functions: tuple[str, ...]) -> None:
    """Raise unless a source is what :func:`odin.partitioner.code.program.generate` writes."""
    module = ast.parse(source)
    if len(module.body) != 1 or not isinstance(make := module.body[0], ast.FunctionDef) or make.name != "make":
        raise NotPackableError("a source defines one function 'make'")
    _check_parameters(make, r"[fwk]\d+")
    if len(make.body) != 2 or not isinstance(layer := make.body[0], ast.FunctionDef) or layer.name != "layer":
        raise NotPackableError("'make' defines one function 'layer'")
    _check_parameters(layer, r"values")
    returned = make.body[1]
    if not (isinstance(returned, ast.Return) and isinstance(returned.value, ast.Name) and returned.value.id == "layer"):
        raise NotPackableError("'make' returns 'layer'")
    reader = _Reader(functions)
    for statement in layer.body:
        reader.statement(statement)


def _check_parameters(function: ast.FunctionDef, pattern: str) -> None:
    given = function.args
    names = [argument.arg for argument in given.args]
    others = (given.posonlyargs, given.kwonlyargs, given.vararg, given.kwarg, given.defaults, function.decorator_list)
    if any(others) or function.returns or not all(re.fullmatch(pattern, name) for name in names):
        raise NotPackableError(f"{function.name!r} takes {', '.join(names)}")


class _Reader:
    """Walks through a layer's steps, and raises at the first thing that is not one of the generator's."""

    def __init__(self, functions: Sequence[str]) -> None:
        self._functions = functions

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._target(node.targets[0])
            is_input = isinstance(node.value, ast.Name) and node.value.id == "values"
            if not is_input:
                self.expression(node.value)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    self._name(name, _LOCAL)
        elif isinstance(node, ast.Return) and node.value is not None:
            self.expression(node.value)
        elif isinstance(node, ast.If) and not node.orelse:
            self._check(node)
        else:
            raise NotPackableError(f"a layer has no such step: {ast.unparse(node)[:80]!r}")

    def _target(self, node: ast.expr) -> None:
        for name in node.elts if isinstance(node, ast.Tuple) else [node]:
            self._name(name, _LOCAL)

    def _name(self, node: ast.expr, pattern: re.Pattern[str]) -> None:
        if not (isinstance(node, ast.Name) and pattern.fullmatch(node.id)):
            raise NotPackableError(f"a layer does not use {ast.unparse(node)[:80]!r} there")

    def _check(self, node: ast.If) -> None:
        """``if not within(v0, limits[0]): return None``."""
        expected = ast.unparse(node)
        if not re.fullmatch(r"if not within\(v\d+, limits\[\d+\]\):\s+return None", expected):
            raise NotPackableError(f"a layer has no such check: {expected[:80]!r}")

    def expression(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=value) if value is None or value is ... or isinstance(value, bool | int | str):
                return
            case ast.Constant(value=float(value)) if math.isfinite(value):
                return
            case ast.Name():
                self._name(node, _GIVEN)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                return
            case ast.Tuple() | ast.List():
                for item in node.elts:
                    self.expression(item)
            case ast.Dict():
                for part in (*node.keys, *node.values):
                    if part is None:
                        raise NotPackableError("a layer does not unpack dicts into dicts")
                    self.expression(part)
            case ast.Subscript():
                self._name(node.value, _LOCAL)
                self.expression(node.slice)
            case ast.Call():
                self._call(node)
            case _:
                raise NotPackableError(f"a layer has no such expression: {ast.unparse(node)[:80]!r}")

    def _call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute):
            self._name(called.value, _LOCAL)
            name = called.attr
            known = name.isascii() and not name.startswith("_") and callable(getattr(torch.Tensor, name, None))
            if not known or name in _FORBIDDEN_METHODS:
                raise NotPackableError(f"a packed model does not call the method {name!r}")
        elif isinstance(called, ast.Name) and re.fullmatch(r"f\d+", called.id):
            if self._functions[int(called.id[1:])] == "builtins.getattr":
                self._attribute(node)
                return
        elif not (isinstance(called, ast.Name) and called.id == "slice"):
            raise NotPackableError(f"a layer does not call {ast.unparse(called)[:80]!r}")
        for argument in node.args:
            self.expression(argument)
        for keyword in node.keywords:
            if keyword.arg is None and not isinstance(keyword.value, ast.Dict):
                raise NotPackableError("a layer unpacks nothing but dicts that it writes out")
            self.expression(keyword.value)

    def _attribute(self, node: ast.Call) -> None:
        match node.args:
            case [ast.Name() as owner, ast.Constant(value=str(name))] if name in _ATTRIBUTES and not node.keywords:
                self._name(owner, _GIVEN)
            case _:
                raise NotPackableError(f"a packed model does not read {ast.unparse(node)[:80]!r}")
