"""Convolutions of sequences as those of images of one row, which oneDNN computes channels last, packed and fused.

Its result has the channels last in memory. That is a gain where the next steps keep this order up to another
convolution, which then reads it as it is; pooling and normalisation of sequences would first copy it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from odin.partitioner.graph.operations import operation_name

__all__ = ["convolve_row", "convolve_row_add", "row_pays"]

_KEEP_ORDER = frozenset(
    {
        "add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "neg", "abs", "relu", "relu6", "hardtanh",
        "silu", "hardswish", "hardsigmoid", "gelu", "elu", "leaky_relu", "prelu", "sigmoid", "tanh", "mish", "softplus",
        "clamp", "cat", "concat", "chunk", "split", "getitem", "batch_norm", "clone", "dropout",
    }
)  # fmt: skip
_WANT_CHANNELS_LAST = frozenset({"conv1d", "transpose", "permute", "convolve_row", "convolve_row_add"})
_ONCE = frozenset({"mean", "adaptive_avg_pool1d", "adaptive_max_pool1d", "flatten", "amax", "output", "size", "shape"})


def row_pays(conv: fx.Node, value: fx.Node) -> bool:
    """Whether a convolution of sequences gets faster: everyone who reads its result can do with channels last."""
    useful = _made_by_a_row(value)
    seen, waiting = {conv}, [conv]
    while waiting:
        for reader in waiting.pop().users:
            name = "output" if reader.op == "output" else operation_name(reader)
            if name in _KEEP_ORDER:
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
            elif name in _WANT_CHANNELS_LAST:
                useful = True
            elif name not in _ONCE:
                return False
    return useful


def _made_by_a_row(value: fx.Node) -> bool:
    """Whether a value has its channels last because a convolution before it was computed as a row."""
    seen, waiting = {value}, [value]
    while waiting:
        node = waiting.pop()
        name = operation_name(node)
        if name in ("convolve_row", "convolve_row_add"):
            return True
        if name in _KEEP_ORDER:
            waiting.extend(before for before in node.all_input_nodes if before not in seen)
            seen.update(node.all_input_nodes)
    return False


def _of_image(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """Weight, and padding, stride and dilation, for a sequence as an image of one row."""
    image = weight if weight.ndim == 4 else weight.unsqueeze(2)
    return image, ((0, *padding), (1, *stride), (1, *dilation))


def convolve_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *arguments: Any,
) -> Tensor:
    """``mkldnn._convolution_pointwise`` for sequences; a packed weight has two axes already."""
    image, sizes = _of_image(weight, padding, stride, dilation)
    result: Tensor = torch.ops.mkldnn._convolution_pointwise.default(x.unsqueeze(2), image, bias, *sizes, *arguments)
    return result.squeeze(2)


def convolve_row_add(
    x: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *arguments: Any,
) -> Tensor:
    """``mkldnn._convolution_pointwise.binary`` for sequences."""
    image, sizes = _of_image(weight, padding, stride, dilation)
    result: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
        x.unsqueeze(2), other.unsqueeze(2), image, bias, *sizes, *arguments
    )
    return result.squeeze(2)
