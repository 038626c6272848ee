"""What a node of an ONNX graph reads, its subgraphs looked through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["reads", "subgraphs"]


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that an ``onnx.NodeProto`` has as attributes: branches of an ``If``, the body of a ``Loop``."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> list[str]:
    """Names of the values that an ``onnx.NodeProto`` reads, those among them that its subgraphs take from outside."""
    found = dict.fromkeys(filter(None, node.input))
    for graph in subgraphs(node):
        own = {entry.name for entry in (*graph.input, *graph.initializer)}
        own.update(sparse.values.name for sparse in graph.sparse_initializer)
        outside: list[str] = []
        for within in graph.node:
            outside += (name for name in reads(within) if name not in own)
            own.update(within.output)
        outside += (entry.name for entry in graph.output if entry.name not in own)
        found.update(dict.fromkeys(outside))
    return list(found)
