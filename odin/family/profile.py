"""A variant's profile: what it takes and how often it is right; kept on disk, where layers' times are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import msgspec

from odin.family.facts import Facts
from odin.family.variant import Variant
from odin.partitioner.files import write_whole
from odin.partitioner.profile import cache_directory

__all__ = ["VariantProfile", "VariantProfiles", "line_through"]

_FORMAT, _VERSION = "odin-variant", 2


class VariantProfile(NamedTuple):
    """Measured once.

    Attributes
    ----------
    slope_s, intercept_s, load_s, memory_mib, cost_s, capacity_hz
        See :class:`odin.family.facts.Facts`.
    accuracy
        Share of ``labelled`` samples that it was right about; None if there were none.
    data
        Digest of these samples.
    """

    slope_s: float
    intercept_s: float
    load_s: float
    memory_mib: float
    cost_s: float
    capacity_hz: float
    accuracy: float | None = None
    labelled: int = 0
    data: str = ""

    def facts(self, variant: Variant) -> Facts:
        """As policies see it; an accuracy that the user gives counts more than the measured one."""
        known = self.accuracy if variant.accuracy is None else variant.accuracy
        return Facts(
            variant.name,
            self.slope_s,
            self.intercept_s,
            self.load_s,
            self.memory_mib,
            math.nan if known is None else known,
            self.cost_s,
            self.capacity_hz,
            variant.form,
            variant.accuracy_lost or 0.0,
        )


class _File(msgspec.Struct):
    format: str
    version: int
    key: str
    profile: VariantProfile


class VariantProfiles:
    """Profiles on disk by :meth:`odin.family.variant.Variant.key`; what cannot be read is a miss, never an error."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self._directory = Path(directory) if directory is not None else cache_directory("variants")

    def load(self, key: str) -> VariantProfile | None:
        """What is kept, or None."""
        try:
            file = msgspec.json.decode(self._path(key).read_bytes(), type=_File)
        except (OSError, ValueError, RecursionError):
            return None
        return file.profile if (file.format, file.version, file.key) == (_FORMAT, _VERSION, key) else None

    def store(self, key: str, profile: VariantProfile) -> bool:
        """Keep one; False if the disk will not have it, which costs time later but is no error."""
        content = {"format": _FORMAT, "version": _VERSION, "key": key, "profile": list(profile)}
        try:
            write_whole(self._path(key), f"{json.dumps(content, indent=1)}\n".encode())
        except OSError:
            return False
        return True

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"


def line_through(few: tuple[int, float], many: tuple[int, float]) -> tuple[float, float]:
    """Slope and intercept of latency over samples, neither negative.

    Examples
    --------
    >>> line_through((1, 0.03), (5, 0.11))
    (0.02, 0.01)
    >>> line_through((1, 0.03), (1, 0.03))
    (0.0, 0.03)
    """
    (samples, seconds), (more, longer) = few, many
    slope_s = max(0.0, (longer - seconds) / (more - samples)) if more > samples else 0.0
    slope_s = min(slope_s, seconds / samples)
    return round(slope_s, 9), round(max(0.0, seconds - slope_s * samples), 9)
