"""The fluid bound of a run: its throughput if every request could be divided among the devices at any moment.

For each request it is the sum over devices of 1 / (seconds of the whole chain on that device), under the conditions
when so many had been answered and with that request's own noise; over a run the requests' seconds are added. It leaves
out hand-over, waiting and whole layers, so that no policy comes to more, but for the few requests about each change of
the conditions, which ran under both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.conditions import Conditions
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE, BLOCK
from odin_lab.simulator.world import World

__all__ = ["run_fluid_bound_hz"]

FloatArray = NDArray[np.float64]


def run_fluid_bound_hz(world: World, interference: Interference | None, finished_s: FloatArray, *, seed: int) -> float:
    """Requests per second.

    Parameters
    ----------
    world, interference, seed
        Of the run.
    finished_s
        Seconds at which its requests were answered, shape (requests,); in any order. They count where the interference
        is in seconds.

    Examples
    --------
    >>> run_fluid_bound_hz(World.of([[1.0, 1.0, 1.0]] * 2), None, np.arange(1.0, 201.0), seed=0)
    0.6666666666666666
    """
    interference = interference or Interference()
    conditions = Conditions(world, interference)
    moments = np.sort(finished_s) if interference.unit == "seconds" else np.arange(len(finished_s))
    blocks = world.noise.blocks(np.random.default_rng([seed, 1]), requests=BLOCK, devices=world.device_count)
    total_s = 0.0
    for begin in range(0, len(moments), BLOCK):
        drawn = next(blocks)
        alone = world.noise.factors(drawn, ALONE)
        for row, moment in enumerate(moments[begin : begin + BLOCK]):
            conditions.advance(moment)
            factors = alone[row]
            for device, scenarios in conditions.scenarios.items():
                factors[device] = world.noise.factors(drawn[row, device : device + 1], scenarios[-1])[0]
            total_s += 1 / float((1 / (conditions.prefix_s[:, -1] * factors)).sum())
    return len(moments) / total_s
