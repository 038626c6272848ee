"""Captures a model as a graph: ``torch.fx`` symbolic tracing, else ``torch.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from odin.partitioner.graph.model_copy import deep_copy, evaluating, unwrapped
from odin.partitioner.graph.values import obstacle, plain

__all__ = [
    "Captured",
    "ModuleEntry",
    "Slot",
    "TraceError",
    "capture_export",
    "capture_exported_program",
    "capture_fx",
    "first_line",
    "private_copy",
    "slots",
    "substitute",
    "untraceable",
]

_REMEDY = (
    "Remedies: take the control flow that depends on tensor values (or on isinstance checks of inputs) out of forward; "
    "or wrap the function that holds it with torch.fx.wrap at module level; or export the model yourself "
    "(torch.export.export, torch.export.save) and pass the ExportedProgram or its .pt2 file."
)


class TraceError(ValueError):
    """The model cannot be turned into a graph. The message says where tracing stopped, why, and the remedy."""


@dataclass(frozen=True)
class Slot:
    """Stands for graph output ``index`` in the structure that the model returns."""

    index: int


class ModuleEntry(NamedTuple):
    """A module that the graph calls, and the state name of each of its tensors (by path inside the module)."""

    module: nn.Module
    tensors: dict[str, str]


@dataclass
class Captured:
    """A model as a graph; the working form that :mod:`odin.partitioner.graph.prepare` rewrites in place.

    Attributes
    ----------
    graph
        One placeholder per input tensor, in order; ``get_attr`` nodes name entries of ``state``, ``call_module`` nodes
        entries of ``modules``; the output node's argument is a list of nodes, each once. Every node carries
        ``meta["module_path"]``.
    state
        Parameters, buffers and tensor constants, detached, by name.
    modules
        Modules that are called as such.
    buffers
        Names in ``state`` of what the model registered as a buffer or parameter (the rest are tensor constants).
    arguments
        The leaves of the call's arguments: a :class:`Slot` for each tensor, anything else is part of the graph.
    in_spec
        Structure of the call's arguments.
    outcome
        What the model returns with a :class:`Slot` for each output.
    how
        ``"torch.fx"`` or ``"torch.export"``.
    one_size
        The graph is for the example's leading size: at another one the model's code may do something else.
    """

    graph: fx.Graph
    state: dict[str, Tensor]
    modules: dict[str, ModuleEntry]
    buffers: frozenset[str]
    arguments: list[Any]
    in_spec: pytree.TreeSpec
    outcome: Any
    how: str
    one_size: bool = False

    def copy(self) -> Captured:
        """Return the same graph for another preparation: what that rewrites is the copy's own, weights are shared."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            copies[node] = graph.node_copy(node, lambda operand: copies[operand])
        # preparation runs the graph, which may write its constants
        state = {name: tensor if name in self.buffers else tensor.clone() for name, tensor in self.state.items()}
        return replace(self, graph=graph, state=state, modules=dict(self.modules), arguments=list(self.arguments))

    @property
    def placeholders(self) -> list[fx.Node]:
        """The graph's inputs, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def steps(self) -> list[fx.Node]:
        """The graph's calls, in order."""
        return [node for node in self.graph.nodes if node.op.startswith("call_")]

    @property
    def outputs(self) -> list[fx.Node]:
        """What the graph returns, in order."""
        returned = self.graph.output_node().args[0]
        assert isinstance(returned, (list, tuple))
        return [node for node in returned if isinstance(node, fx.Node)]


def private_copy(model: nn.Module) -> nn.Module:
    """Copy a model's structure and buffers, in eval mode; parameters are shared with the original.

    Tracing runs the model's Python code, which may change attributes; preparation replaces parameters but never
    writes one. So sharing their memory is safe and saves a second copy of the weights; each is an object of the copy's
    own, as code like ``self.half()`` gives an object other memory.
    """
    model = unwrapped(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo.update((id(p), _same_memory(p)) for p in module._parameters.values() if p is not None)
    copied = evaluating(deep_copy(model, memo))
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
    return copied


def _same_memory(parameter: nn.Parameter) -> nn.Parameter:
    if type(parameter) is not nn.Parameter or parameter.is_inference():  # a subclass is its own affair
        return parameter
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def _bake_parametrizations(module: nn.Module) -> None:
    """Replace weights that are computed at each access by their values.

    Not ``remove_parametrizations``: it changes the module's class, which the original shares, and its parameters.
    """
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


class _Tracer(fx.Tracer):
    """Symbolic tracing with one placeholder per tensor in the arguments, however they are nested."""

    def __init__(self, leaves: list[Any], in_spec: pytree.TreeSpec) -> None:
        super().__init__(param_shapes_constant=True)
        self._leaves = leaves
        self._in_spec = in_spec
        self.out_spec: pytree.TreeSpec | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        leaves = [
            self.create_proxy("placeholder", f"input_{leaf.index}", (), {}) if isinstance(leaf, Slot) else leaf
            for leaf in self._leaves
        ]
        arguments = pytree.tree_unflatten(leaves, self._in_spec)

        def call() -> list[Any]:
            assert isinstance(self.root, nn.Module)
            # not type(root).forward: an instance may have its own forward
            returned, self.out_spec = pytree.tree_flatten(self.root.forward(*arguments))
            return returned

        return call, []


def capture_fx(model: nn.Module, example_args: tuple[Any, ...]) -> Captured:
    """Trace a model symbolically.

    Parameters
    ----------
    model
        A private copy in eval mode (:func:`private_copy`).
    example_args
        The call's arguments; tensors become inputs, everything else is fixed.

    Raises
    ------
    TraceError
        If the model's Python code needs the values (or types) of tensors.
    """
    leaves, in_spec = slots(example_args)
    tracer = _Tracer(leaves, in_spec)
    try:
        with torch.no_grad():
            graph = tracer.trace(model)
    except Exception as error:
        inside = [path for path, _ in tracer.module_stack.values()]
        module = f", in module {inside[-1]!r}" if inside else ""
        raise TraceError(f"torch.fx stopped at {_where(error)}{module}: {first_line(error)}") from error
    assert tracer.out_spec is not None
    returned = graph.output_node().args[0]
    assert isinstance(returned, (list, tuple))
    return _assemble(model, graph, leaves, in_spec, list(returned), tracer.out_spec, "torch.fx")


def capture_export(model: nn.Module, example_args: tuple[Any, ...], *, any_leading_size: bool = False) -> Captured:
    """Capture a model with ``torch.export``.

    Parameters
    ----------
    model
        A private copy in eval mode (:func:`private_copy`).
    example_args
        The call's arguments.
    any_leading_size
        Leave the inputs' common leading size free. Otherwise the graph is for the example's own.

    Raises
    ------
    TraceError
        If the model's Python code depends on the values of tensors, or on the leading size that was to be free.
    """
    arguments, dynamic_shapes = example_args, None
    if any_leading_size:
        tensors = [leaf for leaf in pytree.tree_leaves(example_args) if isinstance(leaf, Tensor)]
        if not all(tensor.ndim and tensor.shape[0] == tensors[0].shape[0] for tensor in tensors):
            raise TraceError("torch.export: the inputs have no common leading size that could be free")
        # a size of 1 would be taken for a constant, so export sees each example twice
        arguments = pytree.tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, example_args)
        dynamic_shapes = pytree.tree_map(
            lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) else None, arguments
        )
    try:
        with _quiet_export(), torch.no_grad():
            exported = torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)
        if any_leading_size and _leading_size_fixed(exported):
            # what AUTO does with a size that the model's code fixes, by a loop over its samples for instance
            raise ValueError("the model's code fixes the leading size")
        return replace(capture_exported_program(exported, example_args), one_size=not any_leading_size)
    except Exception as error:
        raise TraceError(f"torch.export stopped at {_where(error)}: {first_line(error)}") from error


def _leading_size_fixed(exported: torch.export.ExportedProgram) -> bool:
    # here, and below: with them comes sympy, a third of a second for this process and for every stage
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    inputs = set(exported.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder" and node.name in inputs]
    sizes = [value.shape[0] for value in values if isinstance(value, Tensor)]
    if any(is_concrete_int(size) or _is_bounded(exported, size) for size in sizes):
        return True
    return any(_is_condition(guard) for guard in _guards(exported))


def _is_bounded(exported: torch.export.ExportedProgram, size: Any) -> bool:
    """Whether the graph holds in a range of sizes only: the code does otherwise beyond."""
    from torch.utils._sympy.numbers import int_oo

    known = exported.range_constraints.get(size.node.expr)
    return known is not None and (known.upper != int_oo or known.lower > 2)  # export sees two samples at least


def _guards(exported: torch.export.ExportedProgram) -> list[str]:
    """The conditions under which a graph holds, as Python text."""
    return list(getattr(exported, "_guards_code", None) or [])


def _is_condition(guard: str) -> bool:
    """Whether a guard is about a leading size, other than that two inputs' are equal."""
    plain = re.fullmatch(r"\s*(\S+\.size\(\)\[0\])\s*==\s*(\S+\.size\(\)\[0\])\s*", guard)
    return ".size()[0]" in guard and plain is None


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Keep what export says about an attempt that may fail from the user's screen; the error itself is reported."""
    names = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was_disabled in zip(loggers, disabled, strict=True):
            logger.disabled = was_disabled


def capture_exported_program(exported: torch.export.ExportedProgram, example_args: tuple[Any, ...]) -> Captured:
    """Take over the graph of an exported program.

    Raises
    ------
    ValueError
        If the example arguments do not have the structure that the program was exported with.
    """
    module = exported.module()
    assert isinstance(module, fx.GraphModule)
    leaves, _ = slots(example_args)
    _, given_spec = pytree.tree_flatten((example_args, {}))
    if given_spec != exported.call_spec.in_spec:
        raise ValueError(
            f"the exported program takes {exported.call_spec.in_spec}, the example arguments have {given_spec}; "
            "give positional arguments of the exported structure (export without keyword arguments)"
        )
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    placeholders = iter(leaves)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            leaf = next(placeholders)
            if not isinstance(leaf, Slot):
                copied[node] = leaf  # a number, a string or None: fixed at export
                continue
        elif node.op == "call_module" and node.target == "_guards_fn":
            continue  # checks of input shapes, which Chain.pack does
        elif node.op == "output":
            break
        copied[node] = graph.node_copy(node, lambda operand: copied[operand])
    leaves_out = module.graph.output_node().args[0]
    assert isinstance(leaves_out, (list, tuple))
    returned = [copied[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves_out]
    graph.output(returned)
    in_spec = pytree.tree_flatten(example_args)[1]
    return _assemble(module, graph, leaves, in_spec, returned, exported.call_spec.out_spec, "torch.export")


def slots(example_args: tuple[Any, ...]) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten arguments and put a numbered slot in place of each tensor."""
    leaves, spec = pytree.tree_flatten(example_args)
    count = 0
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[position] = Slot(count)
            count += 1
    if not count:
        raise ValueError(
            f"example arguments hold no tensor: {example_args!r}; give the model's call arguments as a tuple"
        )
    return leaves, spec


def _assemble(
    root: nn.Module,
    graph: fx.Graph,
    leaves: list[Any],
    in_spec: pytree.TreeSpec,
    returned: list[Any],
    out_spec: pytree.TreeSpec,
    how: str,
) -> Captured:
    """Gather the state that a graph refers to, one name per tensor, and normalise its output."""
    canonical: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    registered = {id(tensor) for tensor in (*root.parameters(), *root.buffers())}
    buffers = set()

    def intern(name: str, tensor: Tensor) -> str:
        first = canonical.setdefault(id(tensor), name)
        if first not in state:
            own = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
            state[first] = own if obstacle(own) else plain(own, first)
        if id(tensor) in registered:
            buffers.add(first)
        return first

    modules: dict[str, ModuleEntry] = {}
    for node in list(graph.nodes):
        node.meta["module_path"] = _module_path(node)
        if node.op == "get_attr":
            target = _attribute(root, str(node.target))
            if isinstance(target, Tensor):
                node.target = intern(str(node.target), target)
            else:  # a number or an object: an argument like any other
                substitute(node, target)
                graph.erase_node(node)
        elif node.op == "call_module":
            path = str(node.target)
            if path not in modules:
                module = root.get_submodule(path)
                inside = (
                    *module.named_parameters(remove_duplicate=False),
                    *module.named_buffers(remove_duplicate=False),
                )
                modules[path] = ModuleEntry(module, {name: intern(f"{path}.{name}", t) for name, t in inside})

    order: dict[fx.Node, int] = {}
    slotted = [Slot(order.setdefault(leaf, len(order))) if isinstance(leaf, fx.Node) else leaf for leaf in returned]
    graph.output_node().args = (list(order),)
    outcome = pytree.tree_unflatten(slotted, out_spec)
    return Captured(graph, state, modules, frozenset(buffers), leaves, in_spec, outcome, how)


def substitute(node: fx.Node, value: Any) -> None:
    """Put ``value`` wherever ``node`` is an operand."""
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda operand: value if operand is node else operand)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda operand: value if operand is node else operand)


def _attribute(root: nn.Module, path: str) -> Any:
    target: Any = root
    for part in path.split("."):
        target = getattr(target, part)
    return target


def _module_path(node: fx.Node) -> str:
    """Return the innermost module in whose forward the node was traced."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    # torch.export writes L['self'].layer1, or layer1, by version
    return str(path).removeprefix("L['self']").removeprefix(".").replace("slice(None, None, None)", "")


def _where(error: BaseException) -> str:
    """Return file:line and the source of the innermost frame that is neither torch's nor this package's."""
    own = (str(Path(__file__).parents[1]) + os.sep, str(Path(torch.__file__).parent) + os.sep)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith(own) and not f.filename.startswith("<")]
    if not outside:
        return "an unknown place"
    frame = outside[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def untraceable(failures: list[str]) -> TraceError:
    """Return the error that lists every attempt and the remedies."""
    return TraceError("the model cannot be cut into layers. " + " | ".join(failures) + ". " + _REMEDY)
