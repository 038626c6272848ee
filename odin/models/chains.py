"""From the model given to a pipeline to its chain, and its size before the chain exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from odin.models.sources import Source, load_source
from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.engines.form import Form
from odin.partitioner.engines.names import TORCH
from odin.process.phases import phase

__all__ = ["example_inputs", "to_chain", "to_source", "weight_nbytes"]


_SESSION_MINIMUM_S = 1e-3
"""Least time of a layer for engines that take some 20 us for each call."""


def to_source(model: Any, *, weights: str | Path | None, example_input: Any) -> Source | Chain:
    """Load what :class:`odin.Pipeline` is given; a chain stays as it is.

    Raises
    ------
    ValueError
        If it names or is no model, or an option does not go with it.
    """
    if not isinstance(model, (Chain, Source)):
        return load_source(model, weights=weights, example_input=example_input)
    for name, value in (("weights", weights), ("example_input", example_input)):
        if value is not None:
            made_by = "build_chain" if isinstance(model, Chain) else "load_source"
            kind = type(model).__name__.lower()
            raise ValueError(f"{name} does not go with a {kind}, which has its own; give it to {made_by}")
    if isinstance(model, Chain) and model.released:
        raise ValueError(f"the weights of {model.name} were released; build the chain anew")
    return model


def to_chain(source: Source | Chain, *, engine: str = TORCH) -> Chain:
    """Cut a model that is not a chain yet, in layers that are worth a call of their own for the engine."""
    if isinstance(source, Chain):
        return source
    minimum_s = 0.0 if engine == TORCH else _SESSION_MINIMUM_S
    with phase(f"{source.name} cut into layers"):
        return build_chain(source.model, source.example_args, name=source.name, minimum_s=minimum_s)


def weight_nbytes(source: Source | Chain) -> int:
    """Bytes of a model's tensors: an estimate of its chain's weights, before the chain is built."""
    values: list[Any]
    if isinstance(source, Chain):
        values = list(source.state.values())
    elif isinstance(source.model, torch.nn.Module):
        values = [*source.model.parameters(), *source.model.buffers()]
        values += [value for module in source.model.modules() for value in vars(module).values()]
    else:
        values = [*source.model.state_dict.values(), *source.model.constants.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def example_inputs(chain: Chain, form: Form, batch: int) -> tuple[torch.Tensor, ...]:
    """Ones like the example's inputs with another leading size, in the engine's layout, for timing."""
    tensors = []
    for spec in chain.inputs:
        shape = (batch, *spec.shape[1:]) if chain.dynamic_batch else spec.shape
        tensors.append(torch.ones(shape, dtype=getattr(torch, spec.dtype)))
    return form.layout(tuple(tensors))
