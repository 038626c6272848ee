"""What a server is told: a readable file per model, and its own settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from odin.reduction.budget import FULL
from odin.stages.pacer import LEAST_SHARE

__all__ = ["Limits", "ModelConfig", "VariantConfig", "find_models", "is_model_file", "parse_model", "read_model"]

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$"
_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class VariantConfig(BaseModel):
    """One variant of a family: a table ``[[variants]]`` of its file.

    Attributes
    ----------
    name
        By which answers and metrics tell of it.
    source, weights, image_size, stages, plan, batch, engine, precision, calibration, share
        As of a model; ``stages``, ``batch``, ``engine``, ``precision`` and ``image_size`` are the family's by default.
    layers
        Where requests change hands: ``policy`` of a model.
    accuracy
        Share of right answers, if it is known; else what ``odin profile`` has measured.
    forms
        Folder that ``odin reduce`` wrote for this model: its reduced forms become variants too. With it ``source`` may
        be left out.
    form, accuracy_lost
        Of a variant that is itself a reduced form; as those of :class:`odin.Variant`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(pattern=_NAME)
    source: str | None = None
    weights: Path | None = None
    image_size: int | None = Field(default=None, gt=0)
    stages: tuple[str, ...] | str | None = None
    plan: str | None = None
    batch: int | None = Field(default=None, gt=0)
    engine: str | None = None
    precision: str | None = None
    calibration: Path | None = None
    share: float = Field(default=1.0, ge=LEAST_SHARE, le=1)
    layers: str = "auto"
    accuracy: float | None = Field(default=None, ge=0, le=1)
    forms: Path | None = None
    form: str = Field(default=FULL, pattern=_NAME)
    accuracy_lost: float | None = Field(default=None, ge=-1, le=1)

    @field_validator("stages")
    @classmethod
    def _split_stages(cls, stages: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        return tuple(stages.split(",")) if isinstance(stages, str) and stages != "auto" else stages


_OF_FAMILY = (
    "version", "image_size", "stages", "batch", "engine", "precision", "deadline_ms", "priority_deadlines_ms",
    "inputs", "outputs", "labels", "log", "max_waiting", "variants", "memory_mib", "choice", "labelled",
    "accuracy_budget",
)  # fmt: skip
"""Fields that a family has; others are its variants'."""


class ModelConfig(BaseModel):
    """One model: what it is, and how it is served; the content of ``NAME.toml``.

    Attributes
    ----------
    name
        By which clients ask for it; the file's name without its ending.
    source
        As ``odin run`` takes it: a built-in name, ``torchvision:NAME``, ``timm:NAME``, a ``.pt2`` or ``.onnx`` file,
        ``package.module:factory``. Files are looked for beside the TOML file.
    version
        By which clients may ask for it.
    weights, image_size, batch, engine, precision, calibration, plan, policy, admission
        As those of :class:`odin.Pipeline`; ``calibration`` is a folder of images.
    max_in_flight, max_waiting, log, share
        Likewise.
    stages
        Devices, or ``"auto"``.
    deadline_ms
        Deadline of requests that have none themselves.
    priority_deadlines_ms
        Deadline by a request's priority, the first for priority 1, if it has no deadline of its own.
    inputs, outputs
        Names for the model's inputs and outputs, in order, instead of their own.
    labels
        File with one name per class.
    dynamic_batching, batch_wait_ms
        As those of :class:`odin.Pipeline`.
    latency_ms
        Milliseconds that the p95 of its micro-batches' latencies is to keep: its knob is turned for that by
        :class:`odin.Tuner`, the batch if samples are joined, otherwise the number of stages that take requests.
    variants
        With these it is no model but a family, and has no ``source``; see ``docs/variants.md``.
    memory_mib
        What the variants that are loaded may take together.
    choice
        Which variant a request gets: ``policy`` of :class:`odin.Family`.
    accuracy_budget
        Of a family's requests that name none themselves: share of accuracy that reduced forms may lose.
    labelled
        Folder with a folder of images for each class, or ``.npz`` file, by which ``odin profile`` measures accuracy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: str = Field(pattern=_NAME)
    source: str
    version: str = Field(default="1", pattern=_NAME)
    weights: Path | None = None
    image_size: int | None = Field(default=None, gt=0)
    stages: tuple[str, ...] | str = "auto"
    plan: str | None = None
    batch: int = Field(default=1, gt=0)
    engine: str | None = None
    precision: str = "float32"
    calibration: Path | None = None
    policy: str = "auto"
    admission: str = "predict"
    max_in_flight: int | None = Field(default=None, gt=0)
    max_waiting: int = Field(default=1024, ge=0)
    deadline_ms: _Milliseconds | None = None
    priority_deadlines_ms: tuple[_Milliseconds, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    labels: Path | None = None
    log: Path | None = None
    dynamic_batching: bool = False
    batch_wait_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    latency_ms: _Milliseconds | None = None
    share: float = Field(default=1.0, ge=LEAST_SHARE, le=1)
    variants: tuple[VariantConfig, ...] = ()
    memory_mib: float | None = Field(default=None, gt=0)
    choice: str = "odin"
    accuracy_budget: float = Field(default=0.0, ge=0, lt=1)
    labelled: Path | None = None

    @field_validator("stages")
    @classmethod
    def _split_stages(cls, stages: tuple[str, ...] | str) -> tuple[str, ...] | str:
        return tuple(stages.split(",")) if isinstance(stages, str) and stages != "auto" else stages


class Limits(BaseModel):
    """What clients may ask of a server.

    Attributes
    ----------
    request_mib
        Largest request, compressed or not, and largest gRPC message.
    connections
        Most open connections.
    requests
        Most requests for inference under way; beyond that they are refused.
    idle_s
        After so long without a request a connection is closed, and a request that has not come whole is given up.
    drain_s
        How long requests under way may take when the server ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_mib: float = Field(default=64.0, gt=0)
    connections: int = Field(default=2048, gt=0)
    requests: int = Field(default=1024, gt=0)
    idle_s: float = Field(default=60.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)

    @property
    def request_nbytes(self) -> int:
        """Largest request in bytes."""
        return int(self.request_mib * 2**20)


def parse_model(fields: dict[str, Any], *, name: str, folder: Path, where: str) -> ModelConfig:
    """Make a model's configuration; paths are relative to ``folder``.

    Raises
    ------
    ValueError
        If a field is unknown, missing or not valid; the message names the place, the field and the value.
    """
    if "name" in fields:
        raise ValueError(f"{where}: name = {fields['name']!r}: clients ask for it as {name!r}, by the file's name")
    if "variants" in fields:
        fields = _of_family(fields, where)
    try:
        config = ModelConfig(name=name, **fields)
    except ValidationError as error:
        raise ValueError(f"{where}: {_problems(error)}") from None
    beside = {
        field: folder / path
        for field in ("weights", "calibration", "labels", "log", "labelled")
        if (path := getattr(config, field)) is not None
    }
    beside |= _source_beside(config.source, folder)
    if config.variants:
        beside["variants"] = tuple(_variant_beside(variant, folder) for variant in config.variants)
    return config.model_copy(update=beside)


def _source_beside(source: str, folder: Path) -> dict[str, Any]:
    is_file = source.endswith((".pt2", ".onnx")) and not Path(source).is_absolute()
    return {"source": str(folder / source)} if is_file else {}


def _variant_beside(variant: VariantConfig, folder: Path) -> VariantConfig:
    files = {
        field: folder / path
        for field in ("weights", "calibration", "forms")
        if (path := getattr(variant, field)) is not None
    }
    source = {} if variant.source is None else _source_beside(variant.source, folder)
    return variant.model_copy(update={**files, **source})


def _of_family(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a family, which has no source of its own."""
    wrong = [field for field in fields if field in ModelConfig.model_fields and field not in _OF_FAMILY]
    if wrong:
        raise ValueError(
            f"{where}: {', '.join(wrong)} beside [[variants]]: a family has no such fields; give them to the variants "
            f"(the policy of a variant's layers is layers = ...)"
        )
    if not fields["variants"]:
        raise ValueError(f"{where}: variants = {fields['variants']!r}: a family has at least one")
    for number, one in enumerate(fields["variants"]):
        if isinstance(one, dict) and not {"source", "forms"} & set(one):
            raise ValueError(
                f"{where}: variant {number}: 'source' is missing: a model, or forms = the folder of its forms"
            )
    return {**fields, "source": ""}


def _problems(error: ValidationError) -> str:
    told = []
    for problem in error.errors():
        place = problem["loc"]
        in_variant = len(place) > 2 and place[0] == "variants"
        field = str(place[2] if in_variant else place[0])
        of, model = (f"variant {place[1]}: ", VariantConfig) if in_variant else ("", ModelConfig)
        if problem["type"] == "extra_forbidden":
            known = [name for name in model.model_fields if name != "name" or in_variant]
            near = "".join(f" (did you mean {name}?)" for name in get_close_matches(field, known, n=1))
            told.append(f"{of}there is no field {field!r}{near}; there are {', '.join(known)}")
        elif problem["type"] == "missing":
            told.append(f"{of}{field!r} is missing")
        else:
            told.append(f"{of}{field} = {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}")
    return "; ".join(dict.fromkeys(told))


def read_model(path: Path) -> ModelConfig:
    """Read ``NAME.toml``.

    Raises
    ------
    ValueError
        If it is not valid.
    OSError
        If it cannot be read.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no TOML: {error}") from None
    return parse_model(fields, name=path.stem, folder=path.parent, where=str(path))


def find_models(folder: Path) -> Sequence[Path]:
    """Files of the models in a folder, by name."""
    return sorted(path for path in folder.iterdir() if is_model_file(path, folder))


def is_model_file(path: Path, folder: Path) -> bool:
    """Whether a path is that of a model's file in a folder, and there."""
    named = path.suffix == ".toml" and not path.name.startswith(".") and path.parent == folder
    return named and os.path.lexists(path) and not path.is_dir()
