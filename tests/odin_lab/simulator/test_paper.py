"""The paper's study: which runs it is made of, what it needs, and what is made of its cells."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math

import pytest
from rich.console import Console

from odin.cli.main import main
from odin_lab.report.results import SLO_LEVELS, Cell, read_results
from odin_lab.report.summary import scaling_table
from odin_lab.simulator import paper
from odin_lab.simulator.paper import POLICIES, PaperStudy, gather, paper_notes, paper_study
from odin_lab.simulator.study import Contestant, DetectionJob, Outcome, RunJob, StudyError
from odin_lab.simulator.summary import (
    mean_of,
    paper_table,
    policy_table,
    render_study,
    terminal_table,
    worst_cells,
    worst_table,
)
from odin_lab.timings import synthetic_timings, write_timings

NAN = math.nan


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Files of a coarse and a fine synthetic table."""
    folder = tmp_path_factory.mktemp("tables")
    return [
        str(write_timings(synthetic_timings(layers, scenarios=3), folder / f"{layers}.csv.gz")) for layers in (6, 12)
    ]


def cell(policy="filter", *, study="grid", model="m", devices=4, period=10, duration=10, repeat=0, **figures):
    values = {
        "requests": 100,
        "lost": 0,
        "events": 5,
        "throughput_hz": 10.0,
        "peak_hz": 20.0,
        "latency_mean_s": 0.25,
        "latency_p50_s": 0.2,
        "latency_p99_s": 0.5,
        "latency_quantiles_s": (),
        "below_peak": tuple(level / 2 for level in SLO_LEVELS),
        "exploring": 0.125,
        "trials_per_event": 3.0,
        "changes_per_event": 1.5,
    }
    return Cell(study, model, policy, devices, float(period), float(duration), repeat, **values | figures)


def text(table):
    written = io.StringIO()
    Console(width=200, file=written).print(table)
    return written.getvalue()


def rows(table):
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


# ---------------------------------------------------------------- what it is made of
def test_the_grid_is_the_papers():
    table = synthetic_timings(6)
    study = PaperStudy(
        dict.fromkeys(("vgg16", "resnet50", "resnet152"), table), {"resnet152": table}, repeats=2, seed=7
    )
    jobs = study.jobs()
    grid = [job for job in jobs if isinstance(job, RunJob) and job.setup.study == "grid"]
    scaling = [job for job in jobs if isinstance(job, RunJob) and job.setup.study == "scaling"]
    assert len(set(jobs)) == len(jobs)
    assert {(job.setup.period, job.setup.duration) for job in grid} == set(itertools.product((2, 10, 100), repeat=2))
    assert len(grid) == 2 * 3 * 9 * len(POLICIES)
    assert {(job.setup.devices, job.setup.requests) for job in grid} == {(4, 4000)}
    assert {(job.seed, job.repeat) for job in grid} == {(7, 0), (8, 1)}
    assert [job.repeat for job in grid] == sorted(job.repeat for job in grid)
    assert {job.setup.devices for job in scaling} == {4, 8, 16, 26, 39, 52}
    assert len(scaling) == (2 * 9 + 4 * 3) * sum(not contestant.serial for contestant in POLICIES)
    wanted = {"static", "lls", "odin:alpha=2", "odin:alpha=10", "filter", "relay", "oracle", "delayed-oracle"}
    assert {str(job.contestant) for job in grid} == wanted | {"lls (serial)"} | {
        "odin:alpha=2 (serial)",
        "odin:alpha=10 (serial)",
        "delayed-oracle (answered)",
    }
    detection = [job for job in jobs if isinstance(job, DetectionJob)]
    assert {(job.detector, job.noise_cv) for job in detection} == set(
        itertools.product(("cusum", "threshold"), (0.05, 0.1, 0.2))
    )


def test_telling_cells_are_kept_over_time():
    study = PaperStudy({"vgg16": synthetic_timings(6), "resnet50": synthetic_timings(7)}, repeats=2)
    kept = [job for job in study.jobs() if isinstance(job, RunJob) and job.stretch is not None]
    assert {job.setup.table for job in kept} == {"resnet50"}
    assert {job.repeat for job in kept} == {0}
    assert {job.stretch.title for job in kept} == {
        "period 100, duration 100, 4 devices",
        "period 10, duration 10, 4 devices",
    }
    shown = {"static", "lls", "odin:alpha=10", "filter", "relay", "delayed-oracle"}
    assert {str(job.contestant) for job in kept} == shown


def test_other_policies_are_held_against_the_goals_too(tables):
    extra = [Contestant.parse(name) for name in ("odin:alpha=5", "lls", "filter (serial)")]
    study = paper_study(models=tables[:1], extra=extra, quick=True)
    assert study.own == ("filter", "relay", "odin:alpha=5", "filter (serial)")
    assert len(study.contestants) == len(POLICIES) + 2
    assert (study.requests, study.repeats, study.scaling_devices) == (1000, 1, (4, 16, 52))
    assert paper_study(models=tables, requests=50, repeats=5).requests == 50
    assert list(paper_study(models=tables).scaling) == [tables[1]]


def test_missing_timings_tell_how_to_record_them(monkeypatch):
    monkeypatch.setattr(paper, "shipped_timings", lambda: ("mobilenet_v2",))
    with pytest.raises(StudyError) as caught:
        paper_study()
    message = str(caught.value)
    assert "no timings of vgg16, resnet50, resnet152 are shipped" in message
    assert "odin record vgg16 resnet50 resnet152 --scenarios paper12" in message
    assert message.endswith(
        "--model timings/vgg16.csv.gz --model timings/resnet50.csv.gz --model timings/resnet152.csv.gz"
    )
    with pytest.raises(StudyError, match="no timings of vgg16 are shipped"):
        paper_study(models=["vgg16"])


def test_tables_that_do_not_do(tmp_path, tables):
    bare = write_timings(synthetic_timings(6, scenarios=0), tmp_path / "bare.csv.gz")
    with pytest.raises(ValueError, match=r"bare.csv.gz was recorded without scenarios"):
        paper_study(models=[str(bare)])
    again = write_timings(synthetic_timings(6), tmp_path / "again.csv.gz")
    with pytest.raises(StudyError, match=r"6.csv.gz and .*again.csv.gz are both timings of synthetic-6"):
        paper_study(models=[tables[0], str(again)])
    with pytest.raises(StudyError, match="0 repeats: at least 1"):
        paper_study(models=tables, repeats=0)


def test_notes_say_what_is_reconstruction_and_what_falls_short(tables):
    notes = "\n".join(paper_notes(paper_study(models=tables[:1], scaling=tables[1], repeats=4, seed=9)))
    assert "full text was not available" in notes
    assert "(serial)" in notes
    assert "repeat r has seed 9 + r. Repeats: 4 on 4 devices" in notes
    assert "synthetic-12 has 12 layers, so on 52 devices some have none" in notes
    assert "synthetic-6 has" not in notes


# ---------------------------------------------------------------- what is made of it
def test_outcomes_come_in_any_order_to_the_same_results():
    cells = [
        cell("static", throughput_hz=5.0),
        cell("filter"),
        cell("static", study="scaling", throughput_hz=1.0),
        cell("oracle", study="scaling"),
    ]
    found = [gather([Outcome((one,)) for one in order]) for order in (cells, cells[::-1])]
    assert repr(found[0]) == repr(found[1])
    assert [(c.study, c.policy, c.of_static) for c in found[0][0]] == [
        ("grid", "filter", 2.0),
        ("grid", "static", 1.0),
        ("scaling", "oracle", 10.0),
        ("scaling", "static", 1.0),
    ]


def test_a_row_per_policy_is_the_mean_of_its_cells():
    table = policy_table("t", [cell(), cell(period=2, throughput_hz=14.0, trials_per_event=NAN, below_peak=())]).table
    assert rows(table) == [
        [
            "filter",
            "12.0",
            "0.600",
            "-",
            "-",
            "-",
            "-",
            "250",
            "500",
            "12.5%",
            "3.00",
            "1.50",
            "25.0%",
            "35.0%",
            "45.0%",
        ]
    ]
    assert math.isnan(mean_of([cell()], lambda c: c.of_static))


def test_policies_are_in_the_order_of_the_report():
    names = ["oracle", "mine:Policy", "odin:alpha=10", "lls (serial)", "filter", "delayed-oracle", "lls", "static"]
    assert [row[0] for row in rows(policy_table("t", [cell(policy=name) for name in names]).table)] == [
        "filter",
        "odin:alpha=10",
        "lls",
        "lls (serial)",
        "static",
        "mine:Policy",
        "oracle",
        "delayed-oracle",
    ]


def test_the_worst_cell_is_of_means_over_repeats():
    cells = [
        cell(of_delayed=0.90, of_static=1.2, changes_per_event=1.0),
        cell(of_delayed=1.00, of_static=1.2, changes_per_event=1.0, repeat=1),
        cell(of_delayed=0.96, of_static=0.98, changes_per_event=2.5, duration=2),
        cell(of_delayed=0.98, of_static=1.3, changes_per_event=1.0, duration=2, repeat=1),
        cell(of_delayed=0.5, devices=52, study="scaling"),
        cell("lls", of_delayed=0.1),
    ]
    delayed, static, changes, many, _ = worst_cells(cells, ["filter"])
    assert (delayed.value, delayed.duration, delayed.missed, delayed.cells) == (pytest.approx(0.95), 10.0, 1, 2)
    assert (static.value, static.duration, static.missed) == (pytest.approx(1.14), 2.0, 0)
    assert (changes.value, changes.missed) == (1.75, 0)
    assert (many.goal.figure, many.devices, many.value) == ("of_delayed", 52, 0.5)
    shown = text(worst_table([delayed, static]))
    assert "0.950" in shown
    assert "1 of 2" in shown
    assert not delayed.goal.holds(delayed.value)
    assert static.goal.holds(0.99)
    assert changes.goal.holds(2.0)
    assert not changes.goal.holds(2.01)


def test_the_papers_rule_beside_lls():
    cells = [
        cell("odin:alpha=10", throughput_hz=12.0, latency_mean_s=0.2),
        cell("lls", throughput_hz=10.0, latency_mean_s=0.25),
        cell("odin:alpha=10", throughput_hz=10.0, latency_mean_s=0.25, period=2),
        cell("lls", throughput_hz=10.0, latency_mean_s=0.25, period=2),
        cell("lls (serial)", throughput_hz=1.0),
    ]
    assert rows(paper_table(cells)) == [
        ["m", "odin:alpha=10 / lls", "throughput", "+10.0%"],
        ["", "", "mean latency", "-10.0%"],
    ]


def test_scaling_is_against_the_delayed_oracle():
    cells = [
        cell("delayed-oracle", devices=devices, throughput_hz=10.0 * devices, of_delayed=1.0) for devices in (4, 52)
    ]
    cells.append(cell("lls", devices=4, of_delayed=0.75))
    assert rows(terminal_table(scaling_table(cells, "t", reference="delayed-oracle"))) == [
        ["lls", "0.750", "-"],
        ["delayed-oracle", "1.000", "1.000"],
        ["delayed-oracle, images/s", "40.0", "520.0"],
    ]


def test_all_tables_together_and_few_cells_do_no_harm():
    scaling = [cell(study="scaling", devices=devices, of_delayed=0.99) for devices in (4, 52)]
    shown = text(render_study([cell(of_delayed=0.96), *scaling], ["filter"]))
    assert "0.960" in shown  # the same setting in the study over devices does not count again
    assert "m on 4 devices, mean over 1 cells" in shown
    assert "m of delayed oracle, by devices" in shown
    assert "the worst cell" in shown
    assert text(render_study([], ["filter"])).strip() == ""


# ---------------------------------------------------------------- the command
@pytest.mark.slow
def test_the_study_in_one_command(capsys, monkeypatch, tables, tmp_path):
    small = paper_study(models=tables[:1], scaling=tables[1], requests=40, quick=True)
    small = dataclasses.replace(small, steps=(10,), scaling_devices=(4, 5), detection=False)
    monkeypatch.setattr("odin_lab.commands.simulate.paper_study", lambda **_: small)
    output = tmp_path / "paper.json.gz"
    assert main(["simulate", "paper", "--jobs", "1", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "synthetic-6 on 4 devices, mean over 1 cells" in out
    assert "the worst cell" in out
    assert "the paper's rule, as reconstructed" in out
    assert "reconstructed" in out
    results = read_results(output)
    assert len(results.cells) == len(POLICIES) + 2 * sum(not contestant.serial for contestant in POLICIES)
    assert {cell.of_oracle > 0 for cell in results.cells} == {True}
    assert len(results.timelines) == 6
    assert main(["simulate", "paper", "--jobs", "1", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [item["throughput_hz"] for item in again["cells"]] == [item.throughput_hz for item in results.cells]
