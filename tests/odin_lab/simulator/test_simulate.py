"""``odin simulate``: jobs over processes, pairing, wrong usage, what is kept when it is broken off."""

from __future__ import annotations

import json
import math
import multiprocessing

import pytest

from odin.cli.main import main
from odin_lab.commands import simulate as command
from odin_lab.report.results import Validation, read_results
from odin_lab.simulator.study import (
    Contestant,
    DetectionJob,
    RunJob,
    Setup,
    Stretch,
    StudyError,
    make_run,
    run_job,
    run_jobs,
)
from odin_lab.timings import synthetic_timings, write_timings


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A synthetic timing table of 12 layers in a file."""
    return str(write_timings(synthetic_timings(12), tmp_path_factory.mktemp("tables") / "made.csv.gz"))


class Raising:
    """A policy with a bug."""

    name = "test_simulate:Raising"

    def start(self, setting):
        pass

    def decide(self, observation):
        if observation.request == 30:
            raise RuntimeError("thirty")


def simulate(capsys, *words):
    status = main(["simulate", *words])
    return status, *capsys.readouterr()


# ---------------------------------------------------------------- contestants and setups
def test_a_contestant_prints_and_parses():
    for text in ("lls", "odin:alpha=2 (serial)", "delayed-oracle", "relay (predict)"):
        assert str(Contestant.parse(text)) == text
    assert Contestant.parse("odin") == Contestant("odin:alpha=10")
    assert Contestant.parse(" odin (serial)") == Contestant("odin:alpha=10", serial=True)
    with pytest.raises(ValueError, match="there is no policy 'lsl'"):
        Contestant.parse("lsl (serial)")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "0 devices: a run has at least 1"),
        ({"requests": 0}, "0 requests: a run has at least 1"),
        ({"period": 10}, "period 10, duration 0: give both"),
        ({"duration": -1, "period": -1}, "period -1, duration -1: give both"),
        ({"period": 1, "duration": 1, "scenario": "x.toml"}, "interference from x.toml and by period"),
        ({"speeds": (1.0,)}, "1 speeds for 2 devices"),
        ({"stages": ("cpu:0",)}, "1 names of stages for 2 devices"),
    ],
)
def test_setups_that_make_no_sense(values, message):
    with pytest.raises(StudyError, match=message):
        Setup(**{"study": "single", "table": "x", "devices": 2, "requests": 10} | values)


# ---------------------------------------------------------------- jobs
def test_policies_of_a_repeat_see_the_same_and_repeats_differ(table):
    setup = Setup("single", table, 3, 120, 20, 10)
    runs = {
        (policy, seed): make_run(RunJob(setup, Contestant(policy), seed))
        for policy, seed in (("static", 1), ("oracle", 1), ("static", 2))
    }
    assert runs["static", 1].interference == runs["oracle", 1].interference != runs["static", 2].interference
    # until the first event the oracle has nothing to move, so the noise shows: it is the same
    until = 19 - 6
    assert (runs["static", 1].finished_s[:until] == runs["oracle", 1].finished_s[:until]).all()
    assert (runs["static", 1].finished_s[:until] != runs["static", 2].finished_s[:until]).any()


def test_serial_trials_are_another_contestant(table):
    setup = Setup("single", table, 3, 200, 100, 100)
    pipelined, serial = (run_job(RunJob(setup, Contestant("lls", s), 0)).cells[0] for s in (False, True))
    assert (pipelined.policy, serial.policy) == ("lls", "lls (serial)")
    assert serial.trials_per_event > 0
    assert serial.throughput_hz < pipelined.throughput_hz


def test_a_job_keeps_a_stretch(table):
    setup = Setup("single", table, 2, 60, 20, 10)
    outcome = run_job(RunJob(setup, Contestant("oracle"), 0, 0, Stretch("a cell", 10, 40)))
    (line,), (cell,) = outcome.timelines, outcome.cells
    assert (line.title, line.model, line.policy) == ("a cell", cell.model, "oracle")
    assert len(line.at_s) == 7  # of at least 4 requests each
    assert [event[3] for event in line.interference] == [
        event.scenario
        for event in make_run(RunJob(setup, Contestant("oracle"), 0)).interference.events
        if event.start < 40
    ]


def test_a_detector_is_measured():
    points = run_job(DetectionJob("threshold", 0.1, 0, streams=10, quiet=200)).detections
    assert [point.slowdown for point in points] == [1.1, 1.25, 1.5, 2.0, 3.0]
    assert {(point.detector, point.noise_cv) for point in points} == {("threshold", 0.1)}


def test_a_policy_that_raises_is_named_and_no_other_one_stands_in(table):
    setup = Setup("single", table, 2, 60, 20, 10)
    with pytest.raises(StudyError, match=r"test_simulate:Raising on .*made.csv.gz on 2 devices.*thirty"):
        run_job(RunJob(setup, Contestant("test_simulate:Raising"), 0))


@pytest.mark.slow
def test_processes_give_what_one_gives_and_end(table):
    setup = Setup("single", table, 2, 60, 20, 10)
    jobs = [RunJob(setup, Contestant("lls"), seed, seed) for seed in range(4)]
    alone = {job: repr(outcome) for job, outcome in run_jobs(jobs, processes=1)}  # a nan is not equal to another
    assert {job: repr(outcome) for job, outcome in run_jobs(jobs, processes=2)} == alone
    assert multiprocessing.active_children() == []
    with pytest.raises(StudyError, match="0 processes"):
        next(run_jobs(jobs, processes=0))


@pytest.mark.slow
def test_processes_end_with_who_breaks_off(table):
    setup = Setup("single", table, 2, 60, 20, 10)
    steps = run_jobs([RunJob(setup, Contestant("lls"), seed) for seed in range(50)], processes=2)
    next(steps)
    assert len(multiprocessing.active_children()) > 0
    steps.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_error_in_a_process_comes_through(table):
    jobs = [RunJob(Setup("single", table, 2, 60), Contestant("test_simulate:Raising"), seed) for seed in range(3)]
    with pytest.raises(StudyError, match="thirty"):
        list(run_jobs(jobs, processes=2))
    assert multiprocessing.active_children() == []


# ---------------------------------------------------------------- the command
def test_policies_beside_their_references(capsys, table, tmp_path):
    words = (table, "--devices", "3", "--requests", "150", "--period", "50", "--duration", "25", "--policy", "lls")
    output = tmp_path / "r.json"
    status, out, err = simulate(capsys, *words, "--repeats", "2", "--seed", "4", "--output", str(output))
    assert status == 0
    assert "kept in" in err
    assert "3 devices, period 50, duration 25, 2 repeats" in out
    for policy in ("static", "oracle", "delayed-oracle", "lls"):
        assert f"│ {policy} " in out
    results = read_results(output)
    cells = {(cell.policy, cell.repeat): cell for cell in results.cells}
    assert len(cells) == 8
    for repeat in (0, 1):
        static, lls = cells["static", repeat], cells["lls", repeat]
        assert lls.of_static == lls.throughput_hz / static.throughput_hz
        assert static.of_static == cells["oracle", repeat].of_oracle == 1.0
        assert static.of_oracle < 1.0
    # repeat 1 of seed 4 is repeat 0 of seed 5
    status, out, _ = simulate(capsys, *words, "--seed", "5", "--json")
    again = {cell["policy"]: cell["throughput_hz"] for cell in json.loads(out)["cells"]}
    assert again == {policy: cell.throughput_hz for (policy, repeat), cell in cells.items() if repeat == 1}


def test_undisturbed_unless_asked(capsys, table):
    status, out, _ = simulate(capsys, table, "--requests", "100", "--policy", "filter", "--json", "--noise", "none")
    assert status == 0
    cells = json.loads(out)["cells"]
    assert {(cell["events"], cell["period"], cell["changes_per_event"]) for cell in cells} == {(0, 0.0, None)}
    assert {cell["of_static"] for cell in cells} == {1.0}


def test_speeds_and_open_arrivals(capsys, table):
    words = (table, "--devices", "2", "--speeds", "1,0.5", "--requests", "80", "--policy", "static", "--json")
    _, slow, _ = simulate(capsys, *words, "--noise", "none")
    _, open_loop, _ = simulate(capsys, *words, "--noise", "none", "--arrivals", "poisson:2")
    first, second = (json.loads(text)["cells"][0] for text in (slow, open_loop))
    assert first["peak_hz"] == second["peak_hz"]
    assert second["throughput_hz"] < 3 < first["throughput_hz"]


def test_a_scenario_file_by_its_devices(capsys, table, tmp_path):
    scenario = tmp_path / "s.toml"
    scenario.write_text('[[load]]\nscenario = "cpu-100"\non = "cpu:5"\nstart_s = 1\nend_s = 3\n')
    words = (table, "--devices", "2", "--requests", "80", "--policy", "static", "--json", "--scenario", str(scenario))
    status, out, _ = simulate(capsys, *words, "--stages", "cpu:4,cpu:5")
    assert status == 0
    assert {cell["events"] for cell in json.loads(out)["cells"]} == {1}
    status, _, err = simulate(capsys, *words)
    assert status == 2
    assert "cpu:5" in err


def test_deadlines_and_losses(capsys, table, tmp_path):
    output = tmp_path / "r.json"
    words = (table, "--devices", "3", "--requests", "300", "--policy", "static", "--policy", "relay", "--seed", "2")
    status, out, _ = simulate(
        capsys, *words, "--arrivals", "poisson:2x", "--deadline", "3x", "--lose", "1@1s+1s", "--output", str(output)
    )
    assert status == 0
    assert "3 devices, undisturbed, poisson:2x, deadline 3x, lost 1@1s+1s" in out
    cells = {cell.policy: cell for cell in read_results(output).cells}
    assert [name for name in cells if name.startswith("relay")] == [
        "relay", "relay (clockwork)", "relay (expired)", "relay (predict)",
    ]  # fmt: skip
    for policy in ("static", "relay"):
        assert f"│ {policy} (predict) " in out
        none, predict = cells[policy], cells[f"{policy} (predict)"]
        assert none.refused == none.lost == 0
        assert none.goodput_hz < 0.3 * predict.goodput_hz
        assert predict.in_time > 0.97 > none.in_time
        assert predict.capacity_hz == pytest.approx(none.capacity_hz, rel=0.1)
    status = main(["report", str(output), "--markdown", str(tmp_path / "r.md")])
    assert status == 0
    text = (tmp_path / "r.md").read_text()
    assert "## Deadlines and lost devices" in text
    assert "goodput / capacity" in text


def test_losses_alone(capsys, table):
    words = (table, "--devices", "3", "--requests", "200", "--policy", "relay", "--json", "--noise", "none")
    status, out, _ = simulate(capsys, *words, "--lose", "1@1s", "--lose", "hang:0@2s+50ms")
    assert status == 0
    (cell,) = json.loads(out)["cells"]
    assert (cell["lost"], cell["refused"], cell["goodput_hz"]) == (0, None, None)
    assert cell["sent_again"] == 1
    assert cell["recovery_s"] >= 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnet5", "--period", "1", "--duration", "1"), "resnet5"),
        (("nowhere.csv.gz",), "cannot read nowhere.csv.gz"),
        (("TABLE", "--policy", "predictve"), "there is no policy 'predictve'"),
        (("TABLE", "--period", "10"), "period 10, duration 0: give both"),
        (("TABLE", "--lose", "9@1s"), "loss 9@1s is of device 9; there are 4, counted from 0"),
        (("TABLE", "--lose", "3 at ten"), "loss '3 at ten': a device's number, @ and a time are needed; write 3@10s"),
        (("TABLE", "--deadline", "soon"), "deadline 'soon': 'soon' is no time"),
        (("TABLE", "--deadline", "0x"), "deadline '0x': deadline 0x: give a time above 0"),
        (("TABLE", "--admission", "predict"), "--admission means nothing without --deadline; give one"),
        (("TABLE", "--policy", "relay (predict)"), "relay (predict) means nothing without --deadline"),
        (
            ("TABLE", "--deadline", "3x", "--admission", "fifo"),
            "--admission fifo: there is none of that name",
        ),
        (("TABLE", "--lose", "1@1s", "--policy", "lls", "--serial-trials"), "leave --serial-trials out"),
        (("TABLE", "--arrivals", "poisson:fastx"), "arrivals 'poisson:fastx'"),
        (("paper", "--lose", "1@1s"), "--lose means nothing with paper, only with a model; leave it out"),
        (("TABLE", "--speeds", "1,fast"), "--speeds '1,fast': write one factor per device"),
        (("TABLE", "--speeds", "1,2"), "2 speeds for 4 devices"),
        (("TABLE", "--arrivals", "often"), "'often'"),
        (("TABLE", "--detector", "gut"), "'gut'"),
        (("TABLE", "--noise", "loud"), "'loud'"),
        (("TABLE", "--devices", "0"), "--devices 0: at least 1"),
        (("TABLE", "--requests", "0"), "--requests 0: at least 1"),
        (("TABLE", "--repeats", "0"), "--repeats 0: at least 1"),
        (("TABLE", "--jobs", "0"), "--jobs 0: at least 1"),
        (("TABLE", "--seed", "-1"), "--seed -1: a seed is 0 or more"),
        (("TABLE", "--quick"), "--quick means nothing with a model, only with paper"),
        (("paper", "--period", "3"), "--period means nothing with paper, only with a model"),
        (("paper", "--output", "nowhere/r.json"), "there is no folder nowhere"),
        (("TABLE", "--scenario", "nowhere.toml"), "cannot read the scenario nowhere.toml"),
        (("paper", "--like", "log.jsonl"), "paper and --like are two things"),
        (("--like", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--like", "log.jsonl", "--policy", "lls"), "--policy means nothing with --like"),
        (("--like", "log.jsonl", "--repeats", "2"), "--repeats means nothing with --like"),
    ],
)
def test_wrong_usage_names_value_and_remedy(capsys, table, words, message):
    status, out, err = simulate(capsys, *(table if word == "TABLE" else word for word in words))
    assert (status, out) == (2, "")
    assert err.startswith("odin simulate: ")
    assert message in err


def test_what_is_done_is_kept_when_a_policy_fails(capsys, table, tmp_path):
    output = tmp_path / "r.json"
    words = (table, "--requests", "50", "--policy", "test_simulate:Raising", "--output", str(output))
    status, out, err = simulate(capsys, *words)
    assert status == 2
    assert "broken off after 3 of 4 runs" in err
    assert "test_simulate:Raising on" in err.splitlines()[-1]
    assert len(read_results(output).cells) == 3
    assert "│ static " in out


def test_live_runs_beside_their_simulations(capsys, monkeypatch, table, tmp_path):
    asked = []

    def validate(path, *, table, detector):
        asked.append((path, None if table is None else table.model, detector))
        return Validation(f"run {len(asked)}", "lls", 10.0, 10.4, 0.2, 0.25)

    monkeypatch.setattr(command, "validate", validate)
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).touch()
    output = tmp_path / "r.json"
    words = ("--like", "a.jsonl", "b.jsonl", "--detector", "threshold", "--output", str(output))
    status, out, _ = simulate(capsys, *words)
    assert status == 0
    for text in ("run 1", "run 2", "10.0", "10.4", "+4.0%", "200", "250", "+25.0%"):
        assert f" {text} " in out
    assert [item.name for item in read_results(output).validations] == ["run 1", "run 2"]
    assert simulate(capsys, table, "--like", "c.jsonl")[0] == 0
    assert asked == [
        ("a.jsonl", None, "threshold"),
        ("b.jsonl", None, "threshold"),
        ("c.jsonl", "synthetic-12", "cusum"),
    ]


def test_what_is_done_is_kept_on_ctrl_c(capsys, monkeypatch, table, tmp_path):
    def broken_off(jobs, *, processes):
        for job in jobs[:2]:
            yield job, run_job(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_jobs", broken_off)
    output = tmp_path / "r.json"
    status, out, err = simulate(capsys, table, "--requests", "50", "--output", str(output))
    assert status == 130
    assert "broken off after 2 of 7 runs" in err
    assert "│ oracle " in out
    cells = read_results(output).cells
    assert [cell.policy for cell in cells] == ["delayed-oracle", "oracle"]
    assert math.isnan(cells[0].of_static)
