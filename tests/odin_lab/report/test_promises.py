"""Expected against actual completion, from an event log to the report."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from odin.monitor.eventlog import EventLog
from odin.monitor.events import RequestDone, RequestFailed, RequestsRefused, RunStarted, StageDescription
from odin.monitor.timing import RequestTimeline
from odin_lab.report.figures import NARROW, WIDE
from odin_lab.report.promises import draw_promises, from_log, promises_table
from odin_lab.report.results import Results, merge, now, read_results
from odin_lab.report.sections import make_report


def write_log(path: Path, *, requests: int = 40) -> Path:
    """Requests that were expected to take 0.1 s and more, and came a millisecond later on average."""
    stage = StageDescription("cpu:0", "node", 1, (0.1,))
    with EventLog(path) as log:
        log.append(RunStarted(100.0, 0.0, "resnet50", ("layer",), (stage,), (1,), "relay", 3))
        for number in range(requests):
            sent_s, expected_s = 101.0 + number / 10, 0.1 * (1 + number % 3)
            done_s = sent_s + expected_s + (number - 20) / 20_000 + 0.001
            timeline = RequestTimeline(number, 0, sent_s, done_s, (), sent_s + expected_s, number % 2 == 0)
            log.append(RequestDone(done_s, timeline))
        log.append(RequestDone(200.0, RequestTimeline(99, 0, 199.0, 200.0, ())))  # of an older version
        log.append(RequestFailed(200.0, 100, "DeadlineExceededError: its deadline passed"))
        log.append(RequestFailed(200.0, 101, "LayerFailedError: no"))
        log.append(RequestsRefused(201.0, 5))
        log.append(RequestsRefused(202.0, 2))
    return path


def test_a_log_tells_how_far_completions_were_off_and_how_deadlines_were_kept(tmp_path):
    told = from_log(write_log(tmp_path / "run.jsonl"))
    assert (told.model, told.policy, told.title, told.requests) == ("resnet50", "relay", "run.jsonl", 40)
    assert (told.in_time, told.late, told.refused) == (20, 1, 7)
    assert told.off_p50_s == pytest.approx(0.000975, abs=1e-9)
    assert told.off_p99_s == pytest.approx(0.0019305, abs=1e-9)
    assert told.at_s[0] == pytest.approx(1.1, abs=1e-3)
    assert told.expected_s[:3] == (0.1, 0.2, 0.1)  # in the order of completion


def test_of_long_runs_some_points_are_kept(tmp_path):
    told = from_log(write_log(tmp_path / "run.jsonl", requests=4_100))
    assert told.requests == 4_100
    assert len(told.at_s) == len(told.expected_s) == len(told.actual_s) == 1_367


def test_results_keep_promises(tmp_path):
    results = Results("odin report", now(), promises=(from_log(write_log(tmp_path / "run.jsonl")),))
    assert read_results(results.write(tmp_path / "results.json")) == results
    assert merge(results, results).promises == results.promises


def test_the_report_has_a_table_and_a_figure_of_them(tmp_path):
    promises = from_log(write_log(tmp_path / "run.jsonl"))
    report = make_report([Results("odin report", now(), promises=(promises,))])
    (section,) = [section for section in report.sections if section.slug == "promises"]
    assert section.tables == (promises_table((promises,), "Expected and actual completion"),)
    assert [str(cell) for cell in section.tables[0].rows[0]][:4] == ["run.jsonl", "resnet50", "relay", "40"]
    assert "+1.0 and +1.9 ms" in section.plots[0].caption


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_it_is_drawn_a_panel_per_run_on_equal_axes(tmp_path, layout):
    pytest.importorskip("matplotlib")
    runs = [from_log(write_log(tmp_path / f"{seed}.jsonl")) for seed in range(2)]
    figure = draw_promises(layout, runs)
    first, second = figure.axes[:2]
    assert first.get_xlim() == first.get_ylim() == second.get_xlim()
    assert len(first.collections[0].get_offsets()) == 40
    assert math.isclose(first.get_xlim()[1], 1.05 * 302, rel_tol=0.01)
