"""Reduced forms as files: programs of ``torch.export``, which ODIN takes wherever it takes a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from odin.partitioner.chain import Chain
from odin.partitioner.graph.capture import first_line
from odin.reduction.answering import ReductionError
from odin.reduction.manifest import Form, Manifest, write_manifest
from odin.reduction.reduced import Reduced, ReducedForm
from odin.stages.compute.opaque import compute_threads
from odin.stages.device import cpu_model

__all__ = ["save_forms", "time_forms"]


def save_forms(
    reduced: Reduced,
    folder: Path,
    *,
    name: str,
    budget: float,
    example: torch.Tensor,
    rounds: int = 15,
    tell: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Time all forms, and write them into a folder with the file that says what each is.

    Parameters
    ----------
    name
        The model's; files are called ``NAME-FORM.pt2``.
    budget
        Share of accuracy that may be lost; forms beyond it are written as well.
    example
        One image, ``(1, ...)``.
    rounds
        Of timing.
    tell
        Called with what is done next.

    Raises
    ------
    ReductionError
        If a form cannot be exported.
    OSError
        If it cannot be written.
    """
    tell("time each form")
    seconds = time_forms([form.chain for form in reduced.forms], rounds=rounds)
    folder.mkdir(parents=True, exist_ok=True)
    full = reduced.forms[0]
    forms = []
    for form, took_s in zip(reduced.forms, seconds, strict=True):
        tell(f"write {form.name}")
        file = f"{name}-{form.name}.pt2"
        _save(form, folder / file, example)
        share = form.flops / full.flops
        forms.append(Form(form.name, form.kind, file, len(form.chain.layers), share, took_s, form.judgement))
    manifest = Manifest(name, budget, cpu_model(), tuple(forms))
    write_manifest(folder, manifest)
    return manifest


def _save(form: ReducedForm, path: Path, example: torch.Tensor) -> None:
    """Write a form as a ``.pt2`` file that takes any number of images, or one if the model takes no more.

    Raises
    ------
    ReductionError
        If it cannot be exported.
    OSError
        If it cannot be written.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        torch.export.save(_program(form, example), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _program(form: ReducedForm, example: torch.Tensor) -> ExportedProgram:
    if isinstance(form.model, ExportedProgram):
        return form.model
    any_number = form.chain.dynamic_batch
    shown = torch.cat([example, example]) if any_number else example  # one alone would be taken for a constant
    shapes = ({0: Dim.AUTO},) if any_number else None
    try:
        with torch.no_grad():
            program = torch.export.export(form.model, (shown,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises a different kind for every way in which a model cannot be exported
        raise ReductionError(f"{form.name} cannot be exported: {first_line(error)}") from error
    program.example_inputs = ((example,), {})
    return program


def time_forms(chains: Sequence[Chain], *, rounds: int = 15) -> list[float]:
    """Return the least seconds of one request of each chain on one thread, all taking turns."""
    values = [
        chain.layout(tuple(torch.ones(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in chain.inputs))
        for chain in chains
    ]
    least = [float("inf")] * len(chains)
    with compute_threads(1):
        for index in range(rounds + 1):
            for place, (chain, inputs) in enumerate(zip(chains, values, strict=True)):
                begin_s = time.perf_counter()
                chain.run(inputs)
                if index:  # the first one loads and compiles
                    least[place] = min(least[place], time.perf_counter() - begin_s)
    return least
