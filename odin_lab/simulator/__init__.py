"""A pipeline in simulated time, under the policies and detectors that serve live; see ``docs/simulator.md``."""

from __future__ import annotations

from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.interference import Event, Interference
from odin_lab.simulator.noise import LogNormalNoise, MeasuredNoise, NoNoise
from odin_lab.simulator.run import PREPARE_S, Run, simulate, simulate_relay
from odin_lab.simulator.world import World

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
    "simulate_relay",
]
