"""The bound that no policy beats, beside the oracles, which are none."""

from __future__ import annotations

import numpy as np
import pytest

from odin.partitioner.policies import make_policy
from odin_lab.simulator import Interference, World, simulate
from odin_lab.simulator.fluid import run_fluid_bound_hz
from odin_lab.simulator.interference import Event
from odin_lab.timings import load_timings

TABLE = load_timings("resnet50")


def test_half_the_run_beside_a_load_that_takes_half_of_one_device():
    world = World.of([[1.0, 1.0]] * 2, slowdown={"busy": [2.0, 2.0]})
    events = Interference((Event(0, "busy", 100, 200),))
    finished_s = np.arange(1.0, 201.0)
    # 2 s per request on a device: 1 request per second, then 0.75.
    assert run_fluid_bound_hz(world, events, finished_s, seed=0) == pytest.approx(200 / (100 / 1.0 + 100 / 0.75))
    # In seconds it depends on when they were answered.
    seconds = Interference((Event(0, "busy", 100.0, 200.0),), unit="seconds")
    late_s = np.concatenate([np.linspace(0.0, 99.0, 150), np.linspace(101.0, 199.0, 50)])
    assert run_fluid_bound_hz(world, seconds, late_s[::-1], seed=0) == pytest.approx(200 / (150 / 1.0 + 50 / 0.75))


@pytest.mark.parametrize("policy", ["relay", "filter", "static", "oracle", "delayed-oracle"])
@pytest.mark.parametrize(("period", "duration"), [(10, 100), (100, 10)])
def test_nothing_beats_it(policy, period, duration):
    world = World.from_timings(TABLE, devices=4, noise="measured")
    events = Interference.periodic(
        devices=4, scenarios=TABLE.scenarios, period=period, duration=duration, length=800, seed=1
    )
    run = simulate(world, make_policy(policy), requests=800, interference=events, seed=1)
    assert 0.2 < run.throughput_hz / run_fluid_bound_hz(world, events, run.finished_s, seed=1) < 1.0
