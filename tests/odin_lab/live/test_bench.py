"""From live runs to figures: every number can be checked by hand."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from odin.monitor.events import LoadChanged, PlanChanged, RequestDone, RunStarted, StageDescription
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.event_text import figure
from odin.stages.device import Device
from odin_lab.feeding import Answer, KeptEvents
from odin_lab.live.measure import explored, load_spans, plan_moves, split_answers
from odin_lab.live.outcome import Run, notes, peak_hz, results, to_cell, to_cells, to_timeline
from odin_lab.live.run_record import Contender, LoadSpan, Move, RunRecord, Task
from odin_lab.live.script import random_script
from odin_lab.live.table import live_table
from odin_lab.report.results import SLO_LEVELS, read_results

SCRIPT = random_script([Device.parse("cpu:1")], ["cpu-100"], seconds=30, period_s=10, duration_s=5, seed=0)


def a_task(policy="filter", repeat=0, number=0, kind="odin"):
    return Task(Contender(kind, policy), number, repeat, "net", "", "", (0, 1), SCRIPT, 4, 3.0)


def a_trial(disturbed_hz=5.0, **changes):
    """Ten requests a second, but for 10..15 and 20..25 s; each takes 0.4 s, and 0.8 s then."""
    finished_s, at_s = [], 0.0
    while (at_s := round(at_s + (1 / disturbed_hz if 10 <= at_s % 30 < 15 or 20 <= at_s % 30 < 25 else 0.1), 6)) < 30:
        finished_s.append(at_s)
    submitted_s = [at - (0.8 if 10 < at <= 15 or 20 < at <= 25 else 0.4) for at in finished_s]
    made = RunRecord(
        submitted_s=tuple(submitted_s),
        finished_s=tuple(finished_s),
        lost=0,
        plan="2|2",
        moves=(Move(10.5, "3|1", "move"), Move(15.5, "2|2", "move")),
        exploring=0.1,
        trials=1,
        loads=(LoadSpan(10.0, 15.0, "cpu:1", "cpu-100"), LoadSpan(20.0, 25.0, "cpu:1", "cpu-100")),
        steal=0.01,
        memory_nbytes=300 * 2**20,
        model_nbytes=200 * 2**20,
    )
    return replace(made, **changes)


# ---------------------------------------------------------------- what a run's records come to
def test_answers_are_those_of_the_measured_time_and_failures_are_counted():
    answers = [Answer(0.0, 0.9), Answer(0.5, 1.0), Answer(0.5, 3.0), Answer(1.0, 2.0, "lost"), Answer(1.5, 4.0)]
    assert split_answers(answers, 1.0, 4.0) == ([Answer(0.5, 1.0), Answer(0.5, 3.0)], 1)


def test_loads_span_from_their_first_intensity_to_none():
    def change(at_s, pid, intensity):
        return LoadChanged(at_s, "busy", "cpu@cpu:1", "cpu:1", intensity, pid)

    changes = [
        change(12.0, 7, 0.5),
        change(13.0, 7, 1.0),
        change(13.5, 8, 1.0),
        change(14.0, 7, 0.0),
        change(15.0, 9, 0.0),
    ]
    assert load_spans(changes, 10.0, 20.0) == (
        LoadSpan(2.0, 4.0, "cpu:1", "busy"),
        LoadSpan(3.5, 10.0, "cpu:1", "busy"),
    )


def recorded():
    """Plan 2|2, trials of 3|1 and 1|3 which go back, then a move to 3|1; five requests under each."""
    recorder = KeptEvents()
    stages = (StageDescription("cpu:0", "node", 1, (0.1,) * 4),) * 2
    recorder(RunStarted(0.0, 0.0, "net", ("a", "b", "c", "d"), stages, (2, 2), "odin:alpha=2", 4))
    plans = [((3, 1), "trial"), ((1, 3), "probe"), ((2, 2), "trial"), ((3, 1), "move")]
    before = (2, 2)
    for epoch in range(5):
        if epoch:
            after, decision = plans[epoch - 1]
            recorder(PlanChanged(float(epoch * 5), epoch * 5, epoch, before, after, decision, "", math.nan, 0.25))
            before = after
        for request in range(epoch * 5, epoch * 5 + 5):
            recorder(RequestDone(request + 0.5, RequestTimeline(request, epoch, float(request), request + 0.5, ())))
    return recorder


def test_exploring_is_what_ran_under_trials_and_the_way_back_is_none():
    assert explored(recorded(), 0.0, 25.0) == (10 / 25, 2)
    assert explored(recorded(), 10.0, 25.0) == (5 / 15, 1)
    assert explored(KeptEvents(), 0.0, 25.0) == (0.0, 0)


def test_moves_count_from_when_requests_ran_under_them():
    assert plan_moves(recorded(), 8.0, 18.0) == (Move(2.25, "1|3", "probe"), Move(7.25, "2|2", "trial"))


def test_a_change_of_windows_alone_moves_nothing():
    kept = KeptEvents()
    kept(PlanChanged(9.0, 1, 1, (2, 2), (2, 2), "migrate", "policy relay", float("nan"), 0.01, "@0-4|@4"))
    assert plan_moves(kept, 8.0, 18.0) == ()


# ---------------------------------------------------------------- cells and timelines
def test_a_cell_says_what_the_requests_say():
    run = Run(a_task(), a_trial())
    cell = to_cell(run)
    assert (cell.study, cell.model, cell.policy, cell.devices, cell.period, cell.duration) == (
        "live", "net", "filter", 2, 10.0, 5.0,
    )  # fmt: skip
    assert peak_hz(run) == pytest.approx(10.0)
    assert cell.requests == len(run.record.finished_s) == 249
    assert cell.throughput_hz == pytest.approx(249 / 30)
    assert (cell.latency_p50_s, cell.latency_p99_s) == pytest.approx((0.4, 0.8))
    assert len(cell.latency_quantiles_s) == 101
    assert (cell.events, cell.changes_per_event, cell.trials_per_event) == (2, 1.0, 0.5)
    shares = dict(zip(SLO_LEVELS, cell.below_peak, strict=True))
    assert shares[0.45] == 0.0  # at half of the peak while disturbed
    # 25 slow intervals in each event; 26 windows of four intervals have two of them or more
    assert shares[0.75] == pytest.approx(2 * 26 / 245)


def test_cells_are_paired_within_a_repeat():
    runs = [
        Run(a_task("filter", 1, 0), a_trial(8.0)),
        Run(a_task("static", 0, 1), a_trial(4.0)),
        Run(a_task("filter", 0, 0), a_trial(5.0)),
        Run(a_task("static", 1, 1), a_trial(5.0)),
    ]
    cells = to_cells(runs)
    assert [(cell.repeat, cell.policy) for cell in cells] == [
        (0, "filter"), (0, "static"), (1, "filter"), (1, "static"),
    ]  # fmt: skip
    assert cells[0].of_static == pytest.approx(cells[0].throughput_hz / cells[1].throughput_hz)
    assert cells[2].of_static == pytest.approx(cells[2].throughput_hz / cells[3].throughput_hz)
    assert (cells[1].of_static, cells[3].of_static) == (1.0, 1.0)
    assert math.isnan(cells[0].of_oracle)


def test_a_run_without_answers_is_a_cell_all_the_same():
    cell = to_cell(Run(a_task(), a_trial(submitted_s=(), finished_s=(), lost=7)))
    assert (cell.requests, cell.lost, cell.throughput_hz, cell.below_peak) == (7, 7, 0.0, ())
    assert math.isnan(cell.latency_p99_s)


def test_a_timeline_has_loads_by_stage_and_moves():
    timeline = to_timeline(Run(a_task(), a_trial()))
    assert timeline.at_s[:2] == (0.5, 1.5)
    assert timeline.throughput_hz[5] == pytest.approx(10.0)
    assert timeline.throughput_hz[12] == pytest.approx(5.0)
    assert timeline.latency_s[12] == pytest.approx(0.8)
    assert timeline.interference == ((10.0, 15.0, 1, "cpu-100"), (20.0, 25.0, 1, "cpu-100"))
    assert timeline.changes == ((10.5, "3|1"), (15.5, "2|2"))
    elsewhere = a_trial(loads=(LoadSpan(1.0, 2.0, "cpu:7", "x"), LoadSpan(3.0, 4.0, "cpu:0-1", "y")))
    assert [span[2] for span in to_timeline(Run(a_task(), elsewhere)).interference] == [2, 0, 1]


def test_results_survive_their_file_and_say_what_is_missing(tmp_path):
    runs = [Run(a_task(repeat=repeat), a_trial()) for repeat in (0, 1)]
    made = results(runs, ["Failed: lls, repeat 1: broke"], planned=4)
    again = read_results(made.write(tmp_path / "live.json"))
    assert again.cells[0].throughput_hz == made.cells[0].throughput_hz
    assert [timeline.policy for timeline in again.timelines] == ["filter"], "the first repeat's only"
    assert again.notes[:2] == (
        "2 of 4 live runs; the others failed or were broken off.",
        "Failed: lls, repeat 1: broke",
    )
    assert "Interference: cpu-100 on cpu:1 10..15 s; cpu-100 on cpu:1 20..25 s." in again.notes
    assert notes(runs, planned=2)[-1].endswith("by run: filter 1.0%, 1.0%.")


def test_the_table_has_medians_and_warns():
    runs = [
        Run(a_task("filter", repeat, 0), a_trial(hz, steal=steal))
        for repeat, (hz, steal) in enumerate([(5.0, 0.0), (8.0, 0.2), (6.0, 0.0)])
    ]
    runs += [Run(a_task("", repeat, 1, "torch"), a_trial(4.0, plan="", moves=(), lost=2)) for repeat in range(3)]
    console = Console(file=io.StringIO(), width=200)
    console.print(live_table(runs))
    text = console.file.getvalue()
    assert "torch, 2 threads" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("filter"))
    middle, low, high = (to_cell(runs[i]).throughput_hz for i in (2, 0, 1))
    assert f"{figure(middle)} ({figure(low)}..{figure(high)})" in row
    assert "6" in next(line for line in text.splitlines() if "torch, 2 threads" in line).split(), "lost in all"
    assert "the host took up to 20% of the cores' time" in text
    assert "too few requests" not in text


def test_a_task_and_a_trial_survive_json():
    task = replace(a_task(), log="/tmp/x.jsonl")
    assert Task.from_json(task.to_json()) == task
    assert RunRecord.from_plain(a_trial().to_plain()) == a_trial()
