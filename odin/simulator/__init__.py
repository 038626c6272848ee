"""A pipeline in simulated time, under the policies and detectors that serve live; see ``docs/simulator.md``."""

from __future__ import annotations

from odin.simulator.arrivals import Arrivals
from odin.simulator.interference import Event, Interference
from odin.simulator.noise import LogNormalNoise, MeasuredNoise, NoNoise
from odin.simulator.run import PREPARE_S, Run, simulate
from odin.simulator.world import World

__all__ = [
    "PREPARE_S",
    "Arrivals",
    "Event",
    "Interference",
    "LogNormalNoise",
    "MeasuredNoise",
    "NoNoise",
    "Run",
    "World",
    "simulate",
]
