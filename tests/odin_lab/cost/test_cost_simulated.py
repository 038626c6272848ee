"""``odin cost --simulate``: the same search and rule on devices in simulated time."""

from __future__ import annotations

import json

import pytest

from odin.cli.main import main
from odin_lab.cost.simulated import SimulatedDevices
from odin_lab.load.task import Task

MODELS = {"resnet50": "resnet50", "mobilenet_v2": "mobilenet_v2"}


def ask(devices: SimulatedDevices, **rates_hz: float):
    with devices.serve(MODELS) as known:
        tasks = {
            name: Task(known[name].target, (), "server", 20.0, rate_hz=rate_hz, bound_ms=300.0, seed=at)
            for at, (name, rate_hz) in enumerate(rates_hz.items())
        }
        looked = []
        trials = devices.run(tasks, lambda name, trial: looked.append(name) is None)
    assert looked == list(rates_hz)
    return trials


def test_requests_take_what_their_layers_were_recorded_to_take():
    devices = SimulatedDevices(MODELS, "cpu:0,cpu:1")
    (trial,) = ask(devices, resnet50=1.0).values()
    with devices.serve(MODELS) as known:
        lone_s = devices.lone_s(known["resnet50"])
    assert 5 < len(trial.outcomes) < 40
    assert not any(one.failure for one in trial.outcomes)
    assert min(one.over_s - one.asked_s for one in trial.outcomes) == pytest.approx(lone_s, rel=0.3)


def test_what_is_too_much_is_late_also_what_is_never_answered():
    devices = SimulatedDevices(MODELS, "cpu:0")
    (trial,) = ask(devices, resnet50=200.0).values()
    assert len(trial.outcomes) == pytest.approx(200 * 20, rel=0.1)  # all that came are told of
    assert sum(bool(one.failure) for one in trial.outcomes) > len(trial.outcomes) / 2
    assert [one.number for one in trial.outcomes] == list(range(len(trial.outcomes)))


def test_models_on_the_same_devices_hinder_each_other():
    devices = SimulatedDevices(MODELS, "cpu:0")
    alone, beside = ask(devices, mobilenet_v2=5.0), ask(devices, mobilenet_v2=5.0, resnet50=5.0)
    mean_s = [
        sum(one.over_s - one.asked_s for one in trials["mobilenet_v2"].outcomes) / len(trials["mobilenet_v2"].outcomes)
        for trials in (alone, beside)
    ]
    assert mean_s[1] > 1.2 * mean_s[0]


def test_the_command_shows_and_keeps_costs_that_a_seed_fixes(tmp_path, capsys):
    words = "cost mobilenet_v2 resnet50 --stages cpu:0 --price 0.09 --p95-times 8 --simulate --seconds 5 --trials 4"
    kept = []
    for name in ("one.json", "two.json"):
        assert main([*words.split(), "--output", str(tmp_path / name)]) == 0
        kept.append(json.loads((tmp_path / name).read_text()))
    assert "simulated from recorded layer times" in capsys.readouterr().out
    assert kept[0]["outcome"]["how"] == "simulated"
    assert kept[0]["dedicated_per_million"]["resnet50"] > kept[0]["dedicated_per_million"]["mobilenet_v2"]
    assert {**kept[0]["outcome"], "command": ""} == {**kept[1]["outcome"], "command": ""}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("resnet50 --stages cpu:0-1", "--stages cpu:0-1: resnet50 was recorded on cpu:"),
        ("resnet50 --stages gpu:0", "--stages gpu:0: resnet50 was recorded on cpu:"),
        ("resnet50 --stages cpu:0 --engine torch", "--engine means nothing with --simulate"),
        ("alexnet --stages cpu:0", "alexnet"),
    ],
)
def test_wrong_usage(words, says, capsys):
    assert main(["cost", *words.split(), "--price", "1", "--p95-ms", "500", "--simulate"]) == 2
    assert says in capsys.readouterr().err
