"""Executable layers: straight-line Python generated from a graph, shipped without weights, bound to them in place.

A layer's generated source, for a residual block of which everything but the names is left out::

    def make(f0, f1, f2, w0, w1, w2, w3):
        def layer(values):
            (v0,) = values
            v1 = f0(v0, w0, w1, (1, 1), (1, 1), (1, 1), 1)  # layer1.0.conv1
            v1 = f1(v1)  # layer1.0.relu
            ...
            return (v5,)
        return layer

The weights are the closure's variables: nothing is looked up by name while the layer runs. Names in a model (of
modules, methods, arguments) are text from outside: they get into the source only as plain ASCII names, or quoted.
"""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import keyword
import linecache
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from odin.partitioner.code.bounds import Check, within
from odin.partitioner.code.fuse import KEEPING_NAN, PORTABLE, Packing, pack
from odin.partitioner.code.fuse import available as fused_available
from odin.partitioner.code.operators import Home, homes_of, load_home
from odin.partitioner.graph.capture import ModuleEntry
from odin.partitioner.graph.observe import as_dense
from odin.partitioner.graph.values import decoder, encoder

__all__ = ["KeepingNan", "LayerFunction", "LayerProgram", "Program", "generate", "module_path"]

Values = tuple[Tensor, ...]
LayerFunction = Callable[[Values], Values]


class KeepingNan(tuple[Tensor, ...]):
    """Values of a request in which something was found of which fused calls might lose NaN; a tuple with that mark."""

    __slots__ = ()
    keep_nan = True


class _Module(NamedTuple):
    """A module that stays a module: its structure on the meta device and where its tensors go."""

    skeleton: nn.Module
    tensors: tuple[tuple[str, str, str, bool], ...]  # (path of the owner, attribute, state name, is a parameter)

    def attach(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the structure that holds the state's tensors themselves."""
        module = copy.deepcopy(self.skeleton)
        for owner_path, attribute, state_name, is_parameter in self.tensors:
            owner = module.get_submodule(owner_path)
            tensor = state[state_name]
            if is_parameter:
                setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))
            else:
                owner._buffers[attribute] = tensor
        return module


@dataclass(frozen=True)
class LayerProgram:
    """A layer's code. Picklable, holds no weights; :meth:`bind` makes it executable.

    Attributes
    ----------
    name
        The layer's name, also the file name of its generated source in tracebacks.
    source
        Python source of ``make(f0, ..., w0, ..., k0, ..., m0, ...)``, which returns the layer's function.
    functions
        What ``f0, f1, ...`` stand for: import paths, or the function itself where no path leads to it.
    state_names
        What ``w0, w1, ...`` and the modules read from the state, each once.
    weights
        The names behind ``w0, w1, ...``, a subset of ``state_names``.
    constants
        Arguments that have no literal form (dtypes, devices, ...): ``k0, k1, ...``.
    modules
        Calls that stay module calls: ``m0, m1, ...``.
    packings
        Weights that :meth:`Program.pack` may bring into oneDNN's form.
    checked_source
        The same with lines that look for values of which the fused calls might lose NaN
        (:mod:`odin.partitioner.code.bounds`). What is checked depends on the weights too.
    limits
        The magnitudes that those lines compare with. They depend on the weights; the source does not, so that models
        of one architecture share their code.
    output_bounds
        Largest magnitude of each value after the layer if all checks hold; infinity where later layers need none.
    imports
        Modules and libraries with operators and functions that are not PyTorch's own; loaded first.
    """

    name: str
    source: str
    functions: tuple[str | Callable[..., Any], ...]
    state_names: tuple[str, ...]
    weights: tuple[str, ...]
    constants: tuple[Any, ...]
    modules: tuple[_Module, ...]
    packings: tuple[Packing, ...] = ()
    checked_source: str = ""
    limits: tuple[float, ...] = ()
    output_bounds: tuple[float, ...] = ()
    imports: tuple[Home, ...] = ()

    def bind(
        self,
        state: Mapping[str, Tensor],
        *,
        device: torch.device | str | None = None,
        keep_nan: bool = False,
        portable: bool = False,
    ) -> LayerFunction:
        """Attach weights, without a copy, and return the layer as a function.

        Parameters
        ----------
        state
            Tensors by name; at least ``state_names``. They are never written, so read-only shared memory will do, and
            may live on any one device. Those named in ``packings`` may be packed. Strides are part of the contract: a
            tensor must have the strides that it has in ``Chain.state``, or results differ in their last bits.
        device
            Where tensors that the layer itself creates go. Default: where the state's first tensor is.
        keep_nan
            Compute in the way that keeps NaN from the start.
        portable
            Make PyTorch's own calls only, whatever the device, as on devices without fused ones: for exporting.

        Returns
        -------
        LayerFunction
            From the values at the cut before the layer to those at the cut after it. It does not write its input
            values. Call it under ``torch.inference_mode()``. Where it finds values of which the fused calls might
            lose NaN it computes in a slower way that keeps it, and returns :class:`KeepingNan`; given that, it keeps
            NaN as well.

        Raises
        ------
        ValueError
            If a weight is missing in ``state``.
        ImportError
            If something that the layer calls is not to be had in this process.
        """
        for home in self.imports:
            load_home(home)
        missing = [name for name in self.state_names if name not in state]
        if missing:
            raise ValueError(f"layer {self.name!r} needs {missing[0]!r}, which the state given to bind() lacks")
        if device is None:
            names = self.state_names or tuple(itertools.islice(state, 1))
            device = state[names[0]].device if names else torch.device("cpu")
        device = torch.device(device)
        asked_for_portable = portable
        portable = portable or device.type != "cpu" or not fused_available()

        # kernels of other devices keep NaN, and looking at values would wait for them
        checks = device.type == "cpu" and not asked_for_portable
        source = (self.checked_source or self.source) if checks else self.source

        @functools.cache
        def keeping() -> Callable[[Values], Values | None]:
            name = f"{self.name}, keeping NaN"
            return self._make(self.source, name, state, device, PORTABLE if portable else KEEPING_NAN)

        fast = None if keep_nan else self._make(source, self.name, state, device, PORTABLE if portable else {})

        def layer(values: Values) -> Values:
            if fast is not None and not isinstance(values, KeepingNan):
                result = fast(values)
                if result is not None:
                    return result
            result = keeping()(values)
            assert result is not None  # nothing is checked there
            return KeepingNan(result)

        return layer

    def _make(
        self,
        source: str,
        name: str,
        state: Mapping[str, Tensor],
        device: torch.device,
        instead: Mapping[str, Callable[..., Tensor]],
    ) -> Callable[[Values], Values | None]:
        functions = (instead.get(f, f) if isinstance(f, str) else f for f in self.functions)
        namespace: dict[str, Any] = {"within": within, "limits": self.limits}
        exec(_compiled(source, f"<odin layer {_in_ascii(name)}>"), namespace)
        make: Callable[..., Callable[[Values], Values | None]] = namespace["make"]
        return make(
            *(_resolve(entry) if isinstance(entry, str) else entry for entry in functions),
            *(state[name] for name in self.weights),
            # a device written into the traced model means "where the model is"
            *(device if isinstance(entry, torch.device) else entry for entry in self.constants),
            *(module.attach(state) for module in self.modules),
        )


@dataclass(frozen=True)
class Program:
    """All layers' code in order; picklable, without weights."""

    layers: tuple[LayerProgram, ...]

    def pack(self, state: Mapping[str, Tensor], *, batch: int | None = None) -> dict[str, Tensor]:
        """Return the state with convolution weights in the form that this machine's CPU computes with.

        Parameters
        ----------
        state
            All weights by name, plain, in CPU memory.
        batch
            Leading size of the inputs to come; by default the example's.

        Returns
        -------
        dict
            Some tensors are opaque (``layout=torch._mkldnn``), the others those given. The form depends on the number
            of threads that PyTorch computes with (``torch.get_num_threads``): pack under the number that will run.
            The sizes are the same, the bits of results may differ from those with plain weights: use one form or the
            other.
        """
        return pack(state, [packing for layer in self.layers for packing in layer.packings], batch=batch)


def _compiled(source: str, filename: str) -> CodeType:
    # So that a traceback out of a layer shows its generated line; each time, as another model's may have its name.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return _compile(source, filename)


@functools.lru_cache(maxsize=4096)
def _compile(source: str, filename: str) -> CodeType:
    return compile(source, filename, "exec")


@functools.lru_cache(maxsize=4096)
def _resolve(path: str) -> Any:
    """Import what a dotted path names, taking its longest importable prefix as the module."""
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            target: Any = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for attribute in parts[split:]:
            if not hasattr(target, attribute):
                raise ImportError(f"cannot import {path!r}, which the model calls: {attribute!r} is not defined there")
            target = getattr(target, attribute)
        return target
    raise ImportError(f"cannot import {path!r}, a function that the model calls")


def _function_reference(function: Callable[..., Any]) -> str | Callable[..., Any]:
    """Return the import path of a function, or the function if none leads back to it."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", "")
    module = getattr(function, "__module__", None)
    if isinstance(function, torch._ops.OpOverload):
        candidates = [f"torch.ops.{function.namespace}.{function._schema.name.split('::')[1]}.{function._overloadname}"]
    elif isinstance(function, torch._ops.OpOverloadPacket):
        candidates = [f"torch.ops.{function._qualified_op_name.replace('::', '.')}"]
    elif module == "__main__":  # another process has another __main__; by value if at all (cloudpickle)
        return function
    else:
        short = getattr(function, "__name__", name)
        candidates = [f"{module}.{name}"] if module else []
        candidates += [f"{home}.{short}" for home in ("operator", "torch", "torch.nn.functional", "torch._C._nn")]
    for candidate in candidates:
        try:
            if _resolve(candidate) is function:
                return candidate
        except (ImportError, AttributeError):
            continue
    return function


class _Writer:
    """Collects what one layer's source refers to, each thing under one short name."""

    def __init__(self, entries: Mapping[str, ModuleEntry]) -> None:
        self._entries = entries
        self._locals: dict[fx.Node, str] = {}
        self._functions: dict[Any, str] = {}
        self._weights: dict[str, str] = {}
        self._constants: list[Any] = []
        self._modules: dict[str, str] = {}
        self.functions: list[str | Callable[..., Any]] = []
        self.imports: dict[Home, None] = {}
        self.modules: list[_Module] = []

    def local(self, node: fx.Node) -> str:
        return self._locals.setdefault(node, f"v{len(self._locals)}")

    def weight(self, name: str) -> str:
        return self._weights.setdefault(name, f"w{len(self._weights)}")

    def function(self, function: Callable[..., Any]) -> str:
        if function not in self._functions:
            self._functions[function] = f"f{len(self.functions)}"
            self.functions.append(_function_reference(function))
            if isinstance(self.functions[-1], str):
                self.imports.update(dict.fromkeys(homes_of(function)))
        return self._functions[function]

    def constant(self, value: Any) -> str:
        self._constants.append(value)
        return f"k{len(self._constants) - 1}"

    def module(self, path: str) -> str:
        if path not in self._modules:
            self._modules[path] = f"m{len(self.modules)}"
            self.modules.append(_strip(self._entries[path]))
        return self._modules[path]

    def argument(self, value: Any) -> str:
        """Write an argument; containers in place, everything without a literal form as a constant."""
        if isinstance(value, fx.Node):
            return self.weight(str(value.target)) if value.op == "get_attr" else self.local(value)
        if value is None or value is Ellipsis or type(value) in (bool, int, str):
            return ascii(value)
        if type(value) is float and math.isfinite(value):
            return repr(value)
        if isinstance(value, slice):
            return f"slice({', '.join(self.argument(part) for part in (value.start, value.stop, value.step))})"
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            inside = ", ".join(self.argument(item) for item in value)
            return f"({inside},)" if len(value) == 1 else f"({inside})"
        if isinstance(value, list):
            return f"[{', '.join(self.argument(item) for item in value)}]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.argument(k)}: {self.argument(v)}" for k, v in value.items()) + "}"
        if isinstance(value, tuple):  # a namedtuple
            return f"{self.constant(type(value))}({', '.join(self.argument(item) for item in value)})"
        return self.constant(value)

    def call(self, node: fx.Node) -> str:
        """Write the right-hand side of a step."""
        keywords = [
            f"{key}={self.argument(value)}" if _is_name(key) else f"**{{{str(key)!a}: {self.argument(value)}}}"
            for key, value in node.kwargs.items()
        ]
        if node.op == "call_method":
            receiver, *rest = node.args
            arguments = ", ".join([*(self.argument(value) for value in rest), *keywords])
            name, owner = str(node.target), self.argument(receiver)
            method = f"{owner}.{name}" if _is_name(name) else f"{self.function(getattr)}({owner}, {name!a})"
            return f"{method}({arguments})"
        if node.op == "call_module":
            callee = self.module(str(node.target))
        else:
            assert callable(node.target)
            if node.target is operator.getitem and not isinstance(node.args[0], (tuple, list)):
                return f"{self.argument(node.args[0])}[{self.argument(node.args[1])}]"
            callee = self.function(node.target)
        return f"{callee}({', '.join([*(self.argument(value) for value in node.args), *keywords])})"

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(self._weights)

    @property
    def constants(self) -> tuple[Any, ...]:
        return tuple(self._constants)


def _is_name(text: str) -> bool:
    """Whether a text from outside may stand in source as a name: ASCII (other letters are normalised), no keyword."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _in_ascii(text: str) -> str:
    """Write a text from outside on one line, without anything that ends a comment."""
    return ascii(text)[1:-1]


def _strip(entry: ModuleEntry) -> _Module:
    """Take a module's tensors out and note where each belongs."""
    memo: dict[int, Any] = {}
    tensors = []
    for owner_path, owner in entry.module.named_modules(remove_duplicate=False):
        for attribute, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is None:
                continue
            is_parameter = isinstance(tensor, nn.Parameter)
            meta: Tensor = torch.empty_like(tensor, device="meta")
            memo.setdefault(id(tensor), nn.Parameter(meta, requires_grad=False) if is_parameter else meta)
            inside = f"{owner_path}.{attribute}" if owner_path else attribute
            tensors.append((owner_path, attribute, entry.tensors[inside], is_parameter))
    return _Module(copy.deepcopy(entry.module, memo), tuple(tensors))


def generate(
    name: str,
    steps: Sequence[fx.Node],
    inputs: Sequence[tuple[fx.Node, str]],
    outputs: Sequence[tuple[fx.Node, str]],
    modules: Mapping[str, ModuleEntry],
    packings: Sequence[Packing] = (),
    *,
    views: frozenset[fx.Node] = frozenset(),
    checks: Mapping[fx.Node, Sequence[Check]] | None = None,
    output_bounds: Sequence[float] = (),
) -> LayerProgram:
    """Write the program of one layer.

    Parameters
    ----------
    name
        The layer's name.
    steps
        The graph's calls that make up the layer, in order.
    inputs, outputs
        Values at the cut before and after, with their kinds (:class:`ValueSpec`).
    modules
        What the graph's ``call_module`` nodes refer to.
    packings
        Weights of the layer that may be packed, and how.
    views
        Outputs that are handed on as dense copies.
    checks
        What must hold before steps; else the layer is computed in the way that keeps NaN.
    output_bounds
        Largest magnitude of each value after the layer if the checks hold.

    Returns
    -------
    LayerProgram
        Its generated function drops each value after its last use.
    """
    writer = _Writer(modules)
    lines = []
    received = ", ".join(writer.local(node) for node, _ in inputs)
    if inputs:
        lines.append(f"({received},) = values")
    for node, kind in inputs:
        if kind != "tensor":
            take_out = writer.function(decoder(kind))
            lines.append(f"{writer.local(node)} = {take_out}({writer.local(node)})")

    last_use: dict[fx.Node, int] = {}
    for index, step in enumerate(steps):
        last_use[step] = index
        for operand in step.all_input_nodes:
            if operand.op != "get_attr":
                last_use[operand] = index
    kept = {node for node, _ in outputs}
    check_lines: dict[int, list[str]] = {}
    limits: list[float] = []
    for index, step in enumerate(steps):
        for value, limit in (checks or {}).get(step, ()):
            check = f"if not within({writer.local(value)}, limits[{len(limits)}]): return None"
            limits.append(limit)
            check_lines.setdefault(len(lines), []).append(check)
        lines.append(f"{writer.local(step)} = {writer.call(step)}  # {_in_ascii(module_path(step) or step.name)}")
        dead = [writer.local(node) for node, last in last_use.items() if last == index and node not in kept]
        if dead and index + 1 < len(steps):
            lines.append(f"del {', '.join(dead)}")

    def handed_on(node: fx.Node, kind: str) -> str:
        if kind != "tensor":
            return f"{writer.function(encoder(kind))}({writer.argument(node)})"
        return f"{writer.function(as_dense)}({writer.local(node)})" if node in views else writer.local(node)

    sent = [handed_on(node, kind) for node, kind in outputs]
    lines.append(f"return ({', '.join(sent)}{',' if len(sent) == 1 else ''})")

    parameters = [
        *(f"f{index}" for index in range(len(writer.functions))),
        *(f"w{index}" for index in range(len(writer.weights))),
        *(f"k{index}" for index in range(len(writer.constants))),
        *(f"m{index}" for index in range(len(writer.modules))),
    ]

    def written(lines: Sequence[str]) -> str:
        body = "\n".join(f"        {line}" for line in lines)
        return f"def make({', '.join(parameters)}):\n    def layer(values):\n{body}\n    return layer\n"

    checked = [line for index, step in enumerate(lines) for line in (*check_lines.get(index, ()), step)]
    inside_modules = [entry[2] for module in writer.modules for entry in module.tensors]
    return LayerProgram(
        name=name,
        source=written(lines),
        functions=tuple(writer.functions),
        state_names=tuple(dict.fromkeys([*writer.weights, *inside_modules])),
        weights=writer.weights,
        constants=writer.constants,
        modules=tuple(writer.modules),
        packings=tuple(packings),
        checked_source=written(checked) if check_lines else "",
        limits=tuple(limits),
        output_bounds=tuple(output_bounds),
        imports=tuple(writer.imports),
    )


def module_path(node: fx.Node) -> str:
    """Return the path of the module in whose forward a node was traced, ``""`` for the model's own."""
    path = node.meta.get("module_path")
    return path if isinstance(path, str) else ""
