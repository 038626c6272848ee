"""Events: every kind survives its line of JSON, and what is no event is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import synthetic_run

from odin.monitor.events import (
    Attributed,
    Culprit,
    EventsMissing,
    FamilyCounted,
    Fault,
    KnobTurned,
    LoadChanged,
    MoveFailed,
    PlanChanged,
    PlannedTogether,
    PlanVerified,
    PolicyChanged,
    RequestDone,
    RequestFailed,
    RunEnded,
    SlowdownChanged,
    TenantShare,
    VariantChosen,
    VariantCount,
    from_json,
    to_json,
)
from odin.monitor.timing import RequestTimeline, StageTiming

EVENTS = [
    synthetic_run.run_started((7, 11)),
    synthetic_run.run_started((0, 1), batch=8, devices=["edge7/gpu:0", "cpu:0-3"]),
    synthetic_run.request(3, 1001.25, (0.07, 0.11), plan=(7, 11)),
    synthetic_run.request(3, 1001.25, (0.0, 0.11), plan=(0, 18)),
    RequestFailed(1002.0, 4, "LayerFailedError: layer fc raised ValueError: no \"such\" thing\nsecond line"),
    SlowdownChanged(1003.0, 1, 17, 5, 2.125, "onset"),
    Attributed(1003.0, 1, "CPU share", (Culprit(4242, "stress-ng", 0.5), Culprit(1, "ünïcode 名", 0.25))),
    Attributed(1003.0, 0, "unknown", note="the system hides other processes"),
    PlanChanged(1004.0, 20, 1, (7, 11), (13, 5), "move", "stage 1 is slow", 10.75, 0.002),
    PlanVerified(1005.0, 1, (13, 5), 10.75, 10.5),
    PolicyChanged(1006.0, "odin:alpha=10"),
    LoadChanged(1007.0, "burst", "membw", "cpu:1", 0.75, 4242),
    MoveFailed(1007.0, 20, (7, 11), (9, 9), "move", "GetTimeoutError('prepare')", 2.0),
    Fault(1007.0, "on_event", "raised RuntimeError('mine'); it goes on being told", 3),
    EventsMissing(1007.5, 250, 3, "No space left on device"),
    RunEnded(1008.0, "done", 20, 1),
    KnobTurned(1007.8, "batch", 8, 4, "p95", 0.125, 0.1, 40),
    PlannedTogether(1008.5, (TenantShare("cats", ("cpu:0",), (18,), 8.5), TenantShare("dogs", ("gpu:0",), (9,), 2, 1))),
    VariantChosen(1009.0, 0.75, 0.1, 0.003, "", "good", "first", 0.05),
    FamilyCounted(1010.0, 3, (VariantCount("good", 20, 1, 0, 15, 2, 3), VariantCount("quick"))),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_one_line_there_and_back(event):
    line = to_json(event)
    assert "\n" not in line
    assert json.loads(line)["event"] == event.kind
    assert from_json(line) == event
    assert from_json(line + "\n") == event


@pytest.mark.parametrize("share", [0.5, math.nan])
def test_a_process_whose_name_is_no_text_is_named_all_the_same(share):
    """The kernel cuts names after 15 bytes, which may be the middle of a letter."""
    line = to_json(Attributed(1.0, 0, "CPU share", (Culprit(7, "grüße\udcc3", share),)))
    line.encode()
    assert from_json(line).culprits[0].name == "grüße\udcc3"


def test_what_a_log_of_version_0_1_has_written_is_read():
    """Byte for byte what its own encoder wrote, letters outside ASCII escaped, half of a pair among them."""
    line = r'{"event":"attribution","at_s":1003,"stage":1,"interference":"CPU share","culprits":' \
        r'[{"pid":4242,"name":"\u00fcn\ud83d\ude00\udcc3","share":null}],"note":""}'  # fmt: skip
    event = from_json(line)
    assert event.at_s == 1003.0
    assert event.culprits[0].name == "ün\N{GRINNING FACE}\udcc3"
    assert math.isnan(event.culprits[0].share)
    line = '{"event":"request","at_s":0.5,"timeline":[3,0,0.25,0.5,[[0,0,2,0.1,0.2,0.3,0.0,1e-05,[null,0.5]]]]}'
    done = from_json(line)
    assert math.isnan(done.timeline.stages[0].layer_s[0])
    assert done.timeline.stages[0].transfer_s == 1e-5


@pytest.mark.parametrize("number", [np.int64(7), np.int32(7), np.float32(7.0), np.float64(7.0)])
def test_numbers_of_numpy_are_numbers(number):
    assert json.loads(to_json(PlanVerified(number, 1, (number, 2), 1.0, 1.0)))["plan"] == [7, 2]


def test_what_is_read_is_made_of_the_same_types():
    run = from_json(to_json(EVENTS[0]))
    assert [type(value) for value in (run.plan, run.layers, run.stages, run.stages[0].baseline_s)] == [tuple] * 4
    done = from_json(to_json(EVENTS[2]))
    assert isinstance(done, RequestDone)
    assert isinstance(done.timeline, RequestTimeline)
    assert isinstance(done.timeline.stages[0], StageTiming)
    assert done.timeline.latency_s == pytest.approx(0.2)


def test_nan_is_null_and_comes_back():
    moved = PlanChanged(1.0, 2, 1, (1, 1), (2, 0), "trial", "", math.nan, 0.25)
    line = to_json(moved)
    assert json.loads(line)["predicted_hz"] is None
    assert math.isnan(from_json(line).predicted_hz)

    culprit = from_json(to_json(Attributed(1.0, 0, "GPU", (Culprit(7, "train", math.nan),)))).culprits[0]
    assert (culprit.pid, culprit.name) == (7, "train")
    assert math.isnan(culprit.share)

    timing = StageTiming(0, 0, 2, 0.1, 0.2, 0.3, 0.0, 0.0, (math.nan, 0.5))
    done = from_json(to_json(RequestDone(1.0, RequestTimeline(0, 0, 0.5, 1.0, (timing,)))))
    assert math.isnan(done.timeline.stages[0].layer_s[0])
    assert done.timeline.stages[0].layer_s[1] == 0.5


def test_an_event_of_a_newer_writer_without_new_fields_still_has_its_defaults():
    line = '{"event":"load","at_s":1.0,"name":"a","load":"cpu","on":"cpu:1","intensity":1.0}'
    assert from_json(line) == LoadChanged(1.0, "a", "cpu", "cpu:1", 1.0, 0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        "7",
        "null",
        "{}",
        '{"event":"party","at_s":1.0}',
        '{"event":["run"]}',
        '{"event":"end","at_s":1.0}',
        '{"event":"policy","at_s":1.0,"policy":"lls","extra":1}',
        '{"event":"request","at_s":1.0,"timeline":[1,2]}',
        '{"event":"request","at_s":1.0,"timeline":[1,0,0.5,1.0,[[0,0,2]]]}',
        '{"event":"attribution","at_s":1.0,"stage":0,"interference":"GPU","culprits":[{"pid":1}],"note":""}',
    ],
)
def test_what_is_no_event_is_refused(line):
    with pytest.raises(ValueError, match="not an event of an ODIN log"):
        from_json(line)


def test_another_version_is_refused():
    line = to_json(EVENTS[0]).replace('"version":1', '"version":2')
    with pytest.raises(ValueError, match=r"version 2, not odin-log 1"):
        from_json(line)
