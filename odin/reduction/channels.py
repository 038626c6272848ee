"""Which channels of a model belong together: what has to be removed everywhere at once, found in its graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from odin.partitioner.graph.capture import TraceError, first_line
from odin.reduction.answering import ReductionError

__all__ = ["ChannelGroups", "Use", "find_groups"]

_KEEPS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
"""Modules that compute each channel by itself."""
_KEEPING_CALLS = frozenset(
    {
        functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
        functional.mish, functional.sigmoid, functional.tanh, functional.hardswish, functional.hardsigmoid,
        functional.dropout, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
        functional.adaptive_max_pool2d, functional.interpolate, torch.relu, torch.sigmoid, torch.tanh,
        "relu", "relu_", "sigmoid", "tanh", "contiguous", "clone",
    }
)  # fmt: skip
_PAIRING = frozenset(
    {operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.mul, "add", "add_", "mul"}
)
"""Calls that bring the same channel of two values together."""
_FLATTENING = frozenset({torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze"})
_AVERAGING = frozenset({torch.mean, "mean"})


class Use(NamedTuple):
    """A module's weight along a group.

    Attributes
    ----------
    path
        Of the module.
    role
        ``"writes"`` (a convolution's or linear layer's outputs), ``"reads"`` (their inputs), or ``"each"`` (batch
        norm, or a convolution of each channel by itself).
    repeat
        Inputs of a linear layer that are of one channel: height x width, where an image was flattened.
    """

    path: str
    role: str
    repeat: int = 1


class _Axis(NamedTuple):
    group: int
    repeat: int


class ChannelGroups:
    """Groups of channels: of a group the same ones go everywhere.

    Attributes
    ----------
    sizes
        Channels of each group, by its number.
    uses
        Modules along each group.
    fixed
        Groups of which all channels stay: the model's input and its scores.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.uses: dict[int, list[Use]] = {}
        self.fixed: set[int] = set()
        self._joined: dict[int, int] = {}

    def new(self, size: int) -> _Axis:
        """Begin a group."""
        number = len(self._joined)
        self._joined[number] = number
        self.sizes[number], self.uses[number] = size, []
        return _Axis(number, 1)

    def root(self, number: int) -> int:
        """The group that a number stands for by now."""
        while self._joined[number] != number:
            number = self._joined[number]
        return number

    def use(self, axis: _Axis, use: Use) -> None:
        """Note that a module has weights along an axis."""
        self.uses[self.root(axis.group)].append(use)

    def join(self, one: _Axis, other: _Axis, where: str) -> _Axis:
        """Make two groups one."""
        first, second = sorted((self.root(one.group), self.root(other.group)))
        if self.sizes[first] != self.sizes[second] or one.repeat != other.repeat:
            raise ReductionError(
                f"{where} brings {self.sizes[first]} and {self.sizes[second]} channels together, which cannot be "
                "narrowed alike; put early exits into this model instead"
            )
        if first != second:
            self._joined[second] = first
            self.uses[first] += self.uses.pop(second)
            del self.sizes[second]
            if second in self.fixed:
                self.fixed.remove(second)
                self.fixed.add(first)
        return _Axis(first, one.repeat)


def find_groups(model: nn.Module, example: Tensor) -> ChannelGroups:
    """Follow channels through a model.

    Parameters
    ----------
    model
        In eval mode; convolutions, linear layers, batch norm, activations, pooling, additions and products.
    example
        One input.

    Raises
    ------
    ReductionError
        If it has another operation, whose name is in the message.
    TraceError
        If it cannot be traced.
    """
    try:
        module = fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's own code raises on what is no tensor
        raise TraceError(f"{type(model).__name__} cannot be traced by torch.fx ({first_line(error)})") from error
    walk = _Walk(module)
    with torch.no_grad():
        walk.run(example)
    return walk.groups


class _Walk(fx.Interpreter):
    """Runs the graph on the example, and follows the axis of channels of each value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # of what is told of a refusal
        self.groups = ChannelGroups()
        self._axes: dict[fx.Node, _Axis] = {}
        self._values: dict[fx.Node, tuple[int, ...]] = {}
        self._called: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; note its axis."""
        if n.op == "output":
            self._end(n)
            return super().run_node(n)
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self._values[n] = tuple(result.shape)
            self._axes[n] = self._axis(n, tuple(result.shape))
        elif n.op.startswith("call_") and not isinstance(result, (int, torch.Size, tuple)):
            raise self._refuse(n)
        return result

    def _end(self, n: fx.Node) -> None:
        returned = n.args[0]
        if not isinstance(returned, fx.Node) or len(self._values.get(returned, ())) != 2:
            raise ReductionError(
                "the model does not return scores (images, classes): only a classifier can be narrowed"
            )
        self.groups.fixed.add(self.groups.root(self._axes[returned].group))

    def _axis(self, n: fx.Node, shape: tuple[int, ...]) -> _Axis:
        if n.op == "placeholder":
            if len(shape) != 4:
                raise ReductionError(f"the model takes a tensor of shape {shape}, no images: it cannot be narrowed")
            axis = self.groups.new(shape[1])
            self.groups.fixed.add(axis.group)
            return axis
        if n.op == "get_attr":
            raise self._refuse(n)
        if n.op == "call_module":
            return self._of_module(n, self.module.get_submodule(str(n.target)), shape)
        target: Any = n.target
        operands = [operand for operand in n.all_input_nodes if operand in self._axes]
        if target in _KEEPING_CALLS and len(operands) == 1:
            return self._axes[operands[0]]
        if target in _PAIRING:
            return self._of_pair(n, operands)
        if target in _AVERAGING and self._averages_area(n, operands, shape):
            return self._axes[operands[0]]
        if target in _FLATTENING and len(operands) == 1:
            return self._flattened(n, operands[0], shape)
        raise self._refuse(n)

    def _of_module(self, n: fx.Node, module: nn.Module, shape: tuple[int, ...]) -> _Axis:
        path, source = str(n.target), n.args[0]
        if not isinstance(source, fx.Node) or source not in self._axes:
            raise self._refuse(n)
        axis = self._axes[source]
        if path in self._called and any(True for _ in module.parameters()):
            raise ReductionError(f"{path} is called more than once, so it cannot be narrowed for each place alike")
        self._called.add(path)
        if isinstance(module, nn.Conv2d):
            if module.groups == 1 and axis.repeat == 1:
                return self._written(path, axis, module.out_channels)
            if module.groups == module.in_channels == module.out_channels:
                self.groups.use(axis, Use(path, "each"))
                return axis
            raise ReductionError(
                f"{path} is a convolution in {module.groups} groups of several channels, which cannot be narrowed; put "
                "early exits into this model instead"
            )
        if isinstance(module, nn.Linear) and len(shape) == 2:
            return self._written(path, axis, module.out_features)
        if isinstance(module, _BatchNorm) and axis.repeat == 1:
            self.groups.use(axis, Use(path, "each"))
            return axis
        if isinstance(module, nn.Flatten):
            return self._flattened(n, source, shape)
        if isinstance(module, _KEEPS):
            return axis
        raise self._refuse(n)

    def _written(self, path: str, axis: _Axis, size: int) -> _Axis:
        self.groups.use(axis, Use(path, "reads", axis.repeat))
        made = self.groups.new(size)
        self.groups.use(made, Use(path, "writes"))
        return made

    def _of_pair(self, n: fx.Node, operands: list[fx.Node]) -> _Axis:
        if len(operands) == 1:
            return self._axes[operands[0]]  # and a number
        if len(operands) != 2 or len({len(self._values[operand]) for operand in operands}) != 1:
            raise self._refuse(n)
        return self.groups.join(self._axes[operands[0]], self._axes[operands[1]], self._place(n))

    def _averages_area(self, n: fx.Node, operands: list[fx.Node], shape: tuple[int, ...]) -> bool:
        if len(operands) != 1 or len(self._values[operands[0]]) != 4:
            return False
        before = self._values[operands[0]]
        return shape in (before[:2], (*before[:2], 1, 1))

    def _flattened(self, n: fx.Node, source: fx.Node, shape: tuple[int, ...]) -> _Axis:
        before, axis = self._values[source], self._axes[source]
        area = 1
        for side in before[2:]:
            area *= side
        if shape == before:
            return axis
        if len(before) != 4 or shape[:2] != (before[0], before[1] * area) or len(shape) > 2:
            raise self._refuse(n)
        return axis._replace(repeat=axis.repeat * area)

    def _place(self, n: fx.Node) -> str:
        if n.op == "call_module":
            return f"{n.target} ({type(self.module.get_submodule(str(n.target))).__name__})"
        target: str | Callable[..., Any] = n.target
        return f"{n.name} ({target if isinstance(target, str) else getattr(target, '__name__', target)})"

    def _refuse(self, n: fx.Node) -> ReductionError:
        return ReductionError(
            f"{self._place(n)} is no operation whose channels can be followed (convolutions, linear layers, batch "
            "norm, activations, pooling, additions, products): this model cannot be narrowed; put early exits into it "
            "instead"
        )
