"""The benchmark of overload: its rows, the options of who is overloaded, and when a load comes and goes."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.common import plain
from benchmarks.open_loop import IN_TIME, OUTCOMES, REFUSED, Figures
from benchmarks.overload import COLUMNS, cells
from benchmarks.overload_contenders import admission_options
from benchmarks.overload_trial import Reference, Settings, Trial, TrialResult, check_outputs
from benchmarks.spells import Spell, coming_and_going, default_load, spells
from odin_lab.inject.load import Load


def figures(goodput_hz: float, *, too_late: str = "", refusal_s: float | None = 0.0005) -> Figures:
    counts = {**dict.fromkeys(OUTCOMES, 0), IN_TIME: 60, REFUSED: 40}
    return Figures(100, 60, 10.0, goodput_hz, 1.0, counts, refusal_s, refusal_s, 0.1, 0.2, 0.0, 0.004, 0.005, too_late)


def result(goodput_hz: float, *, load: str = "", **options: Any) -> tuple[TrialResult, Trial]:
    trial = Trial(load, 2.0, figures(goodput_hz, **options), ())
    return TrialResult("settings", 0.1, {"": [9.0, 11.0], "cpu@cpu:1": [5.0]}, [trial]), trial


def test_goodput_is_divided_by_the_capacity_around_it_or_under_the_same_load() -> None:
    row = cells([result(8.0), result(9.0), result(10.0)])
    assert len(row) == len(COLUMNS) - 1
    assert row[:6] == ["10.0", "0.900", "100.00%", "40.0%", "0.5", "0.5"]
    assert cells([result(4.0, load="cpu@cpu:1")])[:2] == ["5.0", "0.800"]


def test_rounds_whose_generator_was_late_are_left_out_and_told() -> None:
    row = cells([result(8.0), result(1.0, too_late="late")])
    assert row[1] == "0.800"
    assert row[-1] == "4, 1 void"
    void = cells([result(1.0, too_late="late")])
    assert len(void) == len(COLUMNS) - 1
    assert void[0] == "void"
    assert set(void[1:-1]) == {"-"}


def test_without_refusals_there_is_no_time_of_them() -> None:
    assert cells([result(8.0, refusal_s=None)])[4:6] == ["-", "-"]


def test_results_and_settings_pass_through_a_file() -> None:
    made = result(8.0, refusal_s=None)[0]
    assert msgspec.convert(json.loads(json.dumps(plain(made))), TrialResult) == made
    settings = Settings(
        "odin-none", "small", (0, 1), (2.0, 10.0), ("", "cpu@cpu:1"), 6.0, 1.0, 3.0, 0.1, 3.0, 3.0, 2, 1, 0,
        Reference(0.1, 10.0),
    )  # fmt: skip
    assert msgspec.convert(json.loads(json.dumps(plain(settings))), Settings) == settings


def test_an_admission_is_asked_for_only_where_there_is_one() -> None:
    def new(model: object, *, admission: str = "none") -> None: ...

    assert admission_options("predict", new) == {"admission": "predict"}
    assert admission_options("predict", lambda model: None) == {}


def test_other_outputs_than_the_models_are_an_error() -> None:
    expected = np.array([[1.0, 2.0], [3.0, 4.0]])
    check_outputs([expected[:1], expected[1:]], expected)
    with pytest.raises(RuntimeError, match="image 1 comes out differently"):
        check_outputs([expected[:1], expected[:1]], expected)
    with pytest.raises(RuntimeError, match="image 0"):
        check_outputs([np.array([[np.nan, 2.0]])], expected)


def test_spells_are_the_same_for_the_same_seed_apart_and_within_the_time() -> None:
    plan = spells(100.0, on_s=4.0, off_s=2.0, seed=5)
    assert plan == spells(100.0, on_s=4.0, off_s=2.0, seed=5) != spells(100.0, on_s=4.0, off_s=2.0, seed=6)
    moments = [moment for spell in plan for moment in spell]
    assert moments == sorted(moments)
    assert moments[0] > 0.0
    assert moments[-1] <= 100.0
    share = sum(spell.end_s - spell.begin_s for spell in plan) / 100.0
    assert share == pytest.approx(4 / 6, abs=0.12)


def test_a_load_that_cannot_start_is_told_when_it_is_over() -> None:
    absent = Load.parse("program@cpu:0 no-such-program-here")

    def run() -> None:
        with coming_and_going(absent, [Spell(0.0, 60.0)]):
            for thread in threading.enumerate():
                if thread.name == "benchmark-load":
                    thread.join()

    with pytest.raises(ValueError, match="no program"):
        run()
    with coming_and_going(None, []):
        pass


def test_the_usual_load_is_one_that_can_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Load.parse(default_load(0)).on.indices == (0,)
    monkeypatch.setattr("benchmarks.spells.shutil.which", lambda name: None)
    assert default_load(1) == "cpu@cpu:1"
