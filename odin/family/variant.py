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
        As of :func:`odin.load_source`; ``model`` may be a :class:`odin.Source` or :class:`odin.Chain` as well.
    stages
        Its devices; None: the family's.
    plan, batch, engine, precision, calibration, dynamic_batching, share
        As of :class:`odin.Pipeline`.
    layers
        Where requests change hands, as ``policy`` of :class:`odin.Pipeline`.
    accuracy
        Share of right answers, if it is known already; otherwise it is measured on labelled data.
    reduced
        Whether it computes less than the model that it stands for, such as by early exits or fewer channels. It is used
        only for requests that allow that.
    """

    name: str
    model: Any
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
    reduced: bool = False
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 128 or not self.name.isprintable():
            raise ValueError(f"a variant's name is {self.name!r}; give it a word, such as 'resnet18-int8'")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"variant {self.name!r}: accuracy={self.accuracy}; it is a share, from 0 to 1")

    def with_calibration(self, calibration: Any) -> Variant:
        """The same, quantised by these examples."""
        return replace(self, calibration=calibration)

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
