"""Which trials are made, and what is concluded from them: devices that are a formula, no server, no clock."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import contextmanager

import pytest
from rich.console import Console

from odin_lab.cost.attempt import attempt_of
from odin_lab.cost.rule import Machines
from odin_lab.cost.study import Asked, Study
from odin_lab.cost.view import render
from odin_lab.load.client import Input, ModelFace, Target
from odin_lab.load.introduction import Introduction
from odin_lab.load.task import Outcome, Scheduled, Task
from odin_lab.load.trial import Trial

INPUTS = (Input("x", "FP32", (1, 3)),)


class Devices:
    """Keep all limits as long as the models' parts of their time sum to ``room``: each one's rate by its capacity."""

    def __init__(self, capacity_hz: Mapping[str, float], room: float = 1.0) -> None:
        self.capacity_hz, self.room = capacity_hz, room
        self.served: list[list[str]] = []
        self.tried: list[dict[str, float]] = []
        self.seeds: set[tuple[int, ...]] = set()

    @contextmanager
    def serve(self, models):
        self.served.append(list(models))
        face = ModelFace("fake", "net", INPUTS, True)
        yield {name: Introduction(Target("http://127.0.0.1:9", name), face, INPUTS) for name in models}

    def run(self, tasks: Mapping[str, Task], look) -> dict[str, Trial]:
        if any(task.scenario == "clients" for task in tasks.values()):
            ((name, task),) = tasks.items()
            count = round(self.capacity_hz[name] * task.seconds)
            return {name: self._trial(name, task, [0.1] * count, look)}
        self.tried.append({name: task.rate_hz for name, task in tasks.items()})
        self.seeds.add(tuple(task.seed for task in tasks.values()))
        room = 1.0 if len(tasks) == 1 else self.room
        kept = sum(task.rate_hz / self.capacity_hz[name] for name, task in tasks.items()) <= room
        slow = [0.1] * 95 + [9.0] * (5 if kept else 6)
        return {name: self._trial(name, task, slow, look) for name, task in tasks.items()}

    def _trial(self, name, task, latencies_s, look) -> Trial:
        trial = Trial(task)
        trial.outcomes = [Outcome(at, 0.1 * at, 0.1 * at, 0.1 * at + one, "") for at, one in enumerate(latencies_s)]
        trial.asked = len(trial.outcomes)
        look(name, trial)
        return trial


def study(devices: Devices, *, look=lambda title, trial, turn: True, **asked) -> Study:
    models = {name: name for name in devices.capacity_hz}
    limits_ms = dict.fromkeys(models, 500.0)
    wanted = Asked(
        models, "cpu:0", 0.09, **{"limits_ms": limits_ms, "times": {}, "rates_hz": {}, "seconds": 10.0, **asked}
    )
    return Study(wanted, devices.serve, look=look, lone=lambda known: 0.05, run=devices.run)


@pytest.fixture(autouse=True)
def nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr("odin_lab.cost.peak.PeakSearch._settle", lambda self: None)


def test_each_alone_then_all_together_in_the_proportion_of_their_peaks():
    devices = Devices({"a": 20.0, "b": 80.0}, room=0.9)
    made = study(devices)
    made.carry_out()
    outcome = made.outcome("odin cost")
    assert devices.served == [["a"], ["b"], ["a", "b"]]
    assert all(
        0.95 * devices.capacity_hz[name] <= hz <= devices.capacity_hz[name] for name, hz in outcome.dedicated_hz.items()
    )
    together = outcome.shared.rates_hz
    assert together["b"] / together["a"] == pytest.approx(outcome.dedicated_hz["b"] / outcome.dedicated_hz["a"])
    assert 0.85 < sum(together[name] / devices.capacity_hz[name] for name in together) <= 0.9
    assert outcome.sharing.gain < 0
    assert devices.tried[0] == {"a": pytest.approx(0.8 * 20.0)}
    assert (0, 1) in devices.seeds  # not all at the same moments


def test_rates_that_are_given_are_the_proportion_and_are_counted_in_machines():
    devices = Devices({"a": 20.0, "b": 80.0}, room=1.2)
    made = study(devices, rates_hz={"a": 3.0, "b": 1.0})
    made.carry_out()
    outcome = made.outcome("odin cost")
    together = outcome.shared.rates_hz
    assert together["a"] / together["b"] == pytest.approx(3.0)
    assert outcome.machines == Machines(dedicated=2, shared=1)
    assert outcome.sharing.gain > 0


def test_a_limit_is_a_multiple_of_the_latency_alone():
    made = study(Devices({"a": 20.0}), limits_ms=None, times={"a": 3.0})
    made.carry_out()
    outcome = made.outcome("odin cost")
    assert outcome.limits_ms == {"a": pytest.approx(150.0)}
    assert (outcome.shared, outcome.sharing) == (None, None)
    assert 19.0 <= outcome.dedicated_hz["a"] <= 20.0


def test_a_model_that_keeps_no_rate_has_no_cost():
    devices = Devices({"a": 20.0, "b": 80.0})
    made = study(devices, limits_ms={"a": 50.0, "b": 500.0}, most=3)
    made.carry_out()
    outcome = made.outcome("odin cost")
    assert outcome.dedicated["a"].best is None
    assert devices.served == [["a"], ["b"]]
    assert (list(outcome.dedicated_hz), outcome.sharing) == (["b"], None)
    assert len(outcome.dedicated["a"].attempts) == 3


def test_the_user_wants_no_more():
    devices = Devices({"a": 20.0, "b": 80.0})
    made = study(devices, look=lambda title, trial, turn: not title.startswith("b"))
    made.carry_out()
    outcome = made.outcome("odin cost")
    assert outcome.ended
    assert (list(outcome.dedicated), outcome.shared) == (["a"], None)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(outcome))
    text = console.export_text()
    assert "ended early" in text
    assert "together" not in text


def test_what_is_shown():
    made = study(Devices({"a": 20.0, "b": 80.0}, room=1.5), rates_hz={"a": 3.0, "b": 1.0})
    made.carry_out()
    outcome = made.outcome("odin cost")
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(outcome))
    text = console.export_text()
    assert f"together they do the work of {outcome.sharing.work:.3g} dedicated machines: sharing saves" in text
    assert "for a 3, b 1 requests/s: 2 dedicated machines ($0.18 an hour), or 1 shared ($0.09 an hour)" in text
    assert f"{outcome.sharing.shared['a']:.4g}" in text
    assert "--trials" not in text


def test_trials_that_did_not_suffice_are_told_of():
    made = study(Devices({"a": 20.0}), most=1)
    made.carry_out()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(made.outcome("odin cost")))
    assert "a search ended before a rate was too much: costs may be lower; take more --trials" in console.export_text()


# -- one trial ---------------------------------------------------------------------------------------------------------
def trial(
    begin_s: float, due_s: list[float], latency_s: float, *, failure: str = "", broken_off: bool = False
) -> Trial:
    made = Trial(Task(Target("http://h:1"), INPUTS, "server", 1.0, rate_hz=5.0))
    made.outcomes = [
        Outcome(at, begin_s + due, begin_s + due, begin_s + due + latency_s, failure) for at, due in enumerate(due_s)
    ]
    made.scheduled = [Scheduled(at, due, 0.0, latency_s) for at, due in enumerate(due_s)]
    made.asked, made.broken_off = len(due_s), broken_off
    return made


def test_only_requests_that_were_due_while_all_were_asked_count():
    trials = {"a": trial(100.0, [0.0, 1.0, 2.0, 3.0], 0.1), "b": trial(101.0, [0.0, 1.0, 5.0], 0.1)}
    found = attempt_of(trials, {"a": 200.0, "b": 200.0})
    assert (found.parts["a"].requests, found.parts["b"].requests) == (3, 2)
    assert found.kept
    assert found.rate_hz == 10.0


@pytest.mark.parametrize(("late", "kept"), [(5, True), (6, False)])
def test_95_of_100_must_be_in_time(late, kept):
    made = trial(0.0, [0.1 * at for at in range(100)], 0.1)
    made.scheduled[-late:] = [one._replace(latency_s=0.3) for one in made.scheduled[-late:]]
    assert attempt_of({"a": made}, {"a": 200.0}).kept == kept


def test_what_fails_is_never_in_time_and_what_was_given_up_has_not_kept_its_limit():
    (part,) = attempt_of({"a": trial(0.0, [0.0, 1.0], 0.1, failure="refused (429)")}, {"a": 200.0}).parts.values()
    assert (part.answered, part.in_time, part.p95_s, part.kept) == (0, 0, None, False)
    assert not attempt_of({"a": trial(0.0, [0.0, 1.0], 0.1, broken_off=True)}, {"a": 200.0}).kept
    assert not attempt_of({"a": trial(0.0, [], 0.1)}, {"a": 200.0}).kept
