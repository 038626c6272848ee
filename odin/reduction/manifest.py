"""The file that says which reduced forms of a model a folder holds, how fast and how good each is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from odin.partitioner.files import write_whole
from odin.reduction.accuracy import Judgement
from odin.reduction.budget import Option, check_budget

__all__ = ["FILE", "Form", "Manifest", "read_manifest", "write_manifest"]

FILE = "reduced.json"


class Form(msgspec.Struct, frozen=True):
    """A form of the model, see :class:`odin.reduction.reduced.ReducedForm`.

    Attributes
    ----------
    name, kind
        Of the form.
    file
        Its ``.pt2`` file in the folder.
    layers
        Of its chain.
    flops_share
        Of the full model's operations.
    seconds
        For one image, alone on one core; the least of several.
    judgement
        On the held-out images.
    """

    name: str
    kind: str
    file: str
    layers: int
    flops_share: float
    seconds: float
    judgement: Judgement

    @property
    def option(self) -> Option:
        """What :func:`odin.reduction.budget.within_budget` chooses from."""
        return Option(self.name, self.seconds, self.judgement.lost.value)


class Manifest(msgspec.Struct, frozen=True, tag_field="format", tag="odin-reduced-1"):
    """All forms of a model.

    Attributes
    ----------
    model
        Its name.
    budget
        Share of accuracy that may be lost, as it was asked for.
    processor
        On which it was timed.
    forms
        The full model first.
    """

    model: str
    budget: float
    processor: str
    forms: tuple[Form, ...]


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write it into a folder, whole or not at all; returns the file."""
    path = folder / FILE
    write_whole(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return path


def read_manifest(folder: str | Path) -> Manifest:
    """Read a folder's.

    Raises
    ------
    ValueError
        If it is none of this format, or names files elsewhere.
    OSError
        If it cannot be read.
    """
    path = Path(folder) / FILE
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        check_budget(manifest.budget)
    except ValueError as error:  # of msgspec too
        raise ValueError(f"{path}: {error}; make it anew by odin reduce") from error
    for form in manifest.forms:
        if Path(form.file).name != form.file:
            raise ValueError(f"{path}: {form.file!r} is no file of this folder; make it anew by odin reduce")
    return manifest
