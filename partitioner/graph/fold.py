"""Batch norm in inference is a scale and a shift per channel: merge it into the operation before it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, fx

from odin.partitioner.graph.capture import Captured
from odin.partitioner.graph.observe import Observation

__all__ = ["fold_batch_norms", "folded"]


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR = ("input", "weight", "bias")


class _Affine(NamedTuple):
    """An operation with a weight that batch norm after it can be merged into."""

    dimensions: int  # of its result for a batch
    order: tuple[str, ...]  # of its arguments


_AFFINE: dict[Any, _Affine] = {
    F.conv1d: _Affine(3, _CONV),
    F.conv2d: _Affine(4, _CONV),
    F.conv3d: _Affine(5, _CONV),
    F.conv_transpose1d: _Affine(3, _CONV_TRANSPOSE),
    F.conv_transpose2d: _Affine(4, _CONV_TRANSPOSE),
    F.conv_transpose3d: _Affine(5, _CONV_TRANSPOSE),
    F.linear: _Affine(2, _LINEAR),
    torch.ops.aten.conv1d.default: _Affine(3, _CONV),
    torch.ops.aten.conv2d.default: _Affine(4, _CONV),
    torch.ops.aten.conv3d.default: _Affine(5, _CONV),
    torch.ops.aten.conv1d.padding: _Affine(3, _CONV),
    torch.ops.aten.conv2d.padding: _Affine(4, _CONV),
    torch.ops.aten.conv3d.padding: _Affine(5, _CONV),
    torch.ops.aten.conv_transpose1d.default: _Affine(3, _CONV_TRANSPOSE),
    torch.ops.aten.conv_transpose2d.input: _Affine(4, _CONV_TRANSPOSE),
    torch.ops.aten.conv_transpose3d.input: _Affine(5, _CONV_TRANSPOSE),
    torch.ops.aten.linear.default: _Affine(2, _LINEAR),
}


class _Norm(NamedTuple):
    """The arguments of a batch norm in inference; the tensors as ``get_attr`` nodes."""

    value: fx.Node
    mean: fx.Node
    var: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float


_NORM_ORDERS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    torch.ops.aten.batch_norm.default: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
    ),
}  # fmt: skip


def _as_norm(step: fx.Node) -> _Norm | None:
    order = _NORM_ORDERS.get(step.target)
    if order is None:
        return None
    named = {"training": False, "eps": 1e-5, **dict(zip(order, step.args, strict=False)), **step.kwargs}
    value, mean, var = named.get("input"), named.get("running_mean"), named.get("running_var")
    weight, bias = named.get("weight"), named.get("bias")
    tensors = [mean, var, *(t for t in (weight, bias) if t is not None)]
    if named["training"] or not isinstance(value, fx.Node) or not all(_is_weight(t) for t in tensors):
        return None
    return _Norm(value, mean, var, weight, bias, named["eps"])  # type: ignore[arg-type]  # checked above


def _is_weight(operand: Any) -> bool:
    return isinstance(operand, fx.Node) and operand.op == "get_attr"


def fold_batch_norms(captured: Captured, observation: Observation) -> None:
    """Merge batch norms into what feeds them, where that result and its weights have no other use."""
    graph, state = captured.graph, captured.state
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    for entry in captured.modules.values():
        for name in entry.tensors.values():
            uses[name] = uses.get(name, 0) + 1

    for step in captured.steps:
        norm = _as_norm(step)
        affine = _AFFINE.get(norm.value.target) if norm else None
        if norm is None or affine is None or len(norm.value.users) != 1:
            continue
        feeder = norm.value
        named = {**dict(zip(affine.order, feeder.args, strict=False)), **feeder.kwargs}
        source, weight, bias, groups = (named.get(name) for name in ("input", "weight", "bias", "groups"))
        if not _is_weight(weight) or not (bias is None or _is_weight(bias)):
            continue
        assert isinstance(weight, fx.Node)
        assert bias is None or isinstance(bias, fx.Node)
        seen = observation.seen.get(feeder)
        if uses[str(weight.target)] != 1 or seen is None or seen.spec is None:
            continue
        if len(seen.spec.shape) != affine.dimensions:
            continue
        tensors = [state[str(node.target)] if node is not None else None for node in (*norm[1:5], bias)]
        new_weight, new_bias = folded(
            state[str(weight.target)],
            *tensors,
            eps=norm.eps,
            groups=groups if isinstance(groups, int) else 1,
            transposed=affine.order is _CONV_TRANSPOSE,
        )
        state[str(weight.target)] = new_weight
        if bias is not None and uses[str(bias.target)] == 1:
            bias_name = str(bias.target)
        else:
            bias_name = _unused_name(state, str(weight.target).removesuffix("weight") + "bias")
        state[bias_name] = new_bias
        with graph.inserting_before(feeder):
            bias_node = graph.get_attr(bias_name)
        bias_node.meta["module_path"] = feeder.meta["module_path"]
        feeder.args = (source, weight, bias_node, *feeder.args[3:])
        feeder.kwargs = {key: value for key, value in feeder.kwargs.items() if key not in ("input", "weight", "bias")}
        step.replace_all_uses_with(feeder)
        graph.erase_node(step)


def folded(
    weight: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Merge ``scale * (conv(x) + bias - mean) / sqrt(var + eps) + shift`` into a weight and a bias.

    Parameters
    ----------
    weight
        ``(out, in / groups, ...)``, or ``(in, out / groups, ...)`` if transposed.
    mean, var, scale, shift, bias
        ``(out,)`` each; None for scale 1, shift 0, bias 0.
    eps
        Batch norm's epsilon.
    groups, transposed
        The convolution's.

    Returns
    -------
    tuple of Tensor
        Weight and bias in ``weight``'s dtype; computed in float64.
    """
    assert mean is not None
    assert var is not None
    factor = torch.rsqrt(var.double() + eps)
    if scale is not None:
        factor = factor * scale.double()
    offset = -mean.double() if bias is None else bias.double() - mean.double()
    new_bias = offset * factor
    if shift is not None:
        new_bias = new_bias + shift.double()
    wide = weight.double()
    if transposed:
        grouped = wide.reshape(groups, wide.shape[0] // groups, wide.shape[1], -1)
        new_weight = (grouped * factor.reshape(groups, 1, wide.shape[1], 1)).reshape(wide.shape)
    else:
        new_weight = wide * factor.reshape(-1, *[1] * (wide.ndim - 1))
    return new_weight.to(weight.dtype), new_bias.to(weight.dtype)


def _unused_name(state: dict[str, Tensor], wanted: str) -> str:
    name, count = wanted, 0
    while name in state:
        count += 1
        name = f"{wanted}_{count}"
    return name
