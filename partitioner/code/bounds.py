"""Bounds on the magnitude of values, so that NaN is checked for only where it can arise.

oneDNN's fused ReLU and clipping turn NaN into a number. NaN never comes out of nothing: a convolution of finite numbers
is NaN only where a sum overflows. With every input at most ``B`` in magnitude, no sum of an output channel, in whatever
order, exceeds ``B * (sum of its weights' magnitudes) + bias``. This bound travels from step to step; what no rule is
known for has none. A fused step that would lose NaN and whose sums have no bound below :data:`LIMIT` gets a check of
its operands before it, from which the bound starts anew. What is checked depends on graph and weights, and whether it
holds on the values alone, so it is the same under every plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, fx

from odin.partitioner.code.fuse import Fused, read_fused
from odin.partitioner.graph.capture import Captured
from odin.partitioner.graph.observe import Observation
from odin.partitioner.graph.operations import operation_name

__all__ = ["LIMIT", "ORDINARY", "Bounds", "Check", "within"]

LIMIT = 1e37
"""Sums up to this magnitude are finite in float32, rounding included."""

ORDINARY = 1e8
"""What a check lets pass. Larger: fewer requests are taken for extraordinary; smaller: fewer checks."""

_BRANCHING = 1e26  # a residual value that gets past this is checked once, before branches of it need checks each
_SUMMED = 1e25  # a mean of values below this does not overflow on the way, however many they are
_LARGE_WEIGHT = 1 << 22  # a linear operation with more weights than this is not worth looking at

_INTEGERS = {"bool": 1.0, "uint8": 255.0, "int8": 128.0, "int16": 32768.0, "int32": 2.0**31, "int64": 2.0**63}


class Check(NamedTuple):
    """Before a step: every element of ``value`` must be a number of at most ``limit`` in magnitude."""

    value: fx.Node
    limit: float


def within(value: Tensor, limit: float) -> bool:
    """Whether every element is a number of at most ``limit`` in magnitude: neither larger, nor infinite, nor NaN."""
    return not value.numel() or (float(value.amax()) <= limit and float(value.amin()) >= -limit)


class Bounds:
    """Bounds of a graph's values, found step by step in the order of execution.

    Parameters
    ----------
    captured
        The prepared graph and its weights.
    observations
        Its example runs: types, and which steps write which memory.
    """

    def __init__(self, captured: Captured, observations: Sequence[Observation]) -> None:
        self._state = captured.state
        self._observations = observations
        self._known: dict[fx.Node, float] = {}
        self._norms: dict[tuple[str, bool], float] = {}
        for node in captured.placeholders:
            spec = observations[0].seen[node].spec
            if spec is not None and spec.dtype in _INTEGERS:
                self._known[node] = _INTEGERS[spec.dtype]

    def of(self, node: fx.Node) -> float:
        """Bound of a value where the walk has got to; infinity if there is none."""
        return self._known.get(node, math.inf)

    def walk(self, steps: Sequence[fx.Node]) -> dict[fx.Node, list[Check]]:
        """Go on through the next steps, after fusing; return what has to be checked before which."""
        checks: dict[fx.Node, list[Check]] = {}
        for step in steps:
            fused = read_fused(step)
            if fused is not None:
                needed, bound = self._fused(fused)
                if needed:
                    checks[step] = needed
            else:
                bound = self._step(step)
            self._note(step, bound)
        return checks

    def _fused(self, call: Fused) -> tuple[list[Check], float]:
        """The checks that a fused step needs, and the bound of its result."""
        gain, bias = self._norm(call.weight), self.magnitude(call.bias) if call.bias is not None else 0.0
        other = 0.0 if call.other is None else self.of(call.other)
        largest = self.of(call.value) * gain + bias + other
        checks = []
        branches = len(call.value.users) > 1 and self.of(call.value) > _BRANCHING
        if call.loses_nan and (branches or not largest <= LIMIT):
            # unknown, or too large: the bounds start anew from what is checked here
            limit = -1.0  # holds for no value: for weights that are NaN, infinite or huge
            if math.isfinite(gain) and bias + ORDINARY <= LIMIT:
                limit = min(ORDINARY, (LIMIT - bias - ORDINARY) / gain) if gain else ORDINARY
            for value, allowed in ((call.value, limit), (call.other, ORDINARY)):
                if value is not None and self.of(value) > max(allowed, 0.0):
                    checks.append(Check(value, allowed))
                    self._known[value] = max(allowed, 0.0)
            largest = limit * gain + bias + (0.0 if call.other is None else self.of(call.other))
        if call.activation == "hardtanh" and largest <= LIMIT:
            return checks, _largest(*call.scalars)
        return checks, largest

    def _step(self, step: fx.Node) -> float:
        rule = _RULES.get(operation_name(step))
        seen = self._observations[0].seen[step]
        made_of_float32 = seen.spec is None or (seen.spec.kind == "tensor" and seen.spec.dtype == "float32")
        if rule is None or not made_of_float32 or any(self._is_empty(node) for node in step.all_input_nodes):
            return math.inf
        try:
            return rule(_Operands(self, step))
        except Exception:  # called in a way that was not foreseen: nothing is known
            return math.inf

    def _is_empty(self, node: fx.Node) -> bool:
        """Whether a value has no elements, whose mean is NaN."""
        if node.op == "get_attr":
            return not self._state[str(node.target)].numel()
        spec = self._observations[0].seen[node].spec
        return spec is not None and 0 in spec.shape

    def _note(self, step: fx.Node, bound: float) -> None:
        """Note a step's bound; it also holds for what shares the memory that the step wrote."""
        bound = bound if bound <= LIMIT else math.inf  # NaN too
        for observation in self._observations:
            seen = observation.seen
            for node in [n for n in self._known if n in seen and seen[n].storages & seen[step].writes]:
                self._known[node] = max(self._known[node], bound)
        self._known[step] = bound

    def magnitude(self, operand: Any) -> float:
        """Bound of an operand: a number, a weight, or a value."""
        if isinstance(operand, bool | int | float):
            return abs(float(operand))
        if not isinstance(operand, fx.Node):
            raise TypeError(operand)
        if operand.op != "get_attr":
            return self.of(operand)
        return float(self._state[str(operand.target)].abs().amax())

    def tensor(self, operand: Any) -> Tensor:
        """Return the weight that an operand is."""
        if not isinstance(operand, fx.Node) or operand.op != "get_attr":
            raise TypeError(operand)
        return self._state[str(operand.target)]

    def _norm(self, weight: fx.Node, *, transposed: bool = False) -> float:
        """Largest sum of magnitudes that one output channel's weights have."""
        key = str(weight.target), transposed
        if key not in self._norms:
            tensor = self.tensor(weight)
            axes = [axis for axis in range(tensor.ndim) if axis != (1 if transposed else 0)]
            self._norms[key] = float(tensor.abs().sum(axes, dtype=torch.float64).amax())
        return self._norms[key]

    def weighted(self, value: Any, weight: Any, bias: Any, *, transposed: bool = False) -> float:
        """Bound of a convolution's or a linear operation's result."""
        self.tensor(weight)
        return self.magnitude(value) * self._norm(weight, transposed=transposed) + (
            0.0 if bias is None else self.magnitude(bias)
        )


class _Operands:
    """A step's operands as bounds."""

    def __init__(self, bounds: Bounds, step: fx.Node) -> None:
        self.bounds = bounds
        self.target = step.target
        self.args = step.args
        self.kwargs = step.kwargs

    def raw(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def __getitem__(self, index: int) -> float:
        return self.bounds.magnitude(self.raw(index, ("input", "other")[index]))


def _largest(*numbers: float) -> float:
    """Return the largest magnitude; infinity if one is NaN."""
    return math.inf if any(math.isnan(number) for number in numbers) else max(map(abs, numbers))


_Rule = Callable[[_Operands], float]


def _first(operands: _Operands) -> float:
    """The result is made of the first operand's elements, or nearer to zero."""
    return operands[0]


def _viewed(operands: _Operands) -> float:
    """As :func:`_first`, unless the bytes are read as another type."""
    as_type = any(isinstance(part, torch.dtype) for part in (*operands.args, *operands.kwargs.values()))
    return math.inf if as_type else operands[0]


def _max_pooled(operands: _Operands) -> float:
    """With dilation, a window may lie outside the image and give minus infinity."""
    dilation = operands.raw(4, "dilation", 1)
    return operands[0] if dilation in (1, [1], (1,), [1, 1], (1, 1), [1, 1, 1], (1, 1, 1)) else math.inf


def _mean(operands: _Operands) -> float:
    return operands[0] if operands[0] <= _SUMMED and operands.raw(6, "divisor_override") is None else math.inf


def _interpolated(operands: _Operands) -> float:
    if operands.raw(3, "mode", "nearest") not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear"):
        return math.inf
    return 2 * operands[0]  # weights that add up to one, but for rounding


def _up_to_one(operands: _Operands) -> float:
    return 1.0 if operands[0] <= LIMIT else math.inf


def _leaky_relu(operands: _Operands) -> float:
    slope = operands.bounds.magnitude(operands.raw(1, "negative_slope", 0.01))
    return operands[0] * _largest(1.0, slope)


def _clipped(low: float | None, high: float | None, names: tuple[str, str]) -> _Rule:
    def rule(operands: _Operands) -> float:
        ends = (operands.raw(1, names[0], low), operands.raw(2, names[1], high))
        return _largest(operands[0], *(float(end) for end in ends if end is not None))

    return rule


def _sum(operands: _Operands) -> float:
    return operands[0] + operands[1] * operands.bounds.magnitude(operands.raw(2, "alpha", 1))


def _product(operands: _Operands) -> float:
    return operands[0] * operands[1]


def _quotient(operands: _Operands) -> float:
    divisor = operands.raw(1, "other")
    is_number = isinstance(divisor, int | float)
    return operands[0] / (abs(divisor) if is_number else float(operands.bounds.tensor(divisor).abs().amin()))


def _joined(operands: _Operands) -> float:
    parts = operands.raw(0, "tensors")
    return _largest(*(operands.bounds.magnitude(part) for part in parts))


def _padded(operands: _Operands) -> float:
    value = operands.raw(3, "value")
    return _largest(operands[0], 0.0 if value is None else float(value))


def _convolved(operands: _Operands) -> float:
    return operands.bounds.weighted(operands.raw(0, "input"), operands.raw(1, "weight"), operands.raw(2, "bias"))


def _linear(operands: _Operands) -> float:
    weight = operands.raw(1, "weight")
    return _convolved(operands) if operands.bounds.tensor(weight).numel() <= _LARGE_WEIGHT else math.inf


def _convolved_back(operands: _Operands) -> float:
    value, weight, bias = operands.raw(0, "input"), operands.raw(1, "weight"), operands.raw(2, "bias")
    return operands.bounds.weighted(value, weight, bias, transposed=True)


def _normalised(operands: _Operands) -> float:
    scale, shift, mean, var = (operands.raw(index, "") for index in range(1, 5))
    training, epsilon = operands.raw(5, ""), float(operands.raw(7, ""))
    if training is not False or operands.target is F.batch_norm:  # whose arguments come in another order
        return math.inf
    take = operands.bounds.tensor
    factor = (take(var).double() + epsilon).rsqrt() * (1.0 if scale is None else take(scale).double())
    offset = (0.0 if shift is None else take(shift).double()) - take(mean).double() * factor
    return operands[0] * float(factor.abs().amax()) + float(offset.abs().amax())


# fmt: off
_RULES: dict[str, _Rule] = {
    name: rule
    for rule, names in (
        (_first, (
            "relu", "relu6", "silu", "hardswish", "gelu", "mish", "abs", "neg", "contiguous", "clone", "detach",
            "flatten", "reshape", "unflatten", "permute", "transpose", "movedim", "swapaxes", "unsqueeze", "squeeze",
            "expand", "expand_as", "repeat", "chunk", "split", "split_with_sizes", "unbind", "narrow", "select",
            "getitem", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "float", "to", "_to_copy",
            "alias", "slice", "amax", "amin", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
        )),
        (_viewed, ("view",)),
        (_max_pooled, ("max_pool1d", "max_pool2d", "max_pool3d")),
        (_up_to_one, ("sigmoid", "tanh", "softmax", "hardsigmoid", "sin", "cos")),
        (_mean, (
            "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
            "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
        )),
        (_sum, ("add", "iadd", "sub", "isub")),
        (_product, ("mul", "imul", "multiply")),
        (_quotient, ("div", "truediv", "itruediv", "divide")),
        (_joined, ("cat", "concat", "stack")),
        (_convolved, ("conv1d", "conv2d", "conv3d")),
        (_convolved_back, ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")),
        (_linear, ("linear",)),
        (_normalised, ("batch_norm",)),
        (_interpolated, ("interpolate",)),
        (_leaky_relu, ("leaky_relu",)),
        (_clipped(-1.0, 1.0, ("min_val", "max_val")), ("hardtanh",)),
        (_clipped(None, None, ("min", "max")), ("clamp",)),
        (_padded, ("pad",)),
    )
    for name in names
}
"""Rules by the name of the operation; one that writes in place has the same."""
# fmt: on
