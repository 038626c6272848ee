"""The simulated admission benchmark: its loads, a cell, and its table."""

from __future__ import annotations

import pytest

from benchmarks.admission import Cell, coming_and_going, main, measure, rows


def test_a_load_comes_and_goes_for_as_long_as_told_on_average():
    events = coming_and_going("3", scenario="cpu-100", seed=0).events
    there_s = sum(event.end - event.start for event in events)
    assert there_s / len(events) == pytest.approx(3.0, rel=0.1)
    assert there_s / events[-1].end == pytest.approx(0.5, abs=0.05)
    assert coming_and_going("none", scenario="cpu-100", seed=0).events == ()


def test_more_than_can_be_served_is_mostly_refused_and_the_rest_is_in_time():
    cell = measure("resnet50", 2, "none", "5x", 2.0, "none", 0, capacity=200)
    assert cell.goodput > 0.95
    assert cell.in_time == cell.accepted
    assert 0.4 < cell.refused < 0.6


def test_a_row_has_the_mean_goodput_and_the_share_of_all_seeds():
    seeds = [Cell("m", 2, "lognormal:0.1", "3x", 10.0, "none", seed, 0.9 + seed / 10, 100, 99, 0.5) for seed in (0, 1)]
    assert rows(seeds) == [["m, 2", "0.1", "3x", "10x", "0.950 99.00", "50%..50%"]]


def test_the_command_prints_its_table(capsys: pytest.CaptureFixture[str]):
    words = "--cases resnet50:2 --noises none --deadlines 5x --offered 2 --loads none 1 --capacity 60 --seeds 1"
    assert main(words.split()) == 0
    assert "cpu-100 on one stage" in capsys.readouterr().out
