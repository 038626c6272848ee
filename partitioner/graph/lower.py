"""Simple modules become the functional calls that they make, so that a layer calls torch and nothing between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import nn

__all__ = ["INPUT", "Call", "Weight", "is_plain", "lowered"]

INPUT = object()  # stands for the module's one argument


class Weight(NamedTuple):
    """Stands for a parameter or buffer of the module."""

    name: str


class Call(NamedTuple):
    """A call that does what a module does: the same kernels, hence the same bits."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


def _optional(module: nn.Module, name: str) -> Weight | None:
    return Weight(name) if getattr(module, name) is not None else None


def _conv(function: Callable[..., Any]) -> Callable[[Any], Call | None]:
    def lower(m: Any) -> Call | None:
        if m.padding_mode != "zeros":  # pads in a step of its own
            return None
        bias = _optional(m, "bias")
        return Call(function, (INPUT, Weight("weight"), bias, m.stride, m.padding, m.dilation, m.groups))

    return lower


def _conv_transpose(function: Callable[..., Any]) -> Callable[[Any], Call | None]:
    def lower(m: Any) -> Call | None:
        bias = _optional(m, "bias")
        sizes = (m.stride, m.padding, m.output_padding, m.groups, m.dilation)
        return Call(function, (INPUT, Weight("weight"), bias, *sizes))

    return lower


def _linear(m: Any) -> Call | None:
    return Call(F.linear, (INPUT, Weight("weight"), _optional(m, "bias")))


def _batch_norm(m: Any) -> Call | None:
    if m.running_mean is None or m.running_var is None or m.training:
        return None  # normalises by the batch's own statistics
    mean, var = Weight("running_mean"), Weight("running_var")
    momentum = 0.0 if m.momentum is None else m.momentum
    scale, shift = _optional(m, "weight"), _optional(m, "bias")
    return Call(torch.batch_norm, (INPUT, scale, shift, mean, var, False, momentum, m.eps, True))


def _activation(function: Callable[..., Any], in_place: Callable[..., Any]) -> Callable[[Any], Call | None]:
    return lambda m: Call(in_place if m.inplace else function, (INPUT,))


def _relu6(m: Any) -> Call | None:
    return Call(torch._C._nn.hardtanh_ if m.inplace else torch._C._nn.hardtanh, (INPUT, 0.0, 6.0))


def _max_pool(function: Callable[..., Any]) -> Callable[[Any], Call | None]:
    def lower(m: Any) -> Call | None:
        if m.return_indices:
            return None
        return Call(function, (INPUT, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode))

    return lower


def _avg_pool2d(m: Any) -> Call | None:
    sizes = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    return Call(torch._C._nn.avg_pool2d, (INPUT, *sizes))


def _avg_pool1d(m: Any) -> Call | None:
    return Call(torch.avg_pool1d, (INPUT, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad))


def _avg_pool3d(m: Any) -> Call | None:
    sizes = (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    return Call(torch._C._nn.avg_pool3d, (INPUT, *sizes))


def _adaptive_avg_pool(function: Callable[..., Any]) -> Callable[[Any], Call | None]:
    def lower(m: Any) -> Call | None:
        sizes = m.output_size if isinstance(m.output_size, (tuple, list)) else (m.output_size,)
        if None in sizes:  # takes the input's own size
            return None
        return Call(function, (INPUT, m.output_size))

    return lower


def _with_numbers(
    function: Callable[..., Any], in_place: Callable[..., Any], *names: str
) -> Callable[[Any], Call | None]:
    return lambda m: Call(in_place if m.inplace else function, (INPUT, *(getattr(m, name) for name in names)))


_RULES: dict[type[nn.Module], Callable[[Any], Call | None]] = {
    nn.Conv1d: _conv(F.conv1d),
    nn.Conv2d: _conv(F.conv2d),
    nn.Conv3d: _conv(F.conv3d),
    nn.ConvTranspose1d: _conv_transpose(F.conv_transpose1d),
    nn.ConvTranspose2d: _conv_transpose(F.conv_transpose2d),
    nn.ConvTranspose3d: _conv_transpose(F.conv_transpose3d),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.ReLU: _activation(torch.relu, torch.relu_),
    nn.SiLU: _activation(torch._C._nn.silu, torch._C._nn.silu_),
    nn.Hardswish: _activation(torch._C._nn.hardswish, torch._C._nn.hardswish_),
    nn.Hardsigmoid: _activation(torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_),
    nn.ReLU6: _relu6,
    nn.Hardtanh: _with_numbers(torch._C._nn.hardtanh, torch._C._nn.hardtanh_, "min_val", "max_val"),
    nn.LeakyReLU: _with_numbers(torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_, "negative_slope"),
    nn.Tanh: lambda m: Call(torch.tanh, (INPUT,)),
    nn.Sigmoid: lambda m: Call(torch.sigmoid, (INPUT,)),
    nn.GELU: lambda m: Call(F.gelu, (INPUT,)) if m.approximate == "none" else None,
    nn.MaxPool1d: _max_pool(torch.max_pool1d),
    nn.MaxPool2d: _max_pool(torch.max_pool2d),
    nn.MaxPool3d: _max_pool(torch.max_pool3d),
    nn.AvgPool2d: _avg_pool2d,
    nn.AvgPool1d: _avg_pool1d,
    nn.AvgPool3d: _avg_pool3d,
    nn.AdaptiveAvgPool1d: _adaptive_avg_pool(torch.adaptive_avg_pool1d),
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool(torch._C._nn.adaptive_avg_pool2d),
    nn.AdaptiveAvgPool3d: _adaptive_avg_pool(torch._C._nn.adaptive_avg_pool3d),
    nn.Flatten: lambda m: Call(torch.flatten, (INPUT, m.start_dim, m.end_dim)),
}

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def lowered(module: nn.Module) -> Call | None:
    """Return the call that stands for ``module`` on one argument, or None if it must stay a module.

    Subclasses and modules with hooks or a ``forward`` of their own stay: they may do anything.
    """
    rule = _RULES.get(type(module))
    return rule(module) if rule is not None and is_plain(module) else None


def is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says: no hooks, no ``forward`` of its own."""
    return not any(getattr(module, name, None) for name in _HOOKS) and "forward" not in vars(module)
