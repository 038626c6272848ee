"""From a model to its packed file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from odin.fleet.opened import processor_form
from odin.fleet.packed import check_name, write_packed
from odin.fleet.program_data import NotPackableError, layer_to_data
from odin.fleet.structure import structure_to_data
from odin.models.sources import Source
from odin.partitioner.chain import Chain, build_chain
from odin.stages.compute import opaque
from odin.stages.compute.opaque import compute_threads
from odin.stages.compute.torch_weights import store

__all__ = ["pack_chain", "pack_source", "time_alone"]

_SAMPLES = (1, 2, 4, 8)
_RUNS, _LONGEST_S = 5, 1.0


def pack_source(source: Source, folder: str | Path, *, name: str, portable: bool = False) -> Path:
    """Pack a model; returns the file.

    Parameters
    ----------
    source
        The model, of :func:`odin.load_source`.
    folder
        Where its file goes; made if it is not there.
    name
        By which it is asked for.
    portable
        Keep weights plain, for any processor: each executor packs its own copy then, which takes longer to load and is
        not shared.

    Raises
    ------
    ValueError
        If the model cannot be packed; the message says why.
    OSError
        If the file cannot be written.
    """
    chain = build_chain(source.torch_model, source.example_args, name=name)
    preprocess = None if source.preprocess is None else dataclasses.asdict(source.preprocess)
    return pack_chain(
        chain,
        folder,
        name=name,
        portable=portable,
        labels=source.labels,
        preprocess=preprocess,
        random_weights=source.random_weights,
    )


def pack_chain(
    chain: Chain,
    folder: str | Path,
    *,
    name: str,
    portable: bool = False,
    labels: tuple[str, ...] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    random_weights: bool = False,
    baseline_s: Mapping[int, float] | None = None,
) -> Path:
    """As :func:`pack_source`, for a chain.

    Parameters
    ----------
    baseline_s
        Seconds of a run by samples, as of :func:`time_alone`, which is called without.
    """
    layers = chain.program.layers
    if not chain.takes_tensors:
        raise NotPackableError(
            f"{name} takes other arguments than tensors, or tensors in a structure, which a packed model cannot; wrap "
            "it in a module that takes tensors"
        )
    check_name(name)
    example = chain.inputs[0].shape[0] if chain.inputs[0].shape else 1
    if example < 1:
        raise NotPackableError(f"the example input of {name} has no samples: give one with a leading size of 1 or more")
    data = [layer_to_data(layer) for layer in layers]
    used = {state: chain.state[state] for layer in layers for state in layer.state_names}
    packs = opaque.supported() and not portable
    with compute_threads(1):
        stored = store(chain.program.pack(used, batch=example) if packs else used)
    if baseline_s is None:
        baseline_s = time_alone(chain)
    return write_packed(
        Path(folder),
        name,
        stored,
        layers=data,
        shared={
            "inputs": [[spec.kind, list(spec.shape), spec.dtype] for spec in chain.inputs],
            "outputs": [[spec.kind, list(spec.shape), spec.dtype] for spec in chain.layers[-1].output],
            "dynamic_batch": chain.dynamic_batch,
            "channels_last": chain.channels_last,
            "returns": structure_to_data(chain.outcome),
        },
        own={
            "processor": processor_form() if packs else "",
            "limits": [list(layer.limits) for layer in layers],
            "output_bounds": [list(layer.output_bounds) for layer in layers],
            "baseline_s": sorted(baseline_s.items()),
            "labels": labels,
            "preprocess": preprocess,
            "random_weights": random_weights,
        },
    )


def time_alone(chain: Chain) -> dict[int, float]:
    """Least seconds of a run on one thread, by samples; of the example's alone if others do not work.

    Raises
    ------
    NotPackableError
        If the model fails on its inputs, which are random.
    """
    found: dict[int, float] = {}
    example = chain.inputs[0].shape[0] if chain.inputs[0].shape else 1
    with compute_threads(1):
        for samples in _SAMPLES if chain.dynamic_batch else (example,):
            shapes = [(samples, *spec.shape[1:]) if chain.dynamic_batch else spec.shape for spec in chain.inputs]
            generator = torch.Generator().manual_seed(0)
            inputs = tuple(
                torch.rand(shape, generator=generator).to(getattr(torch, spec.dtype))
                for shape, spec in zip(shapes, chain.inputs, strict=True)
            )
            values = chain.layout(inputs)
            took_s: list[float] = []
            end_s = time.perf_counter() + _LONGEST_S
            while len(took_s) < 1 + _RUNS and (len(took_s) < 2 or time.perf_counter() < end_s):
                begin_s = time.perf_counter()
                try:
                    chain.run(values)
                except Exception as error:
                    raise NotPackableError(
                        f"{chain.name} cannot be timed: with {samples} random samples it raises "
                        f"{type(error).__name__}: {error}; give its times (baseline_s=), or serve it by a pipeline"
                    ) from error
                took_s.append(time.perf_counter() - begin_s)
            found[samples] = min(took_s[1:])  # the first one loads and compiles
    return found
