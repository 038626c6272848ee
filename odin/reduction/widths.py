"""A narrower copy of a trained model: of each group of channels those with the largest weights stay."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odin.partitioner.graph.capture import first_line
from odin.reduction.answering import BATCH, ReductionError
from odin.reduction.channels import ChannelGroups, find_groups
from odin.reduction.slimmable import check_widths

__all__ = ["narrow", "recalibrate"]


def narrow(model: nn.Module, example: Tensor, *, width: float) -> nn.Module:
    """Return a smaller copy of a model that was not trained to be narrowed.

    Channels are ranked by the norm of the weights that write them (Li et al., ICLR 2017), in each group of channels
    that belong together. Call :func:`recalibrate` with images afterwards, or the copy says nothing of use; and even
    then it may be bad, since nothing was trained.

    Parameters
    ----------
    model
        In eval mode; not changed.
    example
        One input.
    width
        Share of the channels, in (0, 1]. Inputs and scores keep theirs.

    Raises
    ------
    ReductionError, TraceError
        If channels cannot be followed through the model, or it does not run with fewer.
    """
    check_widths([width])
    groups = find_groups(model, example)
    made = copy.deepcopy(model).eval()
    for number, size in groups.sizes.items():
        count = size if number in groups.fixed else min(size, max(1, math.ceil(width * size)))
        if count < size:
            kept = _ranked(model, groups, number)[:count].sort().values
            for use in groups.uses[number]:
                _keep(made.get_submodule(use.path), use.role, kept, use.repeat)
    try:
        with torch.no_grad():
            made(example)
    except Exception as error:  # its code has the number of channels in it
        raise ReductionError(
            f"{type(model).__name__} does not run with fewer channels ({first_line(error)}): its code has their number "
            "in it; put early exits into this model instead"
        ) from error
    return made.requires_grad_(False)


def _ranked(model: nn.Module, groups: ChannelGroups, number: int) -> Tensor:
    """Return a group's channels, the one with the largest weights first."""
    total = torch.zeros(groups.sizes[number], dtype=torch.float64)
    for use in groups.uses[number]:
        if use.role == "writes":
            weight = model.get_submodule(use.path).weight
            assert isinstance(weight, Tensor)
            norms = weight.detach().double().flatten(1).norm(dim=1)
            total += norms / norms.mean().clamp_min(1e-30)  # each layer counts alike
    return torch.argsort(total, descending=True, stable=True)


def _keep(module: nn.Module, role: str, kept: Tensor, repeat: int) -> None:
    """Reduce a module to the channels that stay."""
    if role == "reads" and repeat > 1:
        kept = (kept[:, None] * repeat + torch.arange(repeat)).flatten()
    if role == "reads":
        _set(module, "weight", kept, 1)
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _set(module, name, kept, 0)
    count = len(kept)
    if isinstance(module, nn.Conv2d):
        if role != "writes":
            module.in_channels = count
        if role != "reads":
            module.out_channels = count
        if role == "each":
            module.groups = count
    elif isinstance(module, nn.Linear):
        if role == "reads":
            module.in_features = count
        else:
            module.out_features = count
    elif isinstance(module, _BatchNorm):
        module.num_features = count


def _set(module: nn.Module, name: str, kept: Tensor, axis: int) -> None:
    tensor = getattr(module, name, None)
    if isinstance(tensor, Tensor):
        fewer = tensor.detach().index_select(axis, kept).contiguous()
        setattr(module, name, nn.Parameter(fewer, requires_grad=False) if isinstance(tensor, nn.Parameter) else fewer)


def recalibrate(model: nn.Module, images: Tensor) -> None:
    """Measure batch norm's means and variances anew on images, in place: those of the full model no longer hold.

    Raises
    ------
    ReductionError
        If there are fewer than two images.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if len(images) < 2:
        raise ReductionError(f"{len(images)} images: batch norm's averages need at least two")
    before = [(norm.momentum, norm.training) for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for part in images.split(BATCH):
                if len(part) > 1:
                    model(part)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
