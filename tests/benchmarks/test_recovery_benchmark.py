"""The benchmark of recovery holds a policy against the oracle's plan: its plan, or the policy itself if it has none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.recovery import bound_hz, compare
from odin.monitor.events import PlanChanged
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.partitioner.plan import Plan
from odin_lab.feeding import KeptEvents

WINDOWS = "@0-4|@4"


def request(first_stage_has: int, layer_s: float = 0.1) -> RequestTimeline:
    stages = [
        StageTiming(k, first, last, 0.0, layer_s * (last - first), 0.0, 0.0, 0.0, (layer_s,) * (last - first))
        for k, (first, last) in enumerate([(0, first_stage_has), (first_stage_has, 4)])
    ]
    return RequestTimeline(1, 0, 0.0, 1.0, tuple(stages))


class Pipe:
    """Two stages of four layers; under ``relay`` it has windows."""

    max_in_flight = 4
    profiles = (SimpleNamespace(layer_s=(0.05,) * 4),) * 2

    def __init__(self, policy: str) -> None:
        self.policy, self.plan = policy, Plan((2, 2))

    def view(self) -> SimpleNamespace:
        return SimpleNamespace(windows=WINDOWS if self.policy == "relay" else "")

    def migrate(self, plan: Plan) -> None:
        assert self.policy == "static"
        self.plan = plan


class Feeder:
    """Notes under what requests are measured."""

    def __init__(self, policy: str) -> None:
        self.pipe, self.recorder = Pipe(policy), KeptEvents()
        self.measured: list[tuple[str, str]] = []

    def wait(self, count: int) -> None: ...

    def measure(self, count: int) -> tuple[float, list[RequestTimeline]]:
        self.measured.append((self.pipe.policy, str(self.pipe.plan)))
        return (8.0 if self.pipe.policy == "relay" else 4.0), [request(3)] * count


def test_a_plan_takes_turns_with_the_oracles() -> None:
    feeder = Feeder("filter")
    feeder.recorder(PlanChanged(5.0, 5, 1, (1, 3), (2, 2), "move", "", float("nan"), 0.0))

    found = compare(feeder, Plan((3, 1)), 1.0, turns=2, count=2)

    assert feeder.measured == [("static", "2|2"), ("static", "3|1"), ("static", "3|1"), ("static", "2|2")]
    assert (found.plan, found.moves) == ("2|2", 1)


def test_the_oracles_own_plan_is_measured_once_a_turn() -> None:
    feeder = Feeder("filter")
    found = compare(feeder, Plan((2, 2)), 1.0, turns=2, count=2)
    assert feeder.measured == [("static", "2|2")] * 2
    assert found.throughput_hz == found.oracle_hz == 4.0


def test_what_sets_windows_goes_on_in_its_turns() -> None:
    feeder = Feeder("relay")

    found = compare(feeder, Plan((3, 1)), 1.0, turns=2, count=2)

    assert feeder.measured == [("relay", "2|2"), ("static", "3|1"), ("static", "3|1"), ("relay", "2|2")]
    assert (found.plan, found.moves, found.settled) == (f"{WINDOWS}, median 3|1", 0, 0)
    assert (found.throughput_hz, found.oracle_hz) == (8.0, 4.0)


def test_the_bound_is_of_all_layers_that_ran_whatever_the_cuts() -> None:
    timelines = [request(4, 0.1), request(1, 0.2)]  # stage 0 ran 5 layers in 0.6 s, stage 1 3 layers in 0.6 s
    assert bound_hz(Pipe("relay"), timelines) == pytest.approx(1 / (4 * 0.12) + 1 / (4 * 0.2))
