"""The results' file: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from odin_lab.report.results import (
    QUANTILES,
    SLO_LEVELS,
    Cell,
    DetectionPoint,
    Results,
    ResultsError,
    Timeline,
    Validation,
    merge,
    read_results,
)

CELL = Cell(
    study="grid",
    model="resnet50",
    policy="odin:alpha=2",
    devices=4,
    period=10.0,
    duration=2.0,
    repeat=0,
    requests=4000,
    lost=0,
    events=399,
    throughput_hz=25.0,
    peak_hz=30.0,
    latency_mean_s=0.1,
    latency_p50_s=0.09,
    latency_p99_s=math.inf,
    latency_quantiles_s=tuple(0.1 + q for q in QUANTILES),
    below_peak=tuple(level / 2 for level in SLO_LEVELS),
    exploring=0.1,
    trials_per_event=2.5,
    changes_per_event=3.0,
    of_oracle=0.9,
)
RESULTS = Results(
    command="odin simulate paper",
    created="2026-01-01T00:00:00+00:00",
    environment={"cpu": "a"},
    cells=(CELL,),
    timelines=(
        Timeline(
            study="grid",
            model="m",
            policy="lls",
            title="t",
            at_s=(0.0, 1.0),
            throughput_hz=(1.0, -math.inf),
            latency_s=(0.1, 0.2),
            interference=((0.0, 1.0, 2, "cpu-100"),),
            changes=((0.5, "1|2"),),
            peak_hz=2.0,
        ),
    ),
    detections=(DetectionPoint("cusum", 0.1, 1.5, 3.0, 2.0, 0.1, 0.0),),
    validations=(Validation("calm", "static", 1.0, 2.0, 3.0, 4.0),),
    notes=("a note",),
)


def test_slo_levels() -> None:
    assert SLO_LEVELS == (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("name", ["r.json", "r.json.gz", "new/folder/r.json"])
def test_what_is_written_is_read(tmp_path, name) -> None:
    path = RESULTS.write(tmp_path / name)
    found = read_results(path)
    assert found.cells[0].latency_p99_s == math.inf
    assert math.isnan(found.cells[0].of_static)
    assert found.timelines[0].throughput_hz == (1.0, -math.inf)
    whole = {"of_delayed": 0.5, "of_static": 1.5, "memory_bytes": 7.0}  # as nan is never equal
    assert replace(found, cells=(replace(found.cells[0], **whole),)) == replace(
        RESULTS, cells=(replace(CELL, **whole),)
    )
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_json_without_nan(tmp_path) -> None:
    def fail(text):
        raise AssertionError(text)

    values = json.loads(RESULTS.write(tmp_path / "r.json").read_text(), parse_constant=fail)
    assert values["format"] == "odin-evaluation"
    assert values["version"] == 1
    assert values["cells"][0]["of_static"] is None
    assert values["cells"][0]["latency_p99_s"] == "inf"


def test_numpy_numbers_are_numbers(tmp_path) -> None:
    cell = replace(CELL, devices=np.int64(4), throughput_hz=np.float32(0.5), below_peak=np.zeros(13))
    found = read_results(Results("c", "d", cells=(cell,)).write(tmp_path / "r.json")).cells[0]
    assert (found.devices, found.throughput_hz, found.below_peak) == (4, 0.5, (0.0,) * 13)


def test_whole_numbers_are_floats_where_floats_belong(tmp_path) -> None:
    found = read_results(Results("c", "d", cells=(replace(CELL, period=10),)).write(tmp_path / "r.json"))
    assert isinstance(found.cells[0].period, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "is not JSON"),
        ("[]", "holds no evaluation"),
        ('{"format": "odin-profile", "version": 1}', "holds no evaluation"),
        ('{"format": "odin-evaluation", "version": 2}', "version 2, and this program reads up to 1"),
        ('{"format": "odin-evaluation"}', "version None"),
        ('{"format": "odin-evaluation", "version": 1}', "damaged"),
        ('{"format": "odin-evaluation", "version": 1, "command": 3, "created": ""}', r"got `int` - at `\$.command`: 3"),
        ('{"format": "odin-evaluation", "version": 1, "command": "", "created": "", "more": 1}', "unknown more"),
        (
            '{"format": "odin-evaluation", "version": 1, "command": "", "created": "", "cells": [[]]}',
            r"Expected `object`, got `array` - at `\$.cells\[0\]`: \[\]",
        ),
    ],
)
def test_what_is_no_result_is_told(tmp_path, text, message) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_results(path)


@pytest.mark.parametrize("damage", ["cut off", "overwritten within", "wrong check sum"])
def test_a_damaged_packed_file_is_told(tmp_path, damage) -> None:
    path = RESULTS.write(tmp_path / "r.json.gz")
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut off": data[:-20],
            "overwritten within": data[:40] + b"\xff" * 40 + data[80:],
            "wrong check sum": data[:-8] + bytes(8),
        }[damage]
    )
    with pytest.raises(ResultsError, match=r"r\.json\.gz is not JSON \("):
        read_results(path)


def test_what_is_nested_too_deeply_is_told(tmp_path) -> None:
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(ResultsError, match="is not JSON"):
        read_results(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path) -> None:
    path = RESULTS.write(tmp_path / "r.json")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(RESULTS, notes=(object(),)).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ResultsError, match="below_peak has 2 values; give 13"):
        replace(CELL, below_peak=(0.1, 0.2))
    with pytest.raises(ResultsError, match="give as many of each"):
        replace(RESULTS.timelines[0], at_s=(0.0,))


def test_merge_joins_and_drops_what_is_told_twice() -> None:
    other = Results("odin bench live", "2026-01-02", {"cpu": "b", "gpu": "none"}, cells=(CELL, replace(CELL, repeat=1)))
    both = merge(RESULTS, other, RESULTS)
    assert both.command == "odin simulate paper\nodin bench live"
    assert both.environment == {"cpu": "a; b", "gpu": "none"}
    assert [cell.repeat for cell in both.cells] == [0, 1]
    assert (len(both.timelines), len(both.detections), len(both.validations)) == (1, 1, 1)
    assert both.notes == ("a note",)


def test_merge_refuses_two_answers_to_one_question() -> None:
    other = replace(RESULTS, cells=(replace(CELL, throughput_hz=1.0),))
    with pytest.raises(ResultsError, match="grid resnet50 odin:alpha=2, 4 devices, repeat 0 differ"):
        merge(RESULTS, other)
