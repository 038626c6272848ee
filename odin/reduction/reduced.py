"""A trained classifier's reduced forms, each with what it costs in accuracy on images that none was made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from odin.models.labelled import Labelled
from odin.partitioner.chain import Chain, TraceError, build_chain
from odin.reduction.accuracy import Judgement, judge
from odin.reduction.answering import ReductionError, answers, scores
from odin.reduction.budget import FULL
from odin.reduction.exits import choose_exits, early_exits
from odin.reduction.heads import train_head
from odin.reduction.widths import narrow, recalibrate

__all__ = ["Reduced", "ReducedForm", "reduce_model", "refit"]


@dataclass(frozen=True)
class ReducedForm:
    """One form of the model.

    Attributes
    ----------
    name
        ``"full"``, ``"exit-7"`` (after 7 layers of the chain), ``"width-0.5"`` (narrowed without training),
        ``"slim-0.5"`` (trained to be narrow).
    kind
        ``"full"``, ``"exit"`` or ``"width"``.
    model
        A classifier of its own, in eval mode. Exits hold the full model's tensors; widths their own.
    chain
        Of it.
    judgement
        On the held-out images.
    """

    name: str
    kind: str
    model: nn.Module | ExportedProgram
    chain: Chain
    judgement: Judgement

    @property
    def flops(self) -> int:
        """Floating point operations for the example."""
        return sum(layer.flops for layer in self.chain.layers)


@dataclass(frozen=True)
class Reduced:
    """What :func:`reduce_model` made.

    Attributes
    ----------
    forms
        The full model first, then exits and widths.
    notes
        What could not be made, and why.
    """

    forms: tuple[ReducedForm, ...]
    notes: tuple[str, ...] = field(default=())


def reduce_model(
    model: nn.Module | ExportedProgram,
    training: Labelled,
    held_out: Labelled,
    *,
    exits: int | Sequence[int] = 4,
    widths: Sequence[float] = (),
    trained_widths: Mapping[float, nn.Module] | None = None,
    name: str = "model",
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Reduced:
    """Make a classifier's early exits and narrower copies, and measure each one's accuracy.

    Parameters
    ----------
    model
        A trained classifier of images, in eval mode; not changed.
    training
        By which heads are trained and batch norm is measured anew; the model's own training images will do.
    held_out
        On which accuracy is measured: neither the model nor anything here may have been trained by them.
    exits
        How many, spread evenly over the model's operations; or after how many layers of the chain each.
    widths
        Shares of the channels to keep in a model that was not trained for it.
    trained_widths
        Networks of :func:`odin.reduction.slimmable.train_slimmable`, by width.
    name
        The model's.
    tell
        Called with what is done next.

    Raises
    ------
    ReductionError, TraceError
        If the model is no classifier of images, or an exit that was asked for by number cannot be put there. A width
        that cannot be made is told of in the notes.
    """
    training.check()
    held_out.check()
    tell("cut the model into layers")
    example = held_out.inputs[:1]
    chain = build_chain(model, (example,), name=name)
    tell("ask the full model")
    run = model.module() if isinstance(model, ExportedProgram) else model
    told = _scores(run, held_out.inputs, chain)
    classes = told.shape[1]
    if int(held_out.classes.max()) >= classes:
        raise ReductionError(f"label {int(held_out.classes.max())} is none of the model's {classes} classes")
    full = answers(told)
    labels = held_out.classes.tolist()
    forms = [ReducedForm(FULL, FULL, model, chain, judge(full, full, labels))]
    notes = []

    def add(form: str, kind: str, made: nn.Module) -> None:
        tell(f"measure {form}")
        own = build_chain(made, (example,), name=f"{name}-{form}")
        found = answers(_scores(made, held_out.inputs, own))
        forms.append(ReducedForm(form, kind, made, own, judge(found, full, labels)))

    cuts = (choose_exits(chain, count=exits) if exits else ()) if isinstance(exits, int) else tuple(exits)
    if cuts:
        tell(f"train {len(cuts)} exits")
        for made in early_exits(model, chain, training, classes=classes, cuts=cuts, seed=seed):
            add(f"exit-{made.cut}", "exit", made)
    for width in sorted(set(widths), reverse=True):
        tell(f"narrow to {width:g} of the channels")
        try:
            if isinstance(model, ExportedProgram):
                raise ReductionError("an exported program cannot be narrowed: give the module that it was made from")
            thin = narrow(model, example, width=width)
            recalibrate(thin, training.inputs)
            refit(thin, training, classes=classes, seed=seed)
        except (ReductionError, TraceError) as error:
            notes.append(f"width {width:g} was not made: {error}")
            continue
        add(f"width-{width:g}", "width", thin)
    for width, network in sorted((trained_widths or {}).items(), reverse=True):
        if width < 1.0:
            add(f"slim-{width:g}", "width", network)
    return Reduced(tuple(forms), tuple(notes))


def refit(model: nn.Module, training: Labelled, *, classes: int, seed: int = 0) -> bool:
    """Train the last linear layer of a classifier anew, in place; False if its scores come from no linear layer."""
    last: list[nn.Linear] = []
    features: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        last.append(module)
        features.append(inputs[0])
        outputs.append(output)

    outputs: list[Tensor] = []
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    kept = []
    try:
        with torch.no_grad():
            for part in training.inputs.split(64):
                returned = model(part)
                if not outputs or outputs[-1] is not returned:
                    return False
                kept.append(features[-1])
                layer = last[-1]
                for noted in (last, features, outputs):
                    noted.clear()
    finally:
        for hook in hooks:
            hook.remove()
    head = train_head(Labelled(torch.cat(kept).float(), training.classes), classes=classes, side=0, seed=seed)
    with torch.no_grad():
        layer.weight.copy_(head.classify.weight)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.empty(classes), requires_grad=False)
        layer.bias.copy_(head.classify.bias)
    return True


def _scores(module: nn.Module, images: Tensor, chain: Chain) -> Tensor:
    """Return scores of all images, one at a time if the model takes no more."""
    return scores(module, images) if chain.dynamic_batch else scores(module, images, batch=1)
