"""A variant as a user gives it: a model, and how it is to be served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from odin.models.chains import engine_for
from odin.models.sources import Source, load_source
from odin.models.weight_files import model_digest
from odin.partitioner.chain import Chain
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.reduction.budget import FULL, within_budget
from odin.reduction.manifest import read_manifest
from odin.stages.device import cpu_model, parse_devices

__all__ = ["Variant"]

_FILES = (".pt2", ".onnx", ".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Variant:
    """One way to do a family's task.

    All variants of a family take the same inputs, and return the same outputs but for their values.

    Attributes
    ----------
    name
        By which answers, events and metrics tell of it.
    model, weights, example_input, image_size
        As of :func:`odin.load_source`; ``model`` may be a :class:`odin.Source` or :class:`odin.Chain` as well. None:
        the full form of ``forms``.
    stages
        Its devices; None: the family's.
    plan, batch, engine, precision, calibration, dynamic_batching, share
        As of :class:`odin.Pipeline`.
    layers
        Where requests change hands, as ``policy`` of :class:`odin.Pipeline`.
    accuracy
        Share of right answers, if it is known already; otherwise it is measured on labelled data.
    forms
        Folder that ``odin reduce`` wrote for this model. Its reduced forms become variants of the same options, called
        ``NAME-exit-8`` and so on: those within the budget of ``odin reduce``.
    form
        ``"full"``, or a word for a form that computes less, such as ``"exit-8"``: it is used only for requests whose
        accuracy budget allows what it loses.
    accuracy_lost
        Share of accuracy that a reduced form loses against the full one.
    """

    name: str
    model: Any = None
    weights: str | Path | None = None
    example_input: Any = None
    image_size: int | None = None
    stages: str | Sequence[str] | None = None
    plan: str | None = None
    batch: int | None = None
    engine: str | None = None
    precision: str = "float32"
    calibration: Any = None
    dynamic_batching: bool = False
    share: float = 1.0
    layers: str = "auto"
    accuracy: float | None = None
    forms: str | Path | None = None
    form: str = FULL
    accuracy_lost: float | None = None
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 128 or not self.name.isprintable():
            raise ValueError(f"a variant's name is {self.name!r}; give it a word, such as 'resnet18-int8'")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"variant {self.name!r}: accuracy={self.accuracy}; it is a share, from 0 to 1")
        if self.model is None and self.forms is None:
            raise ValueError(f"variant {self.name!r} has no model; give one, or the folder of its forms (forms=)")
        if (self.form == FULL) != (self.accuracy_lost is None):
            raise ValueError(
                f"variant {self.name!r}: form={self.form!r}, accuracy_lost={self.accuracy_lost}; give both to a form "
                "that computes less, such as form='exit-8', accuracy_lost=0.002, and neither to a full one"
            )
        if self.accuracy_lost is not None and not -1 <= self.accuracy_lost <= 1:
            raise ValueError(f"variant {self.name!r}: accuracy_lost={self.accuracy_lost}; it is a share, such as 0.002")
        if self.form != FULL and self.forms is not None:
            raise ValueError(
                f"variant {self.name!r} is the form {self.form!r}: only a full variant has a folder of forms"
            )

    def with_calibration(self, calibration: Any) -> Variant:
        """The same, quantised by these examples."""
        return replace(self, calibration=calibration)

    def with_forms(self) -> tuple[Variant, ...]:
        """The variant without a folder, and the reduced forms that are in its folder.

        Of the forms within the budget those that lose less and are slower come first; one that is no faster than one
        that loses less is left out. Accuracies are those that ``odin reduce`` measured, or below the given one by what
        a form loses. A ``plan``, which is of the full form's layers, is not passed on.

        Raises
        ------
        ValueError, OSError
            If the folder is none of ``odin reduce``.
        """
        if self.forms is None:
            return (self,)
        folder = Path(self.forms)
        manifest = read_manifest(folder)
        full = manifest.forms[0]
        accuracy = full.judgement.accuracy.value if self.accuracy is None else self.accuracy
        whole = self
        if self.model is None:  # a program, which has the image size that it was exported for
            whole = replace(self, model=str(folder / full.file), image_size=None)
        whole = replace(whole, accuracy=accuracy, forms=None)
        named = {form.name: form for form in manifest.forms[1:]}
        within = within_budget([form.option for form in manifest.forms], manifest.budget)
        return whole, *(
            replace(
                whole,
                name=f"{self.name}-{option.name}",
                model=str(folder / named[option.name].file),
                weights=None,
                example_input=None,
                image_size=None,
                plan=None,
                accuracy=min(1.0, max(0.0, accuracy - option.lost)),
                form=option.name,
                accuracy_lost=option.lost,
            )
            for option in within
            if option.name in named
        )

    def load(self) -> Source | Chain:
        """The model itself; takes as long as reading its weights."""
        if isinstance(self.model, (Source, Chain)):
            return self.model
        return load_source(
            self.model, weights=self.weights, example_input=self.example_input, image_size=self.image_size
        )

    def options(self, source: Source | Chain, stages: str | Sequence[str]) -> dict[str, Any]:
        """What :class:`odin.Pipeline` is told beside the model."""
        own = self.stages if self.stages is not None else stages
        return {
            "stages": own if isinstance(own, str) else list(own),
            "engine": engine_for(source, self.engine),
            "plan": self.plan,
            "batch": self.batch,
            "precision": self.precision,
            "calibration": self.calibration,
            "dynamic_batching": self.dynamic_batching,
            "share": self.share,
            "policy": self.layers,
            "max_waiting": self.max_waiting,
            "share_devices": True,
        }

    def devices(self, stages: str | Sequence[str]) -> tuple[str, ...]:
        """Its devices' names, as far as they are known before it is loaded."""
        own = self.stages if self.stages is not None else stages
        return ("auto",) if own == "auto" else tuple(str(device) for device in parse_devices(own))

    def key(self, stages: str | Sequence[str]) -> str:
        """By which its profile is kept: changes with the model, how it is served, and the processor."""
        told = [
            _digest(self.model),
            _digest(None if self.weights is None else str(self.weights)),
            [list(tensor.shape) for tensor in _tensors(self.example_input)],
            self.image_size,
            self.devices(stages),
            self.plan,
            self.batch,
            self.engine,
            self.precision,
            self.dynamic_batching,
            self.share,
            self.layers,
            cpu_model(),
            torch.__version__,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _tensors(example: Any) -> Sequence[Any]:
    if example is None:
        return ()
    return example if isinstance(example, (tuple, list)) else (example,)


def _digest(model: Any) -> str:
    """A text that changes with a model."""
    if model is None:
        return ""
    if isinstance(model, Chain):
        return model.fingerprint
    if isinstance(model, Source):
        return _digest(model.model)
    if isinstance(model, (nn.Module, ExportedProgram, OnnxFile)):
        return f"{type(model).__qualname__} {hashlib.sha256(str(model).encode()).hexdigest()} {model_digest(model)}"
    text = str(model)
    path = Path(text)
    if path.suffix in _FILES and path.is_file():
        with path.open("rb") as file:
            return f"{text} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return text
