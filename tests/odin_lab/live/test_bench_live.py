"""Conducting the live benchmark: its order and its failures, one run of each kind, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from loads import command, family
from loads import descendants as processes_below
from patience import PROMPT_S

from odin.cli.main import main
from odin.monitor.eventlog import read_log
from odin.stages.device import Device, DeviceError, usable_cores
from odin_lab.inject.load import Load
from odin_lab.inject.scenario import Scenario, Step
from odin_lab.live.benchmark import Listener, choose_cores, conduct, log_name, make_tasks
from odin_lab.live.child import RunFailedError, UnfitError, run_in_process
from odin_lab.live.measure import Status
from odin_lab.live.outcome import Run, to_cell
from odin_lab.live.run_process import run_task
from odin_lab.live.run_record import Contender, RunRecord, Task
from odin_lab.live.script import Script

TRIAL = RunRecord((0.0,), (0.1,), 0, "", (), 0.0, 0, (), 0.0, 1, 1)


def script(core: int, *, start_s: float = 0.4, end_s: float = 1.0, seconds: float = 1.6) -> Script:
    return Script(Scenario((Step(Load.parse(f"cpu@cpu:{core}"), start_s, end_s, "busy"),)), seconds, 1.0, 0.6)


def tasks(*texts: str, repeats: int = 2, **options):
    contenders = [Contender("odin", text) for text in texts]
    return make_tasks(contenders, (script(1),) * repeats, model="net", cores=(0, 1), seed=0, **options)


# ---------------------------------------------------------------- order, failures
def test_tasks_are_in_drawn_order_with_a_log_each(tmp_path):
    made = tasks("static", "odin:alpha=10", "lls", logs=tmp_path)
    assert [(task.repeat, task.title, task.number) for task in made] == [
        (0, "lls", 2), (0, "odin:alpha=10", 1), (0, "static", 0),
        (1, "static", 0), (1, "lls", 2), (1, "odin:alpha=10", 1),
    ]  # fmt: skip
    assert Path(made[1].log).name == "odin-alpha-10_1.jsonl"
    assert {task.in_flight for task in made} == {4}


def test_a_log_that_exists_is_not_added_to(tmp_path):
    (tmp_path / log_name("lls", 1)).write_text("something")
    with pytest.raises(ValueError, match=r"lls_2.jsonl is there already.*empty folder"):
        tasks("static", "lls", logs=tmp_path)


def test_nobody_is_named_twice_and_something_is_in_flight():
    with pytest.raises(ValueError, match="lls is named twice"):
        tasks("lls", "static", "lls")
    with pytest.raises(ValueError, match="0 requests in flight"):
        tasks("lls", in_flight=0)


class Told(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begins(self, task: Task, number: int) -> None:
        self.lines.append(f"{number} {task.title}")

    def tells(self, status: Status) -> None:
        self.lines.append(status.phase)

    def done(self, run: Run) -> None:
        self.lines.append("done")

    def failed(self, task: Task, problem: str) -> None:
        self.lines.append(f"failed: {problem}")


def runs(*outcomes):
    """What carries tasks out, with these outcomes one after the other."""
    left = list(outcomes)

    def run(task, *, tell):
        tell(Status("starting"))
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run


def test_a_failure_does_not_end_the_others():
    told, kept = Told(), []
    failures = conduct(
        tasks("static", repeats=3), told, run=runs(TRIAL, RunFailedError("broke"), TRIAL), keep=kept.append
    )
    assert failures == ("Failed: static, repeat 2: broke",)
    assert [run.task.repeat for run in kept] == [0, 2]
    assert told.lines == [
        "0 static", "starting", "done", "1 static", "starting", "failed: broke", "2 static", "starting", "done",
    ]  # fmt: skip


def test_what_cannot_be_ends_it_at_once_and_so_do_two_failures_and_nothing_else():
    with pytest.raises(UnfitError, match="unknown model"):
        conduct(tasks("static"), Told(), run=runs(UnfitError("unknown model")), keep=lambda run: None)
    with pytest.raises(RunFailedError, match="again"):
        conduct(
            tasks("static"), Told(), run=runs(RunFailedError("broke"), RunFailedError("again")), keep=lambda run: None
        )


# ---------------------------------------------------------------- cores and wrong usage
def test_one_core_is_too_few(monkeypatch):
    monkeypatch.setattr("odin_lab.live.benchmark.usable_cores", lambda: (3,))
    with pytest.raises(DeviceError, match=r"only core 3 can be used here.*needs two: give"):
        choose_cores(None)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["cpu:0"], "1 cores in cpu:0: at least two"),
        (["cpu:0", "cpu:0"], "at least two different"),
        (["cpu:0-1", "cpu:2"], "cpu:0-1: the comparison is on single cores"),
        (["cpu:0", "gpu:0"], "gpu:0: the comparison is on single cores"),
    ],
)
def test_cores_that_cannot_be_compared_on(texts, match):
    with pytest.raises(DeviceError, match=match):
        choose_cores([Device.parse(text) for text in texts])


def test_the_first_two_cores_or_those_named(monkeypatch):
    monkeypatch.setattr("odin_lab.live.benchmark.usable_cores", lambda: (2, 5, 7))
    assert choose_cores(None) == (2, 5)
    assert choose_cores([Device.parse("cpu:7"), Device.parse("cpu:2"), Device.parse("cpu:5")]) == (7, 2, 5)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--policy", "foolish"], "foolish"),
        (["--also", "tensorrt"], "--also tensorrt: 'tensorrt' is unknown; there is serve, torch, or none"),
        (["--also", "none,torch"], "none goes with no others"),
        (["--seconds", "5"], "no event begins within 5 s"),
        (["--seconds", "nan"], "--seconds nan is not a positive number"),
        (["--load", "cpu-101"], "did you mean 'cpu-100'"),
        (["--scenario", "x.toml", "--period", "3"], "--period means nothing with --scenario"),
        (["--scenario", "no-such.toml"], "no-such.toml"),
        (["--repeats", "0"], "--repeats 0"),
        (["--in-flight", "0"], "--in-flight 0: give at least 1"),
        (["--output", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
        (["--output", "/tmp"], "/tmp is a folder"),
        (["--stages", "cpu:0,cpu:0"], "at least two different"),
        (["--weights", "/no/such.pth"], "no such file"),
        (["--policy", "lls", "--policy", "lls"], "lls is named twice"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(words, match, capsys, monkeypatch, two_usable):
    monkeypatch.setattr("odin_lab.commands.bench.conduct", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setattr("odin_lab.commands.bench.serve_problem", lambda: "not here")
    assert main(["bench", "live", "resnet50", *words]) == 2
    assert match in capsys.readouterr().err


@pytest.fixture
def two_usable() -> tuple[int, ...]:
    cores = usable_cores()
    if len(cores) < 2:
        pytest.skip("comparing takes two cores")
    return cores[:2]


# ---------------------------------------------------------------- real runs
def descendants() -> set[int]:
    return set(family(os.getpid()))


def load_processes() -> set[int]:
    """Processes of loads below this one."""
    return {process.pid for process in processes_below() if "worker.py" in command(process)}


def torch_task(cores: tuple[int, ...], seconds: float = 1.6) -> Task:
    loads = script(cores[1], end_s=seconds - 0.6, seconds=seconds)
    return Task(Contender("torch"), 0, 0, "bench_models:residual", "", "", cores, loads, 4, 0.1)


@pytest.fixture
def in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2] / "helpers")  # where bench_models lies


@pytest.mark.ray
def test_a_pipeline_is_measured_under_load_and_its_log_has_the_load(two_cores, in_tests, tmp_path):
    cores = tuple(Device.parse(text).indices[0] for text in two_cores)
    log = tmp_path / "run.jsonl"
    before = load_processes()
    task = Task(
        Contender("odin", "static"), 0, 0, "bench_models:residual", "", "", cores, script(cores[1]), 4, 0.1, str(log)
    )
    told: list[str] = []
    record = run_task(task, tell=lambda status: told.append(status.phase))
    cell = to_cell(Run(task, record))
    assert cell.lost == 0
    assert cell.requests > 0
    assert 0 < cell.latency_p50_s <= cell.latency_p99_s
    assert [(span.on, span.name) for span in record.loads] == [(f"cpu:{cores[1]}", "busy")]
    assert record.loads[0].start_s < record.loads[0].end_s
    assert (record.moves, record.exploring, record.plan.count("|")) == ((), 0.0, 1)
    assert record.memory_nbytes > record.model_nbytes > 0
    assert told[:2] == ["starting", "warming up"]
    assert "measuring" in told
    loads = [event for event in read_log(log) if event.kind == "load"]
    assert [(event.name, event.intensity) for event in loads] == [("busy", 1.0), ("busy", 0.0)]
    assert load_processes() <= before


@pytest.mark.slow
def test_a_process_is_measured_and_leaves_nothing(two_usable, in_tests):
    before = descendants()
    record = run_in_process(torch_task(two_usable))
    assert record.lost == 0
    assert len(record.finished_s) > 0
    assert record.plan == ""
    assert [span.name for span in record.loads] == ["busy"]
    assert descendants() <= before


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_with_its_loads_gone(two_usable, in_tests):
    before = descendants()
    groups = []

    def kill(status: Status) -> None:
        if status.loads:
            os.kill(groups[0].leader_pid, signal.SIGKILL)

    task = torch_task(two_usable, PROMPT_S)
    with pytest.raises(RunFailedError, match=r"torch, 2 threads broke, its last words:\n\(none: it was killed\)"):
        run_in_process(task, tell=kill, started=groups.append)
    assert groups[0].members() == ()
    assert descendants() <= before


@pytest.mark.slow
def test_breaking_off_ends_the_process_with_its_loads(two_usable, in_tests):
    groups = []

    def stop(status: Status) -> None:
        if status.loads:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process(torch_task(two_usable, PROMPT_S), tell=stop, started=groups.append)
    assert groups[0].members() == ()


@pytest.mark.slow
def test_a_model_that_is_none_is_told_as_such(two_usable, in_tests):
    task = Task(Contender("torch"), 0, 0, "no_such_model", "", "", two_usable, script(two_usable[1]), 4, 0.1)
    with pytest.raises(UnfitError, match="unknown model 'no_such_model'"):
        run_in_process(task)
