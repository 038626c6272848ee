"""Run a graph node by node on an example and note what each value is, which memory it shares and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils import flop_counter

from odin.partitioner import strides
from odin.partitioner.graph.capture import Captured
from odin.partitioner.graph.values import ValueSpec, spec_of
from odin.partitioner.graph.watching import Sizes, without_compiler

__all__ = ["Observation", "Seen", "as_dense", "is_dense", "observe"]

if hasattr(flop_counter, "_FlopCounterMode"):  # the mode inside of the counter
    without_compiler(flop_counter._FlopCounterMode)


@dataclass(frozen=True)
class Seen:
    """What one value was in the example run.

    Attributes
    ----------
    spec
        How it crosses a cut; None if it cannot.
    value
        The value itself if it is not made of tensors (a dtype, a number, ...), otherwise None.
    structure
        The type of a list, tuple or dict of values (it cannot cross), otherwise None.
    storages
        Identities of the memory it lives in.
    dense
        All its tensors fill their extent without overlap, so a copy of that extent is a copy of the value.
    whole
        They are dense, and nothing else lies in their memory.
    writes
        Memory that this step wrote which existed before it.
    identity_of
        The operand that this step returned untouched.
    from_state_only
        The step's operands are all weights (a constant of the model).
    flops
        Floating point operations.
    moved_nbytes
        Bytes read plus written; 0 for views.
    sized_by_data
        Its size depends on the values of the inputs (``nonzero``), not on their sizes alone.
    """

    spec: ValueSpec | None
    value: Any
    structure: type | None
    storages: frozenset[int]
    dense: bool
    whole: bool
    writes: frozenset[int] = frozenset()
    identity_of: fx.Node | None = None
    from_state_only: bool = False
    flops: int = 0
    moved_nbytes: int = 0
    sized_by_data: bool = False


@dataclass
class Observation:
    """One example run: what was seen per node, the outputs, and which memory is the state's and the inputs'."""

    seen: dict[fx.Node, Seen]
    outputs: list[Any] = field(default_factory=list)
    state_storages: dict[int, set[str]] = field(default_factory=dict)
    input_storages: frozenset[int] = frozenset()
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)

    @property
    def writes(self) -> frozenset[int]:
        """Memory that any step wrote."""
        return frozenset().union(*(seen.writes for seen in self.seen.values()))


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's elements fill a contiguous extent of memory, each place once, in any order of axes."""
    return has_memory(tensor) and strides.is_dense(tensor.shape, tensor.stride())


def as_dense(tensor: Tensor) -> Tensor:
    """Return a tensor itself if it is dense, else a dense copy with its axes in the same order in memory."""
    return tensor if is_dense(tensor) else tensor.clone()


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor's elements lie in memory by strides: not sparse, not nested, not oneDNN's own."""
    return tensor.layout == torch.strided and not tensor.is_nested


def _fills_its_memory(tensor: Tensor) -> bool:
    return has_memory(tensor) and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


class _Storages:
    """Names memory by numbers that are never used twice in a run (addresses are, once freed)."""

    def __init__(self) -> None:
        self._held: dict[int, StorageWeakRef] = {}

    def of(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        keys = []
        for tensor in filter(has_memory, tensors):
            reference = StorageWeakRef(tensor.untyped_storage())
            self._held.setdefault(reference.cdata, reference)  # holding the reference keeps the number taken
            keys.append(reference.cdata)
        return frozenset(keys)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def observe(captured: Captured, inputs: Sequence[Tensor], *, count_flops: bool = False) -> Observation:
    """Run a captured graph step by step.

    Parameters
    ----------
    captured
        The graph with its state.
    inputs
        One tensor per placeholder. Written if the model writes its inputs.
    count_flops
        Count floating point operations (slower).

    Returns
    -------
    Observation
    """
    memory = _Storages()
    environment: dict[fx.Node, Any] = {}
    constants: set[fx.Node] = set()  # known before any input is
    observation = Observation({})
    for name, tensor in captured.state.items():
        for key in memory.of([tensor]):
            observation.state_storages.setdefault(key, set()).add(name)
    for node, tensor in zip(captured.placeholders, inputs, strict=True):
        environment[node] = tensor
        observation.seen[node] = _describe(tensor, memory)
    observation.input_storages = memory.of(inputs)
    for node in captured.graph.nodes:
        if node.op == "get_attr":
            environment[node] = captured.state[str(node.target)]
            constants.add(node)

    last_use: dict[fx.Node, fx.Node] = {}
    for node in captured.graph.nodes:
        for operand in node.all_input_nodes:
            last_use[operand] = node
    counter = flop_counter.FlopCounterMode(display=False) if count_flops else None
    fixed = _Fixed(memory, observation.state_storages, constants)
    sizes = Sizes(fixed.holds)
    with torch.no_grad(), counter or contextlib.nullcontext(), sizes:
        for step in captured.steps:
            flops_before = counter.get_total_flops() if counter else 0
            seen, result = _run_step(step, captured, environment, constants, memory)
            by_data, numbers = sizes.take()
            if by_data or (numbers and type(result) is int) or _inherits_size(step, result, observation, environment):
                seen = replace(seen, sized_by_data=True)
            fixed.note(step, result, seen, numbers)
            if counter:
                seen = replace(seen, flops=counter.get_total_flops() - flops_before)
            observation.seen[step] = seen
            environment[step] = result
            if seen.from_state_only and isinstance(result, Tensor):
                observation.constants[step] = result
                constants.add(step)
            for operand in step.all_input_nodes:
                if last_use[operand] is step and operand.op != "get_attr":
                    del environment[operand]
            if step not in last_use:
                del environment[step]
    observation.outputs = [environment[node] for node in captured.outputs]
    return observation


class _Fixed:
    """Which values are the same in every request: weights, and what is made of them and of sizes alone."""

    def __init__(self, memory: _Storages, state: Iterable[int], nodes: Iterable[fx.Node]) -> None:
        self._memory = memory
        self._storages = set(state)
        self._nodes = set(nodes)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are fixed."""
        return has_memory(tensor) and self._memory.of([tensor]) <= self._storages

    def note(self, step: fx.Node, result: Any, seen: Seen, numbers: bool) -> None:
        """Take notice of a step's result; ``numbers``: values of tensors were read."""
        is_size = not _tensors(result) and not numbers
        if not seen.sized_by_data and (is_size or self._nodes.issuperset(step.all_input_nodes)):
            self._nodes.add(step)
            self._storages |= seen.storages
        self._storages -= seen.writes


def _inherits_size(step: fx.Node, result: Any, observation: Observation, environment: dict[fx.Node, Any]) -> bool:
    """Whether a step passes on that an operand's size depends on the data."""
    by_data = [
        node for node in step.all_input_nodes if node in observation.seen and observation.seen[node].sized_by_data
    ]
    if not by_data:
        return False
    if not isinstance(result, Tensor) or not has_memory(result):
        return True
    # not so one number, nor what is as large as an operand of fixed size: a sum, index_copy, a product with a sum
    others = [environment[node] for node in step.all_input_nodes if node not in by_data]
    return bool(result.ndim) and not any(isinstance(x, Tensor) and x.shape == result.shape for x in others)


def _run_step(
    step: fx.Node, captured: Captured, environment: dict[fx.Node, Any], constants: set[fx.Node], memory: _Storages
) -> tuple[Seen, Any]:
    args = fx.node.map_arg(step.args, lambda node: environment[node])
    kwargs = fx.node.map_arg(step.kwargs, lambda node: environment[node])
    operands = _tensors((args, kwargs))
    read = list(operands)
    versions = [tensor._version for tensor in operands]
    result: Any
    if step.op == "call_module":
        entry = captured.modules[str(step.target)]
        inside = [captured.state[name] for name in entry.tensors.values()]
        operands += inside
        read += inside
        versions += [tensor._version for tensor in inside]
        result = entry.module(*args, **kwargs)
    elif step.op == "call_method":
        result = getattr(args[0], str(step.target))(*args[1:], **kwargs)
    else:
        function: Callable[..., Any] = step.target  # type: ignore[assignment]  # call_function by elimination
        result = function(*args, **kwargs)

    written = [t for t, version in zip(operands, versions, strict=True) if t._version != version]
    described = _describe(result, memory)
    untouched = None
    if not written:
        same = [node for node in step.all_input_nodes if environment[node] is result]
        untouched = same[0] if same and isinstance(result, Tensor) else None
    produced = _tensors(result)
    views = bool(described.storages) and described.storages <= memory.of(operands) and not written
    moved = 0 if views or untouched else sum(t.numel() * t.element_size() for t in (*read, *produced))
    sources = step.all_input_nodes
    seen = Seen(
        spec=described.spec,
        value=described.value,
        structure=described.structure,
        storages=described.storages,
        dense=described.dense,
        whole=described.whole,
        writes=memory.of(written),
        identity_of=untouched,
        from_state_only=bool(sources) and all(node in constants for node in sources),
        moved_nbytes=moved,
    )
    return seen, result


def _describe(value: Any, memory: _Storages) -> Seen:
    tensors = _tensors(value)
    dense = all(is_dense(tensor) for tensor in tensors)
    container = isinstance(value, (list, tuple, dict)) and not isinstance(value, torch.Size)
    return Seen(
        spec=spec_of(value),
        value=None if tensors else value,
        structure=type(value) if container else None,
        storages=memory.of(tensors),
        dense=dense,
        whole=dense and all(_fills_its_memory(tensor) for tensor in tensors),
    )
