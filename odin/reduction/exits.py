"""Early exits: a model's first layers and a small classifier on what they found, as a model of its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from odin.models.labelled import Labelled
from odin.partitioner.chain import Chain
from odin.partitioner.graph.capture import TraceError, first_line
from odin.reduction.answering import ReductionError, through
from odin.reduction.heads import Head, pooled_side, train_head

__all__ = ["EarlyExit", "choose_exits", "early_exits", "first_layers", "possible_exits"]

DEFAULT_COUNT = 4


class EarlyExit(nn.Module):
    """The layers before a cut, whose weights are the full model's own tensors, and a head.

    Attributes
    ----------
    cut
        Layers of the chain that it runs.
    """

    def __init__(self, features: nn.Module, head: Head, *, cut: int) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.cut = cut

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores ``(count, classes)``."""
        found: Tensor = self.head(self.features(images))
        return found


def possible_exits(chain: Chain) -> dict[int, float]:
    """Return the cuts at which an exit can be put, and the share of the chain's operations before each.

    One tensor crosses there, an image or a vector of floating point numbers.
    """
    total = sum(layer.flops for layer in chain.layers)
    if not total:
        raise ReductionError(f"{chain.name} has no multiplication: there is nothing to be saved by leaving it early")
    found, done = {}, 0
    for layer in chain.layers[:-1]:
        done += layer.flops
        value = layer.output[0]
        if len(layer.output) == 1 and value.kind == "tensor" and len(value.shape) in (2, 4) and "float" in value.dtype:
            found[layer.index + 1] = done / total
    return found


def choose_exits(chain: Chain, *, count: int = DEFAULT_COUNT) -> tuple[int, ...]:
    """Return cuts for exits: those nearest to 1 / (count + 1), 2 / (count + 1) ... of the chain's operations.

    Raises
    ------
    ReductionError
        If there is no cut for an exit.
    """
    if count < 1:
        raise ReductionError(f"{count} exits: ask for at least one")
    possible = possible_exits(chain)
    if not possible:
        raise ReductionError(
            f"{chain.name} has no cut where one image or vector crosses, so no exit can be put into it; see 'odin "
            "partition' for its layers"
        )
    wanted = [(index + 1) / (count + 1) for index in range(count)]
    return tuple(sorted({min(possible, key=lambda cut: (abs(possible[cut] - share), cut)) for share in wanted}))


def early_exits(
    model: nn.Module | torch.export.ExportedProgram,
    chain: Chain,
    training: Labelled,
    *,
    classes: int,
    cuts: Sequence[int] | None = None,
    seed: int = 0,
) -> list[EarlyExit]:
    """Train a head at each cut on the model's frozen features.

    Parameters
    ----------
    model
        A trained classifier of images, in eval mode; not changed.
    chain
        Of that model, by :func:`odin.build_chain`, so that cuts are those that ``odin partition`` shows.
    training
        Images and classes to train heads by; those that the model was trained on will do.
    classes
        Number of the model's.
    cuts
        After how many layers; default: :func:`choose_exits`.

    Returns
    -------
    list of EarlyExit
        In the order of cuts.

    Raises
    ------
    ReductionError
        If the model or the data does not allow it.
    """
    training.check()
    possible = possible_exits(chain)
    chosen = choose_exits(chain) if cuts is None else tuple(cuts)
    for cut in chosen:
        if cut not in possible:
            raise ReductionError(
                f"no exit can be put at cut {cut} of {chain.name}; it can at {', '.join(map(str, possible)) or 'none'}"
            )
    parts = first_layers(model, chain, chosen, training.inputs[:1])
    exits = []
    for cut, part in zip(chosen, parts, strict=True):
        side = pooled_side((len(training.inputs), *chain.layers[cut - 1].output[0].shape[1:]))
        pool = nn.Sequential(nn.AdaptiveAvgPool2d((side, side)) if side else nn.Identity(), nn.Flatten())
        features = torch.cat([pool(found).float() for found in through(part, training.inputs)])
        head = train_head(Labelled(features, training.classes), classes=classes, side=side, seed=seed)
        exits.append(EarlyExit(part, head, cut=cut).eval())
    return exits


def first_layers(
    model: nn.Module | torch.export.ExportedProgram, chain: Chain, cuts: Sequence[int], example: Tensor
) -> list[fx.GraphModule]:
    """Return the part of the model before each cut, as modules over the model's own tensors.

    The chain's layers were rewritten (batch norm is folded into weights), so the place in the model is found by what
    crosses the cut: the value of the example there, within rounding.

    Raises
    ------
    ReductionError
        If the model cannot be traced, takes more than one tensor, or does not have that value anywhere.
    """
    root, graph = _traced(model)
    if sum(node.op == "placeholder" for node in graph.nodes) != 1 or not chain.takes_tensors:
        raise ReductionError(f"{chain.name} takes more than one tensor: only a model of one image can be reduced")
    if len(chain.inputs[0].shape) and not chain.dynamic_batch and chain.inputs[0].shape[0] != 1:
        raise ReductionError(f"{chain.name} takes {chain.inputs[0].shape[0]} images only: give an example of one")
    values = chain.layout(chain.pack((example,)))
    wanted = {cut: chain.run(values, 0, cut)[0] for cut in cuts}
    seen = _Seen(root, graph, wanted)
    with torch.no_grad():
        seen.run(example)
    missing = [cut for cut in cuts if cut not in seen.found]
    if missing:
        raise ReductionError(
            f"what crosses cut {missing[0]} of {chain.name} is no value that the model itself has; put exits elsewhere "
            "(cuts=, --exits)"
        )
    return [_until(root, graph, seen.found[cut]) for cut in cuts]


def _traced(model: nn.Module | torch.export.ExportedProgram) -> tuple[nn.Module, fx.Graph]:
    if isinstance(model, torch.export.ExportedProgram):
        module = model.module()
        assert isinstance(module, fx.GraphModule)
        return module, module.graph
    try:
        return model, fx.Tracer().trace(model)
    except Exception as error:  # whatever the model's own code raises on what is no tensor
        raise TraceError(
            f"{type(model).__name__} cannot be traced by torch.fx ({first_line(error)}); export it "
            "(torch.export.export, torch.export.save) and give the program or its .pt2 file"
        ) from error


class _Seen(fx.Interpreter):
    """Runs a graph and notes the last node that has each of the wanted values."""

    def __init__(self, root: nn.Module, graph: fx.Graph, wanted: dict[int, Tensor]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an exported program's names of buffers
            module = fx.GraphModule(root, graph)
        super().__init__(module)
        self.extra_traceback = False
        self._wanted = wanted
        self._original = {copy.name: node for copy, node in zip(module.graph.nodes, graph.nodes, strict=True)}
        self.found: dict[int, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and compare."""
        result = super().run_node(n)
        if n.op.startswith("call_") and isinstance(result, Tensor):
            for cut, value in self._wanted.items():
                if result.shape == value.shape and _same(result, value):
                    self.found[cut] = self._original[n.name]
        return result


def _same(one: Tensor, other: Tensor) -> bool:
    greatest = float(other.abs().max())
    return bool(torch.allclose(one.to(other.dtype), other, rtol=1e-3, atol=1e-4 * greatest))


def _until(root: nn.Module, graph: fx.Graph, last: fx.Node) -> fx.GraphModule:
    """Return the part of a graph that ends with a node."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target == "_guards_fn":
            continue  # an exported program's checks of shapes
        copies[node] = part.node_copy(node, lambda operand: copies[operand])
        copies[node].type = None  # an annotation that is a text keeps the module from being pickled
        if node is last:
            break
    part.output(copies[last])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        module = fx.GraphModule(root, part, class_name="FirstLayers")
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module.eval()
