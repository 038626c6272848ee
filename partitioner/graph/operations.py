"""What a step of a graph does, by one name for the many ways to write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["operation_name"]


def operation_name(step: fx.Node) -> str:
    """Name of the operation if it is one of torch's own, without the underscore of those that write in place."""
    target: Any = step.target
    if step.op == "call_method":
        name = str(target)
    elif step.op != "call_function":
        return ""
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.removeprefix("aten::")
    elif isinstance(target, torch._ops.OpOverloadPacket):
        name = target._qualified_op_name.removeprefix("aten::")
    else:
        home = str(getattr(target, "__module__", None) or "torch")
        if home.split(".")[0] not in ("torch", "operator", "_operator") and home != "odin.partitioner.code.rows":
            return ""
        name = str(getattr(target, "__name__", ""))
    return name if name.startswith("__") else name.removesuffix("_")
