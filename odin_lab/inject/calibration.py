"""What each named scenario does to a model on the same core: how it is kept, and what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from odin.monitor.json_text import from_plain, to_plain
from odin.partitioner.files import write_whole
from odin.partitioner.profile import ProfileCache

__all__ = ["Calibration", "Effect", "calibration_path", "load_calibrations", "store_calibration"]

FORMAT = "odin-inject-calibration"
VERSION = 1


@dataclass(frozen=True)
class Effect:
    """What one scenario does.

    Attributes
    ----------
    name
        Of the scenario.
    slowdown
        Median time of a pass through the model under it / alone just before.
    low, high
        Quartiles of that over the passes.
    layer_slowdown
        The same medians for each layer.
    """

    name: str
    slowdown: float
    low: float
    high: float
    layer_slowdown: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slowdown) and self.slowdown > 0):
            raise ValueError(f"a slowdown of {self.slowdown}, which is no positive number")


@dataclass(frozen=True)
class Calibration:
    """Effects on one model on one machine.

    Attributes
    ----------
    model, device
        What ran, and where, with each load on the same cores.
    cpu_model, system
        The machine.
    created
        When it was measured, ISO 8601, UTC.
    torch_version
        The PyTorch that ran the model.
    rounds, passes
        Measurements of each scenario, and passes in each, under load and alone.
    alone_s
        Median seconds of a pass alone.
    layers
        The layers' names.
    effects
        One per named scenario.
    """

    model: str
    device: str
    cpu_model: str
    system: str
    created: str
    torch_version: str
    rounds: int
    passes: int
    alone_s: float
    layers: tuple[str, ...]
    effects: tuple[Effect, ...]

    def effect(self, name: str) -> Effect | None:
        """The effect of a scenario; None if it was not measured."""
        return next((effect for effect in self.effects if effect.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` reads them back."""
        return {"format": FORMAT, "version": VERSION, **to_plain(self)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read :meth:`to_json`'s values.

        Raises
        ------
        ValueError
            If they are none.
        """
        try:
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise ValueError("another format or version")
            return from_plain(values, cls)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"not a calibration ({error}); measure it anew") from error


def calibration_path(model: str, cpu_model: str, *, directory: Path | None = None) -> Path:
    """File of a model on a type of machine; by default in the folder where profiles are kept as well."""
    folder = ProfileCache().directory.parent / "inject" if directory is None else directory
    digest = hashlib.sha256(json.dumps([model, cpu_model]).encode()).hexdigest()[:12]
    return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', model)[-60:]}-{digest}.json"


def store_calibration(calibration: Calibration, *, directory: Path | None = None) -> Path:
    """Keep a calibration, in place of the one before of the same model and machine.

    Raises
    ------
    OSError
        If the disk does not take it.
    """
    path = calibration_path(calibration.model, calibration.cpu_model, directory=directory)
    write_whole(path, (json.dumps(calibration.to_json(), indent=1) + "\n").encode())
    return path


def load_calibrations(cpu_model: str, *, directory: Path | None = None) -> tuple[Calibration, ...]:
    """All that were measured on this type of machine, the latest first; files that hold none are passed over."""
    folder = calibration_path("", "", directory=directory).parent
    found = []
    for path in sorted(folder.glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValueError):
            calibration = Calibration.from_json(json.loads(path.read_bytes()))
            if calibration.cpu_model == cpu_model:
                found.append(calibration)
    return tuple(sorted(found, key=lambda calibration: calibration.created, reverse=True))
