"""A copy of a model to work on: wrappers taken off, what must be its own copied, what cannot be copied shared."""

from __future__ import annotations

import contextlib
import copy
import sys
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from odin.partitioner.graph.values import obstacle

__all__ = ["deep_copy", "evaluating", "refusal", "unwrapped"]

# Modules of torch that compute what the module inside them does, and what they call it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
_COMPILED_FROM = "_torchdynamo_orig_callable"  # torch.compile leaves the function that it was given there


def _inside(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper stands for; None if it is no wrapper, or has hooks of its own."""
    if type(module).__name__ not in _WRAPPERS or not type(module).__module__.startswith("torch."):
        return None
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    inside = getattr(module, _WRAPPERS[type(module).__name__], None)
    return inside if isinstance(inside, nn.Module) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off ``torch.compile``, data-parallel wrappers and the like; the model's own module is returned."""
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def refusal(model: nn.Module) -> str:
    """Say why a model can be neither run nor sent to stages, and the remedy; an empty text if it can."""
    for path, module in model.named_modules():
        where = f"its module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{where} is a TorchScript program (torch.jit), which can be neither cut nor sent to stages: use the "
                "Python module that it was made from, with this one's state_dict()"
            )
        if type(module).__name__ == "FullyShardedDataParallel":
            return f"{where} is sharded (FSDP): gather its full state_dict() and load that into the plain module"
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            return f"its weight {path!r} has no shape yet (a lazy module): run the model once before"
        if tensor.device.type == "meta":
            return (
                f"its weight {path!r} is on the meta device, without values: give it some (to_empty, load_state_dict)"
            )
        # what has another layout may have become plain by the time it is used (a sparse mask made dense)
        problem = obstacle(tensor)
        if problem and tensor.layout == torch.strided and not tensor.is_quantized:
            return f"its weight {path!r} is {problem}"
    return ""


def evaluating(model: nn.Module) -> nn.Module:
    """Put a module into eval mode; one that torch.export made is in the mode that it was exported in, and stays."""
    with contextlib.suppress(NotImplementedError):
        model.eval()
    return model


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a model's structure.

    Parameters
    ----------
    model
        Not changed.
    memo
        By identity, what takes the place of what (``copy.deepcopy``'s own).

    Returns
    -------
    nn.Module
        Tensors, containers, submodules and other objects are its own. Locks, files, generators and whatever else cannot
        be copied are shared; activations that the model kept are detached.
    """
    modules = list(model.modules())
    for module in modules:
        for value in vars(module).values():
            _share(value, memo, set())
    for module in reversed(modules):  # from the inside out
        if (inside := _inside(module)) is not None:
            memo[id(module)] = copy.deepcopy(unwrapped(inside), memo)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        places: tuple[dict[Any, Any], ...] = (vars(module), module._forward_hooks, module._forward_pre_hooks)
        for values in places:
            for key, value in list(values.items()):
                if isinstance(value, FunctionType):
                    values[key] = _rebound(value, memo)
    return copied


def _rebound(function: FunctionType, memo: dict[int, Any]) -> Any:
    """A function that works on the copy where it would on the model; what it was compiled from, if it was."""
    if hasattr(function, _COMPILED_FROM):
        return copy.deepcopy(getattr(function, _COMPILED_FROM), memo)
    cells = function.__closure__ or ()
    contents = [cell.cell_contents for cell in cells if _filled(cell)]
    if len(contents) < len(cells) or not any(id(content) in memo for content in contents):
        return function
    closure = tuple(CellType(memo.get(id(content), content)) for content in contents)
    rebound = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    return rebound


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # reading it is the question
    except ValueError:  # of a name that is bound later
        return False
    return True


def _share(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Note in ``memo`` what inside of a module's attribute cannot be copied."""
    if id(value) in memo or id(value) in seen or isinstance(value, (nn.Module, type, int, float, str, bytes)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None:  # an activation; deepcopy takes leaves of the graph only
            memo[id(value)] = value.detach().clone()
        return
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        for part in (*value.keys(), *value.values()) if isinstance(value, dict) else tuple(value):
            _share(part, memo, seen)
        if type(value) in (dict, list, tuple):
            return
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        if not _is_own(value):
            memo[id(value)] = value
            return
        for part in vars(value).values():
            _share(part, memo, seen)
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:
            memo[id(value)] = value


def _is_own(value: Any) -> bool:
    """Whether it is an object of somebody's own class, whose attributes can be looked at; not the interpreter's."""
    home = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and home not in sys.stdlib_module_names
