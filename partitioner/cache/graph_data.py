"""A captured graph as JSON values, and back: data only, no code and no weights.

A graph that ``torch.export`` made calls PyTorch's own operators and a little arithmetic on sizes. Nothing else is
written or read, and a name is looked up in PyTorch's table of operators, never imported: whatever a file holds, it can
at most be a wrong graph, which the comparison with the model finds. Weights are named and stay in the model; tensors
that are only in the graph are written as bytes.
"""

from __future__ import annotations

import base64
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from odin.partitioner.graph.capture import Captured, Slot, slots
from odin.partitioner.graph.observe import is_dense
from odin.partitioner.graph.values import CARRIED, dtype_name

__all__ = ["NotDataError", "from_data", "to_data"]

_CONSTANTS_NBYTES = 16 << 20
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt",
            "ge", "and_", "or_", "not_",
        )
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum")
        if hasattr(torch, name)
    },
}  # fmt: skip
_NAMES: dict[Any, str] = {function: name for name, function in _ARITHMETIC.items()}
_OTHERS: dict[str, Any] = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format))
}
_TOUCH_FILES = frozenset({"from_file"})


class NotDataError(ValueError):
    """A graph cannot be written as data, or values are not those of a graph."""


def to_data(captured: Captured, model: nn.Module, outcome: pytree.TreeSpec) -> dict[str, Any]:
    """Write a graph, before it is prepared.

    Parameters
    ----------
    captured
        The graph.
    model
        A copy of the model that it was made from.
    outcome
        Structure of what the model returns.

    Raises
    ------
    NotDataError
        If something in it is neither PyTorch's own nor data, or its constants are large.
    """
    leaves, structure = pytree.tree_flatten(captured.outcome)
    if structure != outcome:
        raise NotDataError(f"the graph returns {structure}, the model {outcome}")
    if captured.modules:
        raise NotDataError("it calls modules")
    numbers: dict[fx.Node, int] = {}
    nodes: list[list[Any]] = []
    for node in captured.graph.nodes:
        if node.op == "output":
            break
        numbers[node] = len(nodes)
        nodes.append([node.op, node.name, _target(node), *_arguments(node, numbers), str(node.meta["module_path"])])
    return {
        "nodes": nodes,
        "outputs": [numbers[node] for node in captured.outputs],
        "leaves": [["slot", leaf.index] if isinstance(leaf, Slot) else _value(leaf, {}) for leaf in leaves],
        "state": _state(captured, _tensors(model)),
        "buffers": sorted(captured.buffers),
        "how": captured.how,
        "one_size": captured.one_size,
    }


def from_data(data: Mapping[str, Any], model: nn.Module, args: tuple[Any, ...], outcome: pytree.TreeSpec) -> Captured:
    """Read :func:`to_data`'s values for a model, given a copy of it, its arguments and the structure of its results.

    Raises
    ------
    NotDataError
        If they are not those of a graph of this model.
    """
    try:
        return _read(data, _tensors(model), args, outcome)
    except NotDataError:
        raise
    except Exception as error:  # there is no end to what a file may hold
        raise NotDataError(f"not a graph: {type(error).__name__}: {error}") from error


def _read(
    data: Mapping[str, Any], own: Mapping[str, Tensor], args: tuple[Any, ...], outcome: pytree.TreeSpec
) -> Captured:
    arguments, in_spec = slots(args)
    state = {str(name): _tensor(entry, own) for name, entry in data["state"].items()}
    graph = fx.Graph()
    made: list[fx.Node] = []
    for op, name, target, positional, keywords, path in data["nodes"]:
        if not (name.isascii() and name.isidentifier()) or not isinstance(path, str):
            raise NotDataError(f"{name!r} is not the name of a node")
        called: Any = target
        if op == "call_function":
            called = _function(target)
        elif op == "get_attr" and target not in state:
            raise NotDataError(f"there is no weight {target!r}")
        elif op not in ("placeholder", "get_attr"):
            raise NotDataError(f"a graph has no {op!r}")
        elif op == "placeholder" and not (target.isascii() and target.isidentifier()):
            raise NotDataError(f"{target!r} is not the name of an input")
        args_, kwargs = _take(positional, made), _take(keywords, made)
        node = graph.create_node(op, called, tuple(args_), dict(kwargs), name)
        node.meta["module_path"] = path
        made.append(node)
    graph.output([made[_index(number)] for number in data["outputs"]])
    graph.lint()
    leaves = [
        Slot(_index(leaf[1])) if isinstance(leaf, list) and leaf[0] == "slot" else _take(leaf, [])
        for leaf in data["leaves"]
    ]
    inputs = sum(isinstance(leaf, Slot) for leaf in arguments)
    if sum(node.op == "placeholder" for node in made) != inputs or len(leaves) != outcome.num_leaves:
        raise NotDataError("it takes or returns another number of values")
    if data["how"] != "torch.export" or type(data["one_size"]) is not bool:
        raise NotDataError("it does not say how it was made")
    return Captured(
        graph=graph,
        state=state,
        modules={},
        buffers=frozenset(map(str, data["buffers"])),
        arguments=arguments,
        in_spec=in_spec,
        outcome=pytree.tree_unflatten(leaves, outcome),
        how=data["how"],
        one_size=data["one_size"],
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's own tensors, by all their names."""
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in held}


def _target(node: fx.Node) -> str:
    target = node.target
    if node.op in ("placeholder", "get_attr"):
        return str(target)
    if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
        name = target.name()
        path = f"{name.removeprefix('aten::').partition('.')[0]}.{target._overloadname}"
        if name.startswith("aten::") and _function(f"aten.{path}") is target:
            return f"aten.{path}"
    elif node.op == "call_function" and target in _NAMES:
        return _NAMES[target]
    raise NotDataError(f"it calls {target}")


def _function(name: str) -> Callable[..., Any]:
    """The function of a name: PyTorch's own operators, and arithmetic."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    home, *path = name.split(".")
    if home == "aten" and len(path) == 2 and path[0] not in _TOUCH_FILES and not path[0].startswith("__"):
        found = getattr(getattr(torch.ops.aten, path[0], None), path[1], None)
        # those without a kernel are TorchScript's: some of them touch files
        if isinstance(found, torch._ops.OpOverload) and torch._C._dispatch_has_kernel(found.name()):
            return found
    raise NotDataError(f"{name!r} is no operator of PyTorch's")


def _arguments(node: fx.Node, numbers: Mapping[fx.Node, int]) -> list[Any]:
    return [_value(tuple(node.args), numbers), _value(dict(node.kwargs), numbers)]


def _value(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """Write an argument: plain values as themselves, others as a list that begins with what they are."""
    if isinstance(value, fx.Node):
        return ["node", numbers[value]]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return ["float", value.hex()]
    if type(value) is complex:
        return ["complex", value.real.hex(), value.imag.hex()]
    if value is Ellipsis:
        return ["ellipsis"]
    if isinstance(value, slice):
        return ["slice", *(_value(part, numbers) for part in (value.start, value.stop, value.step))]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if str(value) in _OTHERS and _OTHERS[str(value)] is value:
        return ["torch", str(value)]
    if isinstance(value, dict):
        return ["dict", *([_value(key, numbers), _value(item, numbers)] for key, item in value.items())]
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return ["list" if isinstance(value, list) else "tuple", *(_value(item, numbers) for item in value)]
    raise NotDataError(f"an argument is a {type(value).__name__}")


def _take(value: Any, made: list[fx.Node]) -> Any:
    if not isinstance(value, list):
        if value is not None and type(value) not in (bool, int, str):
            raise NotDataError(f"an argument is a {type(value).__name__}")
        return value
    kind, *parts = value
    if kind == "node":
        return made[_index(parts[0])]
    if kind == "float":
        return float.fromhex(parts[0])
    if kind == "complex":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "device":
        return torch.device(parts[0])
    if kind == "torch":
        return _OTHERS[parts[0]]
    if kind == "dict":
        return {_take(key, made): _take(item, made) for key, item in parts}
    items = [_take(part, made) for part in parts]
    if kind == "slice":
        return slice(*items)
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    raise NotDataError(f"{kind!r} is no kind of argument")


def _index(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise NotDataError(f"{number!r} is not the number of a node")
    return number


def _state(captured: Captured, own: Mapping[str, Tensor]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    storages = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    total = 0
    for name, tensor in captured.state.items():
        if name in own and _same(tensor, own[name]):
            written[name] = ["model", name]
            continue
        storage = tensor.untyped_storage().data_ptr()
        total += tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not is_dense(tensor) or (storage in storages and tensor.numel()):
            raise NotDataError(f"its constant {name!r} is a view or not in the CPU's memory")
        if total > _CONSTANTS_NBYTES:
            raise NotDataError(f"its constants take more than {_CONSTANTS_NBYTES >> 20} MiB")
        storages.add(storage)
        # as bytes in the order of memory
        flat = tensor.as_strided((tensor.numel(),), (1,)).resolve_conj().resolve_neg()
        data = base64.b64encode(_bytes(flat)).decode()
        written[name] = ["bytes", dtype_name(tensor.dtype), list(tensor.shape), list(tensor.stride()), data]
    return written


def _same(tensor: Tensor, other: Tensor) -> bool:
    described = [(t.shape, t.stride(), t.dtype, t.device, t.is_conj(), t.is_neg()) for t in (tensor, other)]
    return described[0] == described[1] and (
        tensor.data_ptr() == other.data_ptr() or _bytes(tensor.contiguous()) == _bytes(other.contiguous())
    )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _tensor(entry: Any, own: Mapping[str, Tensor]) -> Tensor:
    if entry[0] == "model":
        return own[entry[1]]
    _, dtype, shape, stride, text = entry
    kind = _OTHERS[f"torch.{dtype}"]
    if entry[0] != "bytes" or kind not in CARRIED:
        raise NotDataError(f"a constant is of {dtype!r}")
    data = bytearray(base64.b64decode(text, validate=True))
    count = 1
    for size in shape:
        count *= _index(size)
    flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
    tensor = torch.empty_strided(shape, stride, dtype=kind, device="cpu")
    if flat.numel() != count or not is_dense(tensor):
        raise NotDataError("the bytes of a constant are not as many as its shape says")
    tensor.as_strided((count,), (1,)).copy_(flat)
    return tensor
