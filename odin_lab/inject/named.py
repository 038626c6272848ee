"""The twelve named scenarios: loads by a short name, after those of the ODIN paper.

The paper disturbed its pipelines with the CPU and memory-bandwidth stressors of iBench under several numbers of
threads and placements, twelve scenarios in all; which exactly is reconstructed. Where a load runs is for the user to
say. ``odin inject --calibrate`` measures what each does to a stage on the same core.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from odin.stages.device import Device
from odin_lab.inject.load import Load, LoadError

__all__ = ["NAMED", "NamedLoad", "check_name", "named_load"]


class NamedLoad(NamedTuple):
    """A load without a place; ``threads`` are processes for each core of its device."""

    kind: str
    intensity: float
    threads: int


NAMED: dict[str, NamedLoad] = {
    # arithmetic: takes time on its core, and nothing else
    "cpu-25": NamedLoad("cpu", 0.25, 1),
    "cpu-50": NamedLoad("cpu", 0.5, 1),
    "cpu-75": NamedLoad("cpu", 0.75, 1),
    "cpu-100": NamedLoad("cpu", 1.0, 1),
    "cpu-100x2": NamedLoad("cpu", 1.0, 2),
    "cpu-100x4": NamedLoad("cpu", 1.0, 4),
    # memory bandwidth: takes time on its core and empties its caches; from another core, slows the memory
    "membw-25": NamedLoad("membw", 0.25, 1),
    "membw-50": NamedLoad("membw", 0.5, 1),
    "membw-75": NamedLoad("membw", 0.75, 1),
    "membw-100": NamedLoad("membw", 1.0, 1),
    "membw-100x2": NamedLoad("membw", 1.0, 2),
    "membw-100x4": NamedLoad("membw", 1.0, 4),
}


def named_load(name: str, on: Device) -> Load:
    """Return a named scenario's load on a device.

    Raises
    ------
    LoadError
        If there is no such name, or it is none for that device.

    Examples
    --------
    >>> str(named_load("cpu-100x2", Device.parse("cpu:1")))
    'cpu@cpu:1x2'
    """
    check_name(name)
    found = NAMED[name]
    return Load(found.kind, on, found.intensity, found.threads * on.threads)


def check_name(name: str) -> None:
    """Raise :class:`LoadError` unless it is the name of a scenario."""
    if name not in NAMED:
        close = get_close_matches(name, NAMED, n=1)
        hint = f"did you mean {close[0]!r}? There is" if close else "there is"
        raise LoadError(f"no scenario is named {name!r}; {hint} {', '.join(NAMED)}")
