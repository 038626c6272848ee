"""From the model given to a pipeline to its chain, and its size before the chain exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from odin.models.sources import Source, load_source
from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.engines.form import Form
from odin.partitioner.engines.names import AUTO, TORCH
from odin.partitioner.engines.onnx_chain import OnnxChain, build_onnx_chain, onnx_engines
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.process.phases import phase

__all__ = ["engine_for", "example_inputs", "to_chain", "to_source", "weight_nbytes"]


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


def engine_for(source: Source | Chain, engine: str | None) -> str:
    """Return the engine asked for; None: ``"torch"``, or ``"auto"`` for an ONNX file.

    Raises
    ------
    ValueError
        If it does not go with the model.
    """
    if not isinstance(source if isinstance(source, Chain) else source.model, (OnnxChain, OnnxFile)):
        return engine or TORCH
    if engine == TORCH:
        raise ValueError(
            f"engine 'torch' does not go with {source.name}, an ONNX file: choose 'onnxruntime', 'openvino' or 'auto', "
            "or give the PyTorch model from which the file was exported"
        )
    onnx_engines()
    return engine or AUTO


def to_chain(source: Source | Chain, *, engine: str = TORCH, stage_count: int = 1) -> Chain:
    """Cut a model that is not a chain yet, in layers that are worth a call of their own for the engine.

    Smaller ones if those are fewer than the stages, as of a small model.
    """
    if isinstance(source, Chain):
        return source
    minimum_s = 0.0 if engine == TORCH else _SESSION_MINIMUM_S
    with phase(f"{source.name} cut into layers"):
        chain = _cut(source, engine, minimum_s)
        if len(chain.layers) < stage_count and minimum_s:
            chain = _cut(source, engine, 0.0)
        return chain


def _cut(source: Source, engine: str, minimum_s: float) -> Chain:
    if isinstance(source.model, OnnxFile):
        return build_onnx_chain(
            source.model,
            [tensor.numpy() for tensor in source.example_args],
            name=source.name,
            engine=None if engine == AUTO else engine,
            minimum_s=minimum_s,
        )
    return build_chain(source.torch_model, source.example_args, name=source.name, minimum_s=minimum_s)


def weight_nbytes(source: Source | Chain) -> int:
    """Bytes of a model's tensors: an estimate of its chain's weights, before the chain is built."""
    values: list[Any]
    if isinstance(source, OnnxChain):
        return source.file.weight_nbytes
    if isinstance(source, Chain):
        values = list(source.state.values())
    elif isinstance(source.model, OnnxFile):
        return source.model.weight_nbytes
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
