"""Bounds of the simulated relay: exact without noise, and a summary that names the worst cell."""

import numpy as np
import pytest

from benchmarks.clairvoyant import Cell, bounds, measure, summary
from odin.partitioner.policies import make_policy
from odin_lab.simulator import Event, Interference, World, simulate


def test_undisturbed_the_best_plan_is_the_plan() -> None:
    world = World.of(
        np.random.default_rng(0).uniform(0.5, 2.0, (3, 7)),
        send_s=np.full(8, 0.1),
        receive_s=np.full(8, 0.05),
        noise="lognormal:0.2",
    )
    run = simulate(world, make_policy("static"), requests=1100, detector="none", seed=4)

    bound = bounds(world, Interference(), requests=1100, seed=4)

    assert bound.best_plan_hz == pytest.approx(1100 / run.finished_s[-1], rel=1e-9)
    assert bound.fluid_hz > bound.best_plan_hz


def test_the_best_plan_is_in_force_from_the_first_request_that_is_slowed() -> None:
    """Two devices, four layers of a second; a device that is dead for 20 requests leaves the other four a request."""
    world = World.of([[1.0] * 4] * 2, slowdown={"dead": [np.inf] * 4})
    events = Interference((Event(0, "dead", 10, 30),))

    bound = bounds(world, events, requests=40, seed=0)

    assert 40 / bound.fluid_hz == pytest.approx(20 * 2.0 + 20 * 4.0, rel=0.01)  # of a dead device a layer takes 1,000 s
    assert 40 / bound.best_plan_hz < 20 * 2.0 + 20 * 4.0 + 6


def test_summary_is_the_mean_of_cells_and_their_worst_by_means_of_seeds() -> None:
    cells = [
        Cell("m", 4, period, 2, seed, relay_hz, 10.0, 20.0)
        for period, seed, relay_hz in ((2, 0, 9.0), (2, 1, 11.0), (10, 0, 8.0), (10, 1, 14.0))
    ]

    assert summary(cells) == ["m, 4", "1.050", "1.000 at 2, 2", "1.02, 0.95", "0.525", "0.500"]


def test_cases_are_a_model_and_devices() -> None:
    (cell,) = measure("resnet50:2", requests=20, seeds=[3], noise="none", steps=[10])
    assert (cell.model, cell.devices, cell.period, cell.seed) == ("resnet50", 2, 10, 3)
    with pytest.raises(ValueError, match="'resnet50' is no case"):
        measure("resnet50", requests=20, seeds=[0])
