"""Synthetic co-located load: what it does, where, when, and that it ends."""

from __future__ import annotations

from odin.inject.handle import Handle
from odin.inject.injector import Injector
from odin.inject.load import Load, LoadError, LoadFailedError
from odin.inject.named import NAMED, NamedLoad, named_load
from odin.inject.play import play
from odin.inject.scenario import Change, Scenario, Step

__all__ = [
    "NAMED",
    "Change",
    "Handle",
    "Injector",
    "Load",
    "LoadError",
    "LoadFailedError",
    "NamedLoad",
    "Scenario",
    "Step",
    "named_load",
    "play",
]
