"""Whether ONNX Runtime is to bring weights into another form before it computes with them, which each process keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["packs"]

_PACKING = frozenset(
    {
        "ConvInteger", "ConvTranspose", "DequantizeLinear", "DynamicQuantizeMatMul", "GRU", "LSTM", "MatMul",
        "MatMulInteger", "MatMulNBits", "QGemm", "QLinearConv", "QLinearMatMul",
    }
)  # fmt: skip


def packs(nodes: Iterable[Any]) -> bool:
    """Whether a model has operators that are slower with weights as they are; said for all of it, since bits differ.

    Others lose nothing, and share their weights: convolutions have theirs in the optimised model as they compute with
    them, and a Gemm behind the last pooling multiplies one row per image. Products of many rows take a sixth longer
    with plain weights (ConvNeXt-Tiny), and quantised weights would be packed for every call, which takes 2.5 times as
    long (ResNet50).

    Parameters
    ----------
    nodes
        ``onnx.NodeProto`` of the model before it is optimised.
    """
    return any(node.op_type in _PACKING for node in nodes)
