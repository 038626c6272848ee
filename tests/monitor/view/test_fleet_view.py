"""A fleet's state as text, as JSON and as lines of a terminal of any size."""

from __future__ import annotations

import math

import pytest

from odin.monitor.view.fleet_view import ExecutorState, FleetState, PredictionSummary, view_from_json
from odin.monitor.view.pipeline_view import EventLine
from odin.monitor.view.screen import plain, render

STATE = FleetState(
    name="models",
    policy="predictive",
    uptime_s=75.2,
    models=1000,
    resident=312,
    last_used=("cats", "dogs\x1b[31m"),
    resident_mib=2040.1,
    memory_mib=2048.0,
    waiting=3,
    completed=7000,
    failed=28,
    in_flight=4,
    in_time=6900,
    late=28,
    refused=17,
    hits=5400,
    cold=1619,
    loads=1619,
    evictions=1307,
    executors=(
        ExecutorState("cpu:0", 123, "serving", 1.0, 150),
        ExecutorState("cpu:1", 124, "serving", 1.8, 162),
        ExecutorState("cpu:2", 125, "lost", 1.0, 0),
    ),
    predictions=(
        PredictionSummary("run", 400, 0.0072, 0.0051, 0.98),
        PredictionSummary("load", 40, math.nan, 0.0041, math.nan),
    ),
    events=(EventLine(3.2, "model-loaded", "loaded: model cats"),),
    event_count=1,
)


def test_json_is_read_back():
    read = view_from_json(STATE.to_json())
    assert isinstance(read, FleetState)
    assert read.to_json() == STATE.to_json()
    with pytest.raises(ValueError, match="not a view of an ODIN fleet"):
        view_from_json('{"format":"odin-fleet-view","version":99}')
    with pytest.raises(ValueError, match="not a view of an ODIN pipeline"):
        view_from_json("nonsense")


def test_what_is_shown():
    lines = plain(STATE, width=100).splitlines()
    assert lines[0].split() == [
        "fleet",
        "models",
        "predictive",
        "7,000",
        "done",
        "28",
        "failed",
        "4",
        "in",
        "flight",
        "1:15",
    ]
    assert lines[2:7] == [
        " in memory 312 of 1,000 models  2,040 of 2,048 MiB  1,619 loads  1,307 evictions",
        " requests 5,400 hits (76.9%)  1,619 cold starts  3 waiting",
        " deadlines 6,900 in time  17 refused  28 late",
        " of late run 5.10 ms, 98% within 7.20 ms",
        " last used cats, dogs?[31m",
    ]
    assert [line.split() for line in lines[7:11]] == [
        ["executor", "device", "pid", "state", "slowdown", "open"],
        ["0", "cpu:0", "123", "serving", "1.0x", "150"],
        ["1", "cpu:1", "124", "serving", "!", "1.8x", "162"],
        ["2", "cpu:2", "125", "lost", "-", "0"],
    ]
    assert lines[-1].split() == ["3.2", "s", "loaded:", "model", "cats"]


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 6, 12, 24, 60])
def test_it_fits_every_terminal(width, height):
    lines = render(STATE, width=width, height=height, ascii_only=True, keys="q quit").plain.split("\n")
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert all(line.isascii() for line in lines)
