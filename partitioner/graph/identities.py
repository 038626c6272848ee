"""Which steps return their operand untouched whatever its values, and which may do anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from odin.partitioner.graph.capture import ModuleEntry
from odin.partitioner.graph.lower import is_plain
from odin.partitioner.graph.operations import operation_name

__all__ = ["is_identity", "is_opaque"]

_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Flatten,
)
_OPERATIONS = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        "feature_alpha_dropout",
        *("contiguous", "to", "type", "type_as", "cpu", "cuda"),
        *("float", "double", "half", "bfloat16", "bool", "byte", "char", "short", "int", "long"),
        *("flatten", "atleast_1d", "atleast_2d", "atleast_3d", "as_tensor"),
        *("conj", "conj_physical", "resolve_conj", "resolve_neg", "real", "positive", "requires_grad"),
    }
)
"""PyTorch's own that return their operand by its type, shape and layout, or by their arguments, never by its values."""
_STOCHASTIC_DEPTH = ("torchvision.ops.stochastic_depth", "stochastic_depth")  # fx does not look into it


def is_identity(step: fx.Node, modules: Mapping[str, ModuleEntry]) -> bool:
    """Whether a step that returned its operand untouched on the example does so on any values.

    Parameters
    ----------
    step
        One that returned its operand.
    modules
        The graph's modules, by target.
    """
    if step.op == "call_module":
        module = modules[str(step.target)].module
        return type(module) in _MODULES and is_plain(module)
    if operation_name(step) in _OPERATIONS:
        return True
    target: Any = step.target
    if (getattr(target, "__module__", ""), getattr(target, "__name__", "")) != _STOCHASTIC_DEPTH:
        return False
    training = step.kwargs.get("training", step.args[3] if len(step.args) > 3 else True)
    return training is False  # in training it is drawn by lot


def is_opaque(step: fx.Node) -> bool:
    """Whether a step calls a function that is not PyTorch's (``torch.fx.wrap``): it may look at values."""
    if step.op != "call_function":
        return False
    name = operation_name(step)
    return (not name or "::" in name) and step.target is not getattr  # with ::, an operator of another library's
