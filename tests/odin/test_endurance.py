"""Serving under abuse, in short; ``endurance.py`` itself goes on for 100,000 requests."""

from __future__ import annotations

import endurance
import pytest


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_cancels_deadlines_callbacks_forks_and_moves_lose_nothing(two_cores):
    outcomes, faults, told = endurance.run(2_000, seed=1)
    assert not faults, (faults[:5], told)
    assert outcomes["answered"] > 1_000
    assert outcomes["cancelled"]
    assert outcomes["too late"]
