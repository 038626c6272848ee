"""What an event log tells: throughput over time, what slowed stages down, every decision; and how that is shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from odin.monitor.eventlog import EventLog
from odin.monitor.events import (
    Attributed,
    FamilyCounted,
    KnobTurned,
    LoadChanged,
    PlanChanged,
    PlannedTogether,
    RequestDone,
    RunEnded,
    RunStarted,
    SlowdownChanged,
    StageDescription,
    TenantShare,
    VariantCount,
)
from odin.monitor.timing import RequestTimeline
from odin_lab.report.decisions import decisions_table, draw_knob
from odin_lab.report.figures import NARROW, WIDE
from odin_lab.report.plots_measured import draw_timelines
from odin_lab.report.results import Decision, merge, read_results
from odin_lab.report.run_log import read_log_or_results, read_run
from odin_lab.report.sections import make_report
from odin_lab.report.style import looks
from odin_lab.report.tables import markdown_table

CATS, DOGS = TenantShare("cats", ("cpu:0", "cpu:1"), (2, 1), 8.2), TenantShare("dogs", ("cpu:0", "cpu:1"), (0, 4), 61.0)
TUNED = (
    KnobTurned(102.0, "batch", 1, 1, "p95", math.nan, 0.1, 0),
    KnobTurned(105.0, "batch", 1, 8, "p95", 0.02, 0.1, 40),
    KnobTurned(112.0, "batch", 8, 4, "p95", 0.125, 0.1, 40),
)


def write(path: Path, *events, requests: int = 40) -> Path:
    """Two requests in each half second of twenty, joined in the first ten of them."""
    stages = tuple(StageDescription(f"cpu:{at}", "node", 1, (0.1,) * 3) for at in (0, 1))
    run = RunStarted(100.0, 0.0, "cats", ("a", "b", "c"), stages, (1, 2), "together", 3, batch=4)
    done = []
    for number in range(requests):
        at_s = 100.25 + number / 2
        timeline = RequestTimeline(number, 0, at_s - 0.05, at_s, (), requests=2 if at_s < 110 else 1)
        done.append(RequestDone(at_s, timeline))
    with EventLog(path) as log:
        for event in sorted((run, *done, *events, RunEnded(120.0, "closed", 60, 0)), key=lambda event: event.at_s):
            log.append(event)
    return path


def test_throughput_counts_requests_that_were_joined(tmp_path):
    timeline, decisions = read_run(write(tmp_path / "run.jsonl"))
    assert (timeline.study, timeline.model, timeline.policy, timeline.title) == ("log", "cats", "together", "run.jsonl")
    assert timeline.at_s[:2] == (0.5, 1.5)
    assert timeline.throughput_hz == pytest.approx([4.0] * 10 + [2.0] * 10)
    assert timeline.latency_s == pytest.approx([0.05] * 20)
    assert (timeline.changes, timeline.turns, timeline.interference, decisions) == ((), (), (), ())


def test_each_turn_of_a_knob_is_a_decision(tmp_path):
    timeline, decisions = read_run(write(tmp_path / "run.jsonl", *TUNED))
    up, down = decisions
    assert up == Decision(
        "run.jsonl", 5.0, "cats", "batch", "1", "8", "p95 20.0 ms, room below the limit of 100 ms", 0.02, 0.1
    )
    assert (down.at_s, down.before, down.after) == (12.0, "8", "4")
    assert down.why == "p95 125 ms, over the limit of 100 ms"
    assert timeline.turns == ((5.0, "batch 8"), (12.0, "batch 4"))


def test_plans_made_together_tell_which_tenant_got_which(tmp_path):
    moved = DOGS.__class__("dogs", DOGS.devices, (1, 3), 61.0, 0.5)
    timeline, decisions = read_run(
        write(
            tmp_path / "run.jsonl",
            PlannedTogether(103.0, (CATS,)),
            PlannedTogether(106.0, (CATS, DOGS)),
            PlannedTogether(108.0, (CATS, moved)),
            PlanChanged(108.1, 9, 1, (2, 1), (3, 0), "move", "dogs need less", 12.0, 0.01),
            PlannedTogether(110.0, (CATS,)),
        )
    )
    assert [(one.model, one.what, one.before, one.after, one.why) for one in decisions] == [
        ("cats", "together", "-", "2|1", "planned alone for 8.20/s"),
        ("dogs", "together", "-", "0|4", "planned with cats for 61.0/s"),
        ("dogs", "together", "0|4", "1|3", "planned with cats for 61.0/s, at most 50%"),
        ("cats", "plan", "2|1", "3|0", "move, dogs need less, expecting 12.0 micro-batches of 4/s"),
        ("dogs", "together", "1|3", "-", "not there any more"),
    ]
    assert timeline.changes == ((pytest.approx(8.1), "3|0"),)
    assert timeline.turns == tuple((at_s, "together") for at_s in (3.0, 6.0, 8.0, 10.0))


def test_what_slowed_stages_down_is_what_was_detected_unless_loads_were_injected(tmp_path):
    seen = (
        SlowdownChanged(104.0, 1, 9, 1, 2.1, "onset"),
        Attributed(104.5, 1, "CPU share"),
        SlowdownChanged(109.0, 1, 19, 1, 1.0, "end"),
        SlowdownChanged(115.0, 0, 30, 1, 1.5, "onset"),
    )
    detected = read_run(write(tmp_path / "seen.jsonl", *seen)).timeline.interference
    assert detected == ((4.0, 9.0, 1, "2.1x CPU share"), (15.0, 20.0, 0, "1.5x"))
    ramp = [LoadChanged(103.0 + at, "burn", "cpu@cpu:1", "cpu:1", level, 7) for at, level in enumerate((0.5, 1.0, 0.0))]
    elsewhere = LoadChanged(103.0, "x", "cpu@cpu:9", "cpu:9", 1.0, 8)
    injected = read_run(write(tmp_path / "run.jsonl", *seen, *ramp, elsewhere)).timeline.interference
    assert injected == ((3.0, 5.0, 1, "burn"),)


def test_a_run_without_an_answer_has_decisions_only(tmp_path):
    timeline, decisions = read_run(write(tmp_path / "run.jsonl", *TUNED, requests=0))
    assert timeline is None
    assert len(decisions) == 2


def test_they_are_kept_with_results(tmp_path):
    results = read_log_or_results(write(tmp_path / "run.jsonl", *TUNED))
    assert read_results(results.write(tmp_path / "results.json")) == results
    assert merge(results, results).decisions == results.decisions
    assert read_log_or_results(tmp_path / "results.json") == results


def test_the_report_has_rows_marks_and_a_figure(tmp_path):
    results = read_log_or_results(write(tmp_path / "run.jsonl", *TUNED, PlannedTogether(106.0, (CATS, DOGS))))
    report = make_report([results])
    sections = {section.slug: section for section in report.sections}
    (table,) = sections["decisions"].tables
    assert [row[1:6] for row in table.rows] == [
        ("5.0", "cats", "batch", "1", "8"),
        ("6.0", "cats", "together", "-", "2|1"),
        ("6.0", "dogs", "together", "-", "0|4"),
        ("12.0", "cats", "batch", "8", "4"),
    ]
    assert "| run.jsonl | 6.0 | dogs | together | - | 0\\|4 | planned with cats for 61.0/s |" in markdown_table(table)
    (knob,) = sections["decisions"].plots
    assert knob.caption.startswith("batch of cats, turned 2 times")
    assert "Diamonds" in sections["timelines"].plots[0].caption


def test_a_long_table_says_what_it_leaves_out():
    many = [Decision("run", float(at), "cats", "batch", "1", "2", "") for at in range(201)]
    table = decisions_table(many, "Decisions")
    assert (len(table.rows), table.folded) == (200, True)
    assert table.caption.endswith("The first 200 of 201.")


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_they_are_drawn(tmp_path, layout):
    pytest.importorskip("matplotlib")
    timeline, decisions = read_run(write(tmp_path / "run.jsonl", *TUNED))
    axes = draw_knob(layout, decisions, timeline).axes[0]
    assert [text.get_text() for text in axes.texts] == ["8", "4"]
    assert axes.get_xlim() == (0, pytest.approx(19.5))
    figure = draw_timelines(layout, [timeline], looks([timeline.policy]))
    assert figure.axes[0].get_title("right").endswith("0 plan changes, 2 other decisions")
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [list(line.get_xdata()) for line in marks] == [[5.0, 12.0]]


def test_what_a_familys_requests_got_is_told_once_with_why(tmp_path):
    early = FamilyCounted(105.0, 0, (VariantCount("good", 5, asked=5), VariantCount("quick")))
    late = FamilyCounted(120.0, 2, (VariantCount("good", 14, 1, 1, asked=14), VariantCount("quick", 2, interference=2)))
    _, decisions = read_run(write(tmp_path / "run.jsonl", early, late, requests=0))
    assert [(one.model, one.what, one.after, one.why) for one in decisions] == [
        ("good", "variant", "16 of 20 (80%), 1 late, 1 failed", "14 asked"),
        ("quick", "variant", "2 of 20 (10%)", "2 interference"),
        ("none", "variant", "2 of 20 (10%)", "refused: no variant would have done what was asked"),
    ]
    assert decisions[0].at_s == 20.0
