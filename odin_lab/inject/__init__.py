"""Synthetic co-located load: what it does, where, when, and that it ends."""

from __future__ import annotations

from odin_lab.inject.handle import Handle
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load, LoadError, LoadFailedError
from odin_lab.inject.named import NAMED, NamedLoad, named_load
from odin_lab.inject.play import play
from odin_lab.inject.scenario import Change, Scenario, Step

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
