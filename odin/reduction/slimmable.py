"""Slimmable training: one set of weights that works at several widths (Yu et al., ICLR 2019).

The network of a width has the first channels of every layer of the full one, so its weights are leading corners of the
full weights; batch norm is each width's own. What is narrower learns from the full network's answers, as in universally
slimmable networks (Yu and Huang, ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from odin.models.labelled import Labelled
from odin.reduction.answering import ReductionError

__all__ = ["check_widths", "corners", "train_slimmable"]

_BATCH = 64
_RATE = 4e-3
_DECAY = 1e-2


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Return widths in descending order, each once.

    Raises
    ------
    ReductionError
        If one is not in (0, 1].
    """
    wrong = [width for width in widths if not 0.0 < width <= 1.0]
    if wrong or not widths:
        raise ReductionError(f"widths {list(widths)}: give shares of the channels in (0, 1], such as 0.25,0.5,0.75")
    return tuple(sorted(set(widths), reverse=True))


def train_slimmable(
    make: Callable[[float], nn.Module],
    training: Labelled,
    *,
    widths: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    epochs: int = 20,
    seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    tell: Callable[[int, float], None] | None = None,
) -> dict[float, nn.Module]:
    """Train a small CNN at all widths at once, and return the network of each as a plain module.

    Parameters
    ----------
    make
        The network of a width: the same modules by name, with fewer channels. ``make(1.0)`` is the full one.
    widths
        Among them 1.0; that alone is ordinary training.
    epochs
        Passes over the images.
    seed
        Of first weights and order. The same seed gives the same weights on the same processor and version of PyTorch,
        and others by rounding elsewhere.
    augment
        Makes other images of the same classes of a batch, from a generator.
    tell
        Called after each epoch with its number, from 1, and the full network's mean loss.

    Returns
    -------
    dict
        Width -> module in eval mode; each has its own copy of its weights.

    Raises
    ------
    ReductionError
        If networks do not fit each other, or numbers make no sense.
    """
    training.check()
    ordered = check_widths(widths)
    if ordered[0] != 1.0:
        raise ReductionError(f"widths {list(widths)}: the full width, 1.0, is to be among them")
    if epochs < 1:
        raise ReductionError(f"epochs={epochs}: train at least once over the images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {width: make(width).train() for width in ordered}
    full = networks[1.0]
    shared = {width: corners(full, network) for width, network in networks.items() if width != 1.0}
    own = [
        parameter
        for width, network in networks.items()
        if width != 1.0
        for name, parameter in network.named_parameters()
        if name not in shared[width]
    ]
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(training.classes) // _BATCH)
    optimizer = torch.optim.AdamW([*full.parameters(), *own], lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=epochs * batches)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(training.classes), generator=generator).split(_BATCH):
            images, labels = training.inputs[chosen], training.classes[chosen]
            if len(labels) < 2:
                continue  # batch norm has nothing to average over
            images = images if augment is None else augment(images, generator)
            with torch.enable_grad():
                optimizer.zero_grad()
                found = full(images)
                loss = functional.cross_entropy(found, labels)
                loss.backward()
                aims = found.detach().softmax(1)
                for width, names in shared.items():
                    narrow = functional_call(networks[width], _cut(full, names), (images,))
                    functional.cross_entropy(narrow, aims).backward()
                optimizer.step()
                schedule.step()
            total += float(loss.detach()) * len(labels)
        if tell is not None:
            tell(epoch + 1, total / len(training.classes))
    for width, names in shared.items():
        _take(networks[width], _cut(full, names))
    return {width: network.eval().requires_grad_(False) for width, network in networks.items()}


def corners(full: nn.Module, narrow: nn.Module) -> dict[str, tuple[slice, ...]]:
    """Return which part of the full network's weights a narrower one has, by name; batch norm is its own.

    Raises
    ------
    ReductionError
        If a weight has no place in the full network's.
    """
    weights = dict(full.named_parameters())
    norms = {f"{path}." for path, module in narrow.named_modules() if isinstance(module, _BatchNorm)}
    found = {}
    for name, parameter in narrow.named_parameters():
        if any(name.startswith(norm) and "." not in name.removeprefix(norm) for norm in norms):
            continue
        whole = weights.get(name)
        sizes = tuple(parameter.shape)
        if whole is None or whole.ndim != len(sizes) or any(a > b for a, b in zip(sizes, whole.shape, strict=True)):
            has = "no such weight" if whole is None else f"shape {tuple(whole.shape)}"
            raise ReductionError(
                f"the narrower network's {name} has shape {sizes}, the full one has {has}: both are to have the same "
                "modules, with fewer channels in the narrower one"
            )
        found[name] = tuple(slice(0, size) for size in sizes)
    return found


def _cut(full: nn.Module, names: dict[str, tuple[slice, ...]]) -> dict[str, Any]:
    weights = dict(full.named_parameters())
    return {name: weights[name][part] for name, part in names.items()}


def _take(network: nn.Module, weights: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
