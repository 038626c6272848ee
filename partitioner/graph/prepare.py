"""Make a captured graph fast and safe to cut: identities out, modules lowered, batch norm folded, channels last."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from odin.partitioner.code.single import copied
from odin.partitioner.graph.capture import Captured, Slot, TraceError, substitute
from odin.partitioner.graph.fold import fold_batch_norms
from odin.partitioner.graph.form import check_form, form_of
from odin.partitioner.graph.identities import is_identity, is_opaque
from odin.partitioner.graph.lower import INPUT, Weight, lowered
from odin.partitioner.graph.observe import Observation, is_dense, observe
from odin.partitioner.graph.values import obstacle

__all__ = ["layout_of", "make_outputs_dense", "prepare"]

_CONSTANT_LIMIT_NBYTES = 1 << 20


def layout_of(tensor: Tensor) -> Tensor:
    """Return an input tensor in the layout that prepared models expect.

    Channels last for images and volumes (4-D, 5-D) of floating point numbers or bytes; anything else contiguous.
    """
    memory_format = _memory_format(tensor)
    return tensor if tensor.is_contiguous(memory_format=memory_format) else copied(tensor, memory_format)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.is_floating_point() or tensor.dtype == torch.uint8:
        if tensor.ndim == 4:
            return torch.channels_last
        if tensor.ndim == 5:
            return torch.channels_last_3d
    return torch.contiguous_format


def prepare(
    captured: Captured, inputs: Sequence[Tensor], *, fold_batch_norm: bool = True, channels_last: bool = True
) -> None:
    """Rewrite a captured graph in place for inference.

    Values that the model computes stay the same up to rounding; nothing that belongs to the user's model is written
    (tensors that change are replaced).

    Parameters
    ----------
    captured
        What :mod:`odin.partitioner.graph.capture` returned.
    inputs
        Example input tensors, one per placeholder. Not written.
    fold_batch_norm
        Merge batch norm into the convolution or linear operation before it.
    channels_last
        Keep 4-D and 5-D weights channels last.

    Raises
    ------
    TraceError
        If the model writes its own buffers or parameters while it runs, or returns something that is neither tensor
        nor number.
    """
    if any("_vmap_increment_nesting" in str(step.target) for step in captured.steps):  # begun, it must be ended
        raise TraceError(
            "the model calls torch.vmap, whose inside cannot be cut; write the batch dimension out instead"
        )
    # tensor constants that a step writes must start every run as they were at capture
    constants = {name: t.clone() for name, t in captured.state.items() if name not in captured.buffers}
    observation = observe(captured, [tensor.clone() for tensor in inputs])
    written = observation.writes
    for key in written & observation.state_storages.keys():
        for name in observation.state_storages[key] & constants.keys():
            captured.state[name] = constants[name]
    _protect_inputs_and_state(captured, observation)
    _expand_outputs(captured, observation)
    _take_apart_at_once(captured, observation)
    _fix_literals(captured, observation)
    _erase_identities(captured, observation)
    _precompute(captured, observation)
    _remove_unused(captured, observation)
    _lower_modules(captured)
    _relax_views(captured)
    if fold_batch_norm:
        fold_batch_norms(captured, observation)
    _drop_unread_state(captured)
    for name, tensor in captured.state.items():
        if problem := obstacle(tensor):
            raise TraceError(f"its weight {name!r} is {problem}")
        memory_format = _memory_format(tensor) if channels_last and tensor.is_floating_point() else None
        if memory_format in (torch.channels_last, torch.channels_last_3d):
            captured.state[name] = tensor.contiguous(memory_format=memory_format)
        elif not is_dense(tensor):
            captured.state[name] = tensor.contiguous()
    captured.graph.lint()


def _protect_inputs_and_state(captured: Captured, observation: Observation) -> None:
    """Give steps that write an input or a tensor constant a copy of their own."""
    written = observation.writes
    own: list[str] = []
    for names in (observation.state_storages[key] for key in written & observation.state_storages.keys()):
        for name in names & captured.buffers:
            raise TraceError(
                f"the model writes its buffer {name!r} while it runs, so its results depend on earlier calls; stages "
                "share weights that nobody may write. Return the new value instead, or freeze it (eval mode)."
            )
        if len(names) > 1:  # copies would no longer be views of one another
            raise RuntimeError(f"constants {sorted(names)} share memory that the model writes")
        own.extend(names)
    graph = captured.graph
    first = next((node for node in graph.nodes if node.op.startswith("call_")), graph.output_node())
    for name in own:
        readers = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
        with graph.inserting_before(first):
            source = graph.get_attr(name)
            source.meta["module_path"] = ""
            copied = _insert(graph, torch.clone, (source,), "")
        for reader in readers:
            reader.replace_all_uses_with(copied)
            graph.erase_node(reader)
    for node in captured.placeholders:
        if observation.seen[node].storages & written:
            users = list(node.users)
            with graph.inserting_before(first):
                copied = _insert(graph, torch.clone, (node,), "")
            for user in users:
                user.replace_input_with(node, copied)


def _insert(graph: fx.Graph, function: Callable[..., Any], args: tuple[Any, ...], module_path: str) -> fx.Node:
    node = graph.call_function(function, args)
    node.meta["module_path"] = module_path
    return node


def _expand_outputs(captured: Captured, observation: Observation) -> None:
    """Take outputs that are lists, tuples or dicts of tensors apart, so that every output is one value."""
    graph = captured.graph
    output = graph.output_node()
    nodes: dict[fx.Node, int] = {}

    def leaf(node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.Size | Tensor | bool | int | float):
            return Slot(nodes.setdefault(node, len(nodes)))
        if isinstance(value, (list, tuple)):
            parts = [leaf(part(node, operator.getitem, index), item) for index, item in enumerate(value)]
            if isinstance(value, list):
                return parts
            if hasattr(value, "_fields"):  # a namedtuple
                return type(value)(*parts)
            return type(value)(parts)  # a tuple, or one of torch.return_types
        if isinstance(value, dict):
            items = {key: leaf(part(node, operator.getitem, key), item) for key, item in value.items()}
            return items if type(value) is dict else type(value)(items)
        if value is None or isinstance(value, (str, torch.dtype, torch.device)):
            return value
        raise TraceError(
            f"the model returns a {type(value).__name__}; return tensors, numbers, or tuples, lists and dicts of them"
        )

    def part(node: fx.Node, function: Callable[..., Any], key: Any) -> fx.Node:
        with graph.inserting_before(output):
            return _insert(graph, function, (node, key), "")

    def whole(node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor) or not is_opaque(_maker(node)):
            return leaf(node, value)
        # its structure may depend on values, and that of the example becomes the pipeline's
        if isinstance(value, (list, tuple, dict)):
            with graph.inserting_before(output):
                node = _insert(graph, check_form, (node, form_of(value)), "")
        replaced = leaf(node, value)
        if not any(isinstance(entry, Slot) for entry in pytree.tree_leaves(replaced)):
            raise TraceError(
                f"the model returns {value!r:.80} of {_maker(node).name}, a function that is not looked into: it may "
                "depend on the request's values, and only tensors and numbers leave a pipeline; return a number for it"
            )
        return replaced

    if not captured.outputs:
        raise TraceError("the model returns nothing that depends on its inputs; return a tensor")
    replacements = [whole(n, v) for n, v in zip(captured.outputs, observation.outputs, strict=True)]
    captured.outcome = pytree.tree_map(
        lambda entry: replacements[entry.index] if isinstance(entry, Slot) else entry, captured.outcome
    )
    output.args = (list(nodes),)


def _maker(node: fx.Node) -> fx.Node:
    """The step that returned what a value was taken out of."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _take_apart_at_once(captured: Captured, observation: Observation) -> None:
    """Move what takes an element out of a list or tuple right behind the step that returned it.

    Tensors can cross a cut, lists and tuples of them (of ``split``, ``chunk``, ``unbind``) cannot.
    """
    for step in captured.steps:
        seen = observation.seen.get(step)
        if seen is None or seen.structure is None:
            continue
        last = step
        for user in [node for node in step.users if node.target is operator.getitem and node.all_input_nodes == [step]]:
            last.append(user)
            last = user


def _fix_literals(captured: Captured, observation: Observation) -> None:
    """Write dtypes, devices and the like, which are the same in every run, into the steps that use them.

    Only those of tensors: what another function says (a mode, as text) may depend on values.
    """
    fixed = (torch.dtype, torch.device, torch.layout, torch.memory_format, str)
    for step in captured.steps:
        seen = observation.seen.get(step)
        if seen is None or not isinstance(seen.value, fixed) or not step.users or is_opaque(step):
            continue
        if all(_is_tensor(node, observation) for node in step.all_input_nodes):
            substitute(step, seen.value)


def _is_tensor(node: fx.Node, observation: Observation) -> bool:
    if node.op == "get_attr":
        return True
    spec = observation.seen[node].spec
    return spec is not None and spec.kind == "tensor"


def _erase_identities(captured: Captured, observation: Observation) -> None:
    """Erase what returned its operand untouched and does so whatever the values: dropout, ``Identity``, ``contiguous``.

    A function that PyTorch does not own may have done so for these values only, and stays.
    """
    stands_for: dict[fx.Node, fx.Node] = {}
    for step in captured.steps:
        seen = observation.seen.get(step)
        if seen is None or seen.identity_of is None or not is_identity(step, captured.modules):
            continue
        source = stands_for.get(seen.identity_of, seen.identity_of)
        if source not in step.all_input_nodes:  # it now reads a copy made for its sake
            source = next(n for n in step.all_input_nodes if n.target is torch.clone and n.args[0] is source)
        stands_for[step] = source
        step.replace_all_uses_with(source)
        captured.graph.erase_node(step)
        del observation.seen[step]


def _precompute(captured: Captured, observation: Observation) -> None:
    """Compute what depends on weights alone (standardised weights, sums of parameters) once."""
    graph = captured.graph
    order = {node: index for index, node in enumerate(observation.seen)}
    last_write = {key: order[node] for node, seen in observation.seen.items() for key in seen.writes}
    for step, value in observation.constants.items():
        if step not in observation.seen or not step.users:
            continue
        if any(last_write.get(key, -1) > order[step] for key in observation.seen[step].storages):
            continue  # what was kept is not what the step returned, but what a later one made of it
        name = f"{step.name}_constant"
        if value.numel() * value.element_size() > _CONSTANT_LIMIT_NBYTES and not is_dense(value):
            continue  # a broadcast weight, small as it is
        captured.state[name] = value.detach().clone()
        with graph.inserting_before(step):
            constant = graph.get_attr(name)
        constant.meta["module_path"] = step.meta["module_path"]
        step.replace_all_uses_with(constant)


def _remove_unused(captured: Captured, observation: Observation) -> None:
    """Remove steps that nobody reads and whose writes nobody reads (``fx`` itself would drop in-place methods)."""
    present = dict.fromkeys(captured.graph.nodes)
    for node in reversed(list(present)):
        if node.op in ("placeholder", "output") or node.users:
            continue
        seen = observation.seen
        writes = seen[node].writes if node in seen else frozenset()
        if writes & observation.state_storages.keys():  # now of a copy of the constant
            continue
        sharing = (other for other in present if other in seen and seen[other].storages & writes)
        if all(other is node or set(other.users) <= {node} for other in sharing):
            captured.graph.erase_node(node)
            del present[node]


def _lower_modules(captured: Captured) -> None:
    """Replace calls of simple modules by the functions that they call."""
    graph = captured.graph
    for step in captured.steps:
        if step.op != "call_module" or len(step.args) != 1 or step.kwargs:
            continue
        entry = captured.modules[str(step.target)]
        call = lowered(entry.module)
        if call is None:
            continue
        path = step.meta["module_path"]
        args: list[Any] = []
        for argument in call.args:
            if argument is INPUT:
                args.append(step.args[0])
            elif isinstance(argument, Weight):
                with graph.inserting_before(step):
                    args.append(graph.get_attr(entry.tensors[argument.name]))
                args[-1].meta["module_path"] = path
            else:
                args.append(argument)
        step.op, step.target, step.args = "call_function", call.function, tuple(args)
    called = {str(step.target) for step in captured.steps if step.op == "call_module"}
    captured.modules = {path: entry for path, entry in captured.modules.items() if path in called}


def _relax_views(captured: Captured) -> None:
    """Let ``view`` copy where another memory layout leaves it no choice: that is what ``reshape`` does."""
    for step in captured.steps:
        is_method = step.op == "call_method" and step.target == "view"
        to_dtype = any(isinstance(argument, torch.dtype) for argument in (*step.args, *step.kwargs.values()))
        if is_method and not to_dtype:
            step.target = "reshape"
        elif step.target is torch.ops.aten.view.default:
            step.target = torch.ops.aten.reshape.default


def make_outputs_dense(captured: Captured, observations: Sequence[Observation]) -> bool:
    """Copy outputs that are not dense or are a weight's own memory; return whether there were any."""
    graph = captured.graph
    output = graph.output_node()
    changed = False
    for node in captured.outputs:
        if node.op == "get_attr" or any(
            not observation.seen[node].dense or observation.seen[node].storages & observation.state_storages.keys()
            for observation in observations
        ):
            with graph.inserting_before(output):
                copied = _insert(graph, _dense_copy, (node,), node.meta["module_path"])
            output.replace_input_with(node, copied)
            changed = True
    return changed


def _dense_copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _drop_unread_state(captured: Captured) -> None:
    for node in reversed(captured.graph.nodes):
        if node.op == "get_attr" and not node.users:
            captured.graph.erase_node(node)
    read = {str(node.target) for node in captured.graph.nodes if node.op == "get_attr"}
    for entry in captured.modules.values():
        read.update(entry.tensors.values())
    captured.state = {name: tensor for name, tensor in captured.state.items() if name in read}
