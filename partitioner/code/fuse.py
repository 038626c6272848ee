"""Convolutions take the addition and activation that follow into themselves, and their weights packed (oneDNN, CPU).

``relu(conv(x) + y)`` as three calls writes and reads the activation three times; oneDNN does all of it while a tile is
in the cache. And a convolution given plain weights reorders them into blocks on every call, which takes a third of the
time of the deep layers of a ResNet, with their many weights and small images; :func:`pack` does it once.

The same calls serve packed and plain weights. Devices without oneDNN take :data:`PORTABLE` instead. oneDNN's fused call
knows images and volumes; a sequence is an image of one row (:mod:`odin.partitioner.code.rows`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, fx

from odin.partitioner.code.rows import convolve_row, convolve_row_add, row_pays
from odin.partitioner.graph.observe import Observation

__all__ = [
    "KEEPING_NAN",
    "PORTABLE",
    "Fused",
    "Packing",
    "available",
    "fuse",
    "pack",
    "read_fused",
]

# function -> how many axes its images have
_CONVOLUTIONS: dict[Any, int] = {
    F.conv1d: 1,
    torch.ops.aten.conv1d.default: 1,
    F.conv2d: 2,
    torch.ops.aten.conv2d.default: 2,
    F.conv3d: 3,
    torch.ops.aten.conv3d.default: 3,
}
_ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ADDITIONS = (operator.add, operator.iadd, torch.add, torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_ADDITION_METHODS = ("add", "add_")

# What follows -> oneDNN's name for it. The arguments after the input are checked in _activation.
_ACTIVATIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    torch.ops.aten.relu.default: "relu",
    torch.ops.aten.relu_.default: "relu",
    torch._C._nn.hardtanh: "hardtanh",
    torch._C._nn.hardtanh_: "hardtanh",
    F.hardtanh: "hardtanh",
    F.relu6: "relu6",
    torch.ops.aten.hardtanh.default: "hardtanh",
    torch.ops.aten.hardtanh_.default: "hardtanh",
    torch._C._nn.silu: "swish",
    torch._C._nn.silu_: "swish",
    F.silu: "swish",
    torch.ops.aten.silu.default: "swish",
    torch.ops.aten.silu_.default: "swish",
    torch._C._nn.hardswish: "hardswish",
    torch._C._nn.hardswish_: "hardswish",
    F.hardswish: "hardswish",
    torch.ops.aten.hardswish.default: "hardswish",
    torch.ops.aten.hardswish_.default: "hardswish",
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu"}


class Packing(NamedTuple):
    """How a weight is packed: the arguments of its one convolution, and that one's input for the example."""

    weight: str
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    input_shape: tuple[int, ...]


@functools.cache
def available() -> bool:
    """Whether this PyTorch has oneDNN and the fused calls."""
    try:
        return bool(torch.backends.mkldnn.is_available()) and bool(
            torch.ops.mkldnn._convolution_pointwise.binary and torch.ops.mkldnn._reorder_convolution_weight
        )
    except AttributeError:
        return False


def pack(state: Mapping[str, Tensor], packings: Sequence[Packing], *, batch: int | None = None) -> dict[str, Tensor]:
    """Return the state with the weights named by ``packings`` in oneDNN's blocked form; others as they are.

    Parameters
    ----------
    state
        Weights by name.
    packings
        What to pack, and for which convolution.
    batch
        Leading size of the inputs to come, which the form may depend on; by default the example's.
    """
    packed = dict(state)
    if not available():
        return packed
    with torch.inference_mode(False), torch.no_grad():
        for name, padding, stride, dilation, groups, input_shape in packings:
            shape, weight = [batch or input_shape[0], *input_shape[1:]], state[name]
            if len(shape) == 3:  # a sequence: an image of one row
                shape.insert(2, 1)
                weight, padding, stride, dilation = weight.unsqueeze(2), (0, *padding), (1, *stride), (1, *dilation)
            packed[name] = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, stride, dilation, groups, shape
            )
    return packed


def fuse(
    steps: Sequence[fx.Node], kept: frozenset[fx.Node], observation: Observation, uses: Mapping[str, int]
) -> tuple[list[fx.Node], list[Packing]]:
    """Rewrite one layer's steps in place: each convolution takes what follows into itself.

    Parameters
    ----------
    steps
        The layer's calls, in order.
    kept
        Nodes whose values leave the layer.
    observation
        The example run of the graph.
    uses
        How many steps read each weight.

    Returns
    -------
    tuple
        The remaining steps, and how the weights that only one convolution reads can be packed.
    """
    remaining = list(steps)
    packings: list[Packing] = []
    if not available():
        return remaining, packings
    for conv in steps:
        call = _as_convolution(conv, observation)
        if call is None or (len(call.shape) == 3 and not row_pays(conv, call.value)):
            continue
        packing = Packing(str(call.weight.target), call.padding, call.stride, call.dilation, call.groups, call.shape)
        place = _Place(remaining, kept, observation, conv, call.value)
        arguments = (call.weight, call.bias, call.padding, call.stride, call.dilation, call.groups)
        added = place.follower(conv)
        other = _other_operand(added, conv, observation) if added is not None else None
        if added is not None and other is not None and place.can_move_to(added):
            active = place.follower(added)
            name = _activation(active, added)[0] if active is not None else None
            target = active if active is not None and name == "relu" and place.can_move_to(active) else added
            unary = "relu" if target is active else None
            replaced = {conv, added, target}
            function: Any = _FUNCTIONS[len(call.shape) == 3][1]
            new_args: tuple[Any, ...] = (call.value, other, *arguments, "add", 1.0, unary, [], "")
        else:
            name, scalars = _activation(added, conv) if added is not None else (None, [])
            target = added if added is not None and name is not None and place.can_move_to(added) else conv
            replaced = {conv, target}
            function = _FUNCTIONS[len(call.shape) == 3][0]
            attribute = (name, scalars, "") if target is not conv else ("none", [], "")
            new_args = (call.value, *arguments, *attribute)
        target.meta["module_path"] = conv.meta["module_path"]
        target.op, target.target, target.args, target.kwargs = "call_function", function, new_args, {}
        for node in reversed([node for node in remaining if node in replaced and node is not target]):
            remaining.remove(node)
            conv.graph.erase_node(node)
        if uses[packing.weight] == 1:
            packings.append(packing)
    return remaining, packings


class Fused(NamedTuple):
    """A fused step: ``activation(convolution(value) + other)``."""

    value: fx.Node
    other: fx.Node | None
    weight: fx.Node
    bias: fx.Node | None
    activation: str
    scalars: list[float]

    @property
    def loses_nan(self) -> bool:
        """Whether NaN, or what PyTorch's steps make infinite, comes out as a number.

        Maximum and minimum know no NaN here, and ``x * relu6(x + 3) / 6`` is not multiplied before it is divided.
        """
        return self.activation in ("relu", "hardtanh", "hardswish")


def read_fused(step: fx.Node) -> Fused | None:
    """Read a step that :func:`fuse` wrote; None for any other."""
    args: tuple[Any, ...] = step.args
    if not available():
        return None
    if any(step.target is single for single, _ in _FUNCTIONS):
        return Fused(args[0], None, args[1], args[2], args[7], args[8])
    if any(step.target is binary for _, binary in _FUNCTIONS):
        return Fused(args[0], args[1], args[2], args[3], args[10] or "none", args[11])
    return None


class _Convolution(NamedTuple):
    value: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]


def _as_convolution(step: fx.Node, observation: Observation) -> _Convolution | None:
    """Read a step's arguments if it is a float32 convolution of a batch by a weight of the model."""
    axes = _CONVOLUTIONS.get(step.target) if step.op == "call_function" else None
    if axes is None:
        return None
    named = {**dict(zip(_ORDER, step.args, strict=False)), **step.kwargs}
    value, weight, bias = named.get("input"), named.get("weight"), named.get("bias")
    sizes = [
        _size(named.get(name, default), axes) for name, default in (("padding", 0), ("stride", 1), ("dilation", 1))
    ]
    padding, stride, dilation = sizes
    groups = named.get("groups", 1)
    if not isinstance(value, fx.Node) or not isinstance(groups, int) or not _is_weight(weight):
        return None
    if not (bias is None or _is_weight(bias)) or padding is None or stride is None or dilation is None:
        return None
    seen, result = observation.seen.get(value), observation.seen.get(step)
    if seen is None or seen.spec is None or result is None or result.spec is None:
        return None
    if len(seen.spec.shape) != axes + 2 or seen.spec.dtype != "float32" or result.spec.dtype != "float32":
        return None
    return _Convolution(value, weight, bias, padding, stride, dilation, groups, seen.spec.shape)  # type: ignore[arg-type]


def _is_weight(operand: Any) -> bool:
    return isinstance(operand, fx.Node) and operand.op == "get_attr"


def _size(size: Any, axes: int) -> tuple[int, ...] | None:
    """Write a padding, stride or dilation out for each axis; None if it is not made of numbers."""
    if isinstance(size, int):
        return (size,) * axes
    if not isinstance(size, (tuple, list)) or not all(isinstance(part, int) for part in size):
        return None
    return tuple(size) * axes if len(size) == 1 else tuple(size)


def _activation(step: fx.Node, source: fx.Node) -> tuple[str | None, list[float]]:
    """Return oneDNN's name and numbers for an activation of ``source``, or None."""
    if not step.args or step.args[0] is not source:
        return None, []
    if step.op == "call_method":
        return (_ACTIVATION_METHODS.get(str(step.target)) if len(step.args) == 1 and not step.kwargs else None), []
    name = _ACTIVATIONS.get(step.target) if step.op == "call_function" else None
    if name in ("hardtanh", "relu6"):
        bounds = {"min_val": -1.0, "max_val": 1.0} if name == "hardtanh" else {"min_val": 0.0, "max_val": 6.0}
        if name == "hardtanh":
            bounds |= dict(zip(bounds, step.args[1:], strict=False))  # type: ignore[arg-type]
            bounds |= {key: value for key, value in step.kwargs.items() if key in bounds}  # type: ignore[misc]
        numbers = list(bounds.values())
        return ("hardtanh", numbers) if all(isinstance(number, int | float) for number in numbers) else (None, [])
    return name, []


def _other_operand(step: fx.Node, source: fx.Node, observation: Observation) -> fx.Node | None:
    """Return what ``source`` is added to, if ``step`` adds two tensors of the same shape and type."""
    is_addition = (
        step.target in _ADDITIONS if step.op == "call_function" else str(step.target) in _ADDITION_METHODS
    ) and step.op in ("call_function", "call_method")
    if not is_addition or step.kwargs or len(step.args) != 2:
        return None
    first, second = step.args
    other = second if first is source else first
    if not isinstance(other, fx.Node) or other is source or _is_weight(other):
        return None
    specs = [seen.spec if (seen := observation.seen.get(node)) is not None else None for node in (source, other, step)]
    if specs[0] is None or any(spec is None or spec[:3] != specs[0][:3] for spec in specs):
        return None
    if first is other and observation.seen[step].writes and not _only_read_before(other, step, observation):
        return None
    return other


def _only_read_before(value: fx.Node, step: fx.Node, observation: Observation) -> bool:
    """Whether nobody reads ``value``'s memory after ``step``, which writes it, but through ``step``'s own result."""
    order = {node: index for index, node in enumerate(observation.seen)}
    memory = observation.seen[value].storages
    for node, seen in observation.seen.items():
        # an output has no place in the order: it is read last
        read_last = max((order.get(user, len(order)) for user in node.users), default=-1)
        if seen.storages & memory and order[node] < order[step] < read_last:
            return False
    return True


class _Place:
    """Where a convolution could be computed: later than it stands, as part of a step that follows it."""

    def __init__(
        self,
        steps: Sequence[fx.Node],
        kept: frozenset[fx.Node],
        observation: Observation,
        conv: fx.Node,
        value: fx.Node,
    ) -> None:
        self._steps, self._kept, self._observation, self._conv = steps, kept, observation, conv
        self._memory = observation.seen[value].storages

    def follower(self, node: fx.Node) -> fx.Node | None:
        """Return the one step of this layer that reads ``node``'s value, if nobody else does."""
        if node in self._kept or len(node.users) != 1:
            return None
        (user,) = node.users
        return user if user in self._steps and user.op in ("call_function", "call_method") else None

    def can_move_to(self, target: fx.Node) -> bool:
        """Whether nothing writes the convolution's input between its place and ``target``."""
        between = self._steps[self._steps.index(self._conv) + 1 : self._steps.index(target)]
        seen = self._observation.seen
        return not any(node in seen and seen[node].writes & self._memory for node in between)


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve in the way that every device has."""
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return convolve(x, weight, bias, list(stride), list(padding), list(dilation), groups)


def _packed(*arguments: Any) -> Tensor:
    """Convolve with oneDNN, weights packed or plain, and nothing after it."""
    result: Tensor = torch.ops.mkldnn._convolution_pointwise.default(*arguments, "none", [], "")
    return result


def _packed_row(*arguments: Any) -> Tensor:
    return convolve_row(*arguments, "none", [], "")


def _in_steps(convolve: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What ``mkldnn._convolution_pointwise`` computes, in steps."""
    *operands, attribute, scalars, _ = arguments
    return _IN_PLACE[attribute](convolve(*operands), *scalars)


def _in_steps_add(convolve: Callable[..., Tensor], x: Tensor, other: Tensor, *arguments: Any) -> Tensor:
    """What ``mkldnn._convolution_pointwise.binary`` computes for an addition, in steps."""
    *operands, _, _, attribute, scalars, _ = arguments
    return _IN_PLACE[attribute or "none"](convolve(x, *operands).add_(other), *scalars)


_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu_,
    "hardtanh": torch._C._nn.hardtanh_,
    "swish": torch._C._nn.silu_,
    "hardswish": torch._C._nn.hardswish_,
}


# (alone, with an addition) for images and volumes, and for sequences
_FUNCTIONS: tuple[tuple[Any, Any], ...] = (
    (
        (torch.ops.mkldnn._convolution_pointwise.default, torch.ops.mkldnn._convolution_pointwise.binary),
        (convolve_row, convolve_row_add),
    )
    if available()
    else ()
)
_FUSED = (
    "torch.ops.mkldnn._convolution_pointwise.default",
    "torch.ops.mkldnn._convolution_pointwise.binary",
)
_FUSED_ROWS = ("odin.partitioner.code.rows.convolve_row", "odin.partitioner.code.rows.convolve_row_add")
PORTABLE: dict[str, Callable[..., Tensor]] = {
    _FUSED[0]: functools.partial(_in_steps, _plain),
    _FUSED[1]: functools.partial(_in_steps_add, _plain),
    _FUSED_ROWS[0]: functools.partial(_in_steps, _plain),
    _FUSED_ROWS[1]: functools.partial(_in_steps_add, _plain),
}
"""Import path of a fused call -> what stands for it on devices without oneDNN."""

KEEPING_NAN: dict[str, Callable[..., Tensor]] = {
    _FUSED[0]: functools.partial(_in_steps, _packed),
    _FUSED[1]: functools.partial(_in_steps_add, _packed),
    _FUSED_ROWS[0]: functools.partial(_in_steps, _packed_row),
    _FUSED_ROWS[1]: functools.partial(_in_steps_add, _packed_row),
}
"""Import path of a fused call -> what stands for it where there is NaN, which oneDNN's ReLU turns into zero."""
