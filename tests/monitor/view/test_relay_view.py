"""The view of a relay: every request has cuts of its own, around those where stages take turns without waiting."""

from __future__ import annotations

import itertools
import json
import math

import msgspec
import pytest
from rich.cells import cell_len
from synthetic_run import START_S, interference, request, run_started

from odin.cli.replay import Player
from odin.cli.run_report import stage_table
from odin.monitor.eventlog import EventLog, read_log
from odin.monitor.events import Culprit, PlanChanged, SlowdownChanged, from_json, to_json
from odin.monitor.view.builder import PipelineView, Serving, ViewBuilder
from odin.monitor.view.event_text import event_text
from odin.monitor.view.screen import plain, render
from odin.monitor.view.sparkline import ASCII, UNICODE
from odin.monitor.view.stage_table import share_bar, stage_lines
from odin.monitor.view.windows_text import end_ranges, windows_text

WHOLE = "@0-18|@18"
LAYER_S = 0.01


def relayed(plans, *, slowdown=(1.0, 1.0), first=0, epoch=0):
    """A request for each plan, a tenth of a second apart."""
    return [
        request(
            number,
            START_S + 0.1 * (number + 1),
            [LAYER_S * count * slow for count, slow in zip(plan, slowdown, strict=True)],
            plan=plan,
            epoch=epoch,
        )
        for number, plan in enumerate(plans, start=first)
    ]


def turns(*plans, count):
    return list(itertools.islice(itertools.cycle(plans), count))


def built(*events, windows=WHOLE, plan=(9, 9)):
    builder = ViewBuilder()
    for event in (run_started(plan, windows=windows, policy="relay"), *events):
        builder.apply(event)
    return builder


def at(builder, count):
    return builder.view(START_S + 0.1 * count + 0.05)


def test_before_any_request_it_is_the_plan():
    view = built().view(START_S)
    assert view.windows == WHOLE
    assert [(stage.first, stage.last, stage.state) for stage in view.stages] == [(0, 9, "quiet"), (9, 18, "quiet")]
    assert [stage.last_quartiles for stage in view.stages] == [(9, 9), (18, 18)]
    assert math.isnan(view.stages[0].request_share)


def test_cuts_are_medians_and_quartiles_of_late():
    """64 requests with the cuts 6 to 13, each eight times; those before are forgotten."""
    plans = [(3, 15)] * 30 + turns(*((cut, 18 - cut) for cut in range(6, 14)), count=64)
    view = at(built(*relayed(plans)), 94)
    assert view.plan == (9, 9)
    assert [(stage.first, stage.last) for stage in view.stages] == [(0, 10), (10, 18)]
    assert [stage.last_quartiles for stage in view.stages] == [(8, 11), (18, 18)]


def test_a_stage_that_runs_other_layers_is_no_slower_for_it():
    plans = [(9, 9)] * 40 + turns((12, 6), (14, 4), count=20)
    view = at(built(*relayed(plans)), 60)
    assert [stage.slowdown for stage in view.stages] == pytest.approx([1.0, 1.0])
    assert [stage.time_s for stage in view.stages] == pytest.approx([0.13, 0.05])
    assert [stage.reference_s for stage in view.stages] == pytest.approx([0.13, 0.05])


def test_the_slowdown_is_that_of_the_layers_that_each_request_ran():
    """Its time is less than that of the plan's nine layers, and varies with the layers of each request."""
    calm = relayed([(9, 9)] * 40)
    onset = SlowdownChanged(START_S + 4.05, 1, 40, 1, 2.0, "onset")
    slow = relayed(turns((12, 6), (16, 2), (15, 3), count=20), slowdown=(1.0, 2.1), first=40)
    view = at(built(*calm, onset, *slow), 60)
    assert [stage.state for stage in view.stages] == ["quiet", "disturbed"]
    assert view.stages[1].slowdown == pytest.approx(2.1)
    assert view.fluid_bound_hz == pytest.approx((1 + 1 / 2.1) / (18 * LAYER_S))


def test_a_stage_that_is_passed_by_is_none_without_layers_by_plan():
    view = at(built(*relayed([(9, 9)] * 20 + [(18, 0)] * 20)), 40)
    assert [stage.state for stage in view.stages] == ["quiet", "bypassed"]
    assert [stage.request_share for stage in view.stages] == [1.0, 0.0]
    assert math.isnan(view.stages[1].time_s)
    sometimes = at(built(*relayed(turns((9, 9), (18, 0), (18, 0), (18, 0), count=40))), 40)
    assert [stage.state for stage in sometimes.stages] == ["quiet", "quiet"]
    assert sometimes.stages[1].request_share == 0.25
    assert sometimes.stages[1].time_s == pytest.approx(0.09)
    by_plan = at(built(*relayed([(18, 0)] * 20), windows="@18|@18", plan=(18, 0)), 20)
    assert [stage.state for stage in by_plan.stages] == ["quiet", "empty"]


def test_stages_that_run_whole_requests_in_turn_both_do_all_layers_and_none_is_passed_by():
    view = at(built(*relayed(turns((18, 0), (0, 18), count=80))), 80)
    assert "about 9|9" in plain(view)
    assert [(stage.first, stage.last, stage.last_quartiles) for stage in view.stages] == [(0, 18, (18, 18))] * 2
    assert [stage.request_share for stage in view.stages] == [0.5, 0.5]
    rows = [line.split() for line in plain(view, width=80).splitlines() if line.startswith((" 0 cpu", " 1 cpu"))]
    assert [row[3:6] for row in rows] == [["end", "180", "ms"]] * 2


def test_one_that_is_slow_and_passed_by_is_told_to_be_both():
    onset = SlowdownChanged(START_S + 2.05, 1, 20, 1, 6.0, "onset")
    view = at(built(*relayed([(9, 9)] * 20), onset, *relayed([(18, 0)] * 20, first=20)), 40)
    assert view.stages[1].state == "disturbed"
    assert view.stages[1].slowdown == 6.0
    [row] = [line for line in plain(view, width=80).splitlines() if line.startswith(" 1 cpu:1")]
    assert row.split()[2:] == ["─" * len(row.split()[2]), "-", "bypassed", "!", "6.0x", *row.split()[7:]]


def test_requests_out_of_order_are_fine():
    """Requests overtake one another: they come in the order of completion."""
    requests = relayed(turns((8, 10), (10, 8), count=40))
    numbers = [index ^ 1 for index in range(40)]
    swapped = [
        msgspec.structs.replace(event, timeline=event.timeline._replace(request=number))
        for event, number in zip(requests, numbers, strict=True)
    ]
    assert at(built(*swapped), 40) == at(built(*requests), 40)


def test_windows_change_with_a_plan():
    back = PlanChanged(START_S + 2.05, 20, 1, (9, 9), (9, 9), "migrate", "asked for", math.nan, 0.002)
    fixed = at(built(*relayed(turns((8, 10), (11, 7), count=20)), back, *relayed([(9, 9)] * 8, first=20, epoch=1)), 28)
    assert fixed.windows == ""
    assert [(stage.first, stage.last, stage.last_quartiles) for stage in fixed.stages] == [(0, 9, ()), (9, 18, ())]
    assert fixed.stages[0].time_s == pytest.approx(0.09)
    again = msgspec.structs.replace(back, windows="@4-12|@18")
    assert at(built(again, windows=""), 28).windows == "@4-12|@18"
    moment = built().view(START_S, Serving(0, 0, 0, 3, (9, 9), "@5-9|@18"))
    assert moment.windows == "@5-9|@18"


def test_windows_that_do_not_fit_are_refused():
    for windows in ("@0-18", "@0-17|@17", "0-18|18"):
        with pytest.raises(ValueError, match=r"do not fit the run's 18 layers and 2 stages|is not windows"):
            built(windows=windows)


@pytest.mark.parametrize("windows", ["", WHOLE])
def test_json_there_and_back(windows):
    view = at(built(*relayed([(9, 9)] * 20), windows=windows), 20)
    assert repr(PipelineView.from_json(view.to_json())) == repr(view)


def test_a_view_without_windows_is_read():
    """As a pipeline tells it that does not know of them yet."""
    values = json.loads(at(built(*relayed([(9, 9)] * 20), windows=""), 20).to_json())
    del values["windows"]
    for stage in values["stages"]:
        del stage["last_quartiles"], stage["request_share"], stage["layer_shares"]
    view = PipelineView.from_json(json.dumps(values))
    assert view.windows == ""
    assert plain(view) == plain(at(built(*relayed([(9, 9)] * 20), windows=""), 20))


def test_a_log_without_windows_is_read():
    run, *_ = interference(layer_s=0.01)
    values = json.loads(to_json(run))
    del values["windows"]
    assert from_json(json.dumps(values)) == run


def test_a_log_of_a_relay_is_replayed(tmp_path):
    path = tmp_path / "run.jsonl"
    with EventLog(path) as log:
        for event in (run_started(windows=WHOLE, policy="relay"), *relayed(turns((6, 12), (12, 6), count=40))):
            log.append(event)
    assert len(list(read_log(path))) == 41
    player = Player(path)
    player.advance(math.inf)
    view = player.view()
    assert (view.completed, view.windows) == (40, WHOLE)
    assert view.stages[0].last_quartiles == (6, 12)


def test_windows_are_in_every_part_of_a_log(tmp_path):
    path = tmp_path / "run.jsonl"
    moved = PlanChanged(START_S + 0.01, 0, 1, (9, 9), (9, 9), "migrate", "", math.nan, 0.0, "@3-9|@18")
    with EventLog(path, part_nbytes=4000, kept_parts=1) as log:
        for event in (run_started(), moved, *relayed([(9, 9)] * 60, epoch=1)):
            log.append(event)
            log.flush()
    builder = ViewBuilder()
    for event in read_log(path):
        builder.apply(event)
    assert builder.view(START_S + 6).windows == "@3-9|@18"


# -- texts and pictures -----------------------------------------------------------------------------------------------


def test_texts():
    run = run_started(windows=WHOLE)
    where = "requests may change hands at cuts 0-18"
    assert event_text(run, []) == f"started: resnet50 on 2 stages, {where}"
    moved = PlanChanged(0.0, 3, 1, (7, 11), (9, 9), "migrate", "asked for", math.nan, 0.002, WHOLE)
    assert event_text(moved, []) == f"from now on {where} in 2 ms (asked for)"
    moved = PlanChanged(0.0, 3, 1, (9, 9), (9, 9), "migrate", "asked for", math.nan, 0.002)
    assert event_text(moved, []) == "from now on requests change hands at the plan's cuts, 9|9 in 2 ms (asked for)"
    many = "|".join(f"@{at}-{at + 2}" for at in range(12)) + "|@14"
    assert windows_text(many) == "requests may change hands at cuts between 0 and 13"
    assert windows_text("@18") == "there is one stage, which runs all layers"
    assert end_ranges("@4|@6-9|@18") == [(4, 4), (6, 9), (18, 18)]


@pytest.mark.parametrize(
    ("shares", "unicode", "ascii_"),
    [
        ([1.0] * 6 + [0.5] * 4 + [0.0] * 10, "━━━╍╍─────", "###==....."),
        ([0.0] * 4 + [0.5] * 4 + [1.0] * 12, "──╍╍━━━━━━", "..==######"),
        ([0.0] * 4 + [1.0] * 8 + [0.0] * 8, "──━━━━────", "..####...."),
        ([0.0] * 4 + [0.1] * 8 + [0.04] * 4 + [0.02] * 4, "──━━━━╍╍──", "..####==.."),  # one of many, all alike
        ([1.0, 0.0], "━━━━━─────", "#####....."),
        ([0.0] * 20, "──────────", ".........."),
    ],
)
def test_a_bar_with_blurred_edges(shares, unicode, ascii_):
    assert share_bar(shares, 10, UNICODE) == unicode
    assert share_bar(shares, 10, ASCII) == ascii_


def test_where_a_stage_works_is_told_though_it_hands_over_early_or_never():
    """A third of the requests change hands at once, the others never: what stage 1 did is told by those that it ran."""
    view = at(built(*relayed(turns((1, 17), (18, 0), (18, 0), count=60))), 60)
    assert (view.stages[1].first, view.stages[1].last) == (1, 18)
    assert view.stages[1].layer_shares == (0.0, *[0.33] * 17)
    assert sum(view.stages[0].layer_shares) == pytest.approx(12.33, abs=0.1)
    drawn = plain(view, width=80)
    assert drawn.startswith(" resnet50  about 12|6  relay  ")
    rows = [line.split()[2] for line in drawn.splitlines() if line.startswith((" 0 cpu:0", " 1 cpu:1"))]
    assert rows == ["━╍╍╍╍╍╍╍╍╍╍╍╍╍╍╍╍╍╍╍", "─━━━━━━━━━━━━━━━━━━━"]


@pytest.fixture(scope="module")
def spread():
    """Hand-overs around layer 12, since stage 1 is twice as slow from request 40 on."""
    onset = SlowdownChanged(START_S + 4.05, 1, 40, 1, 2.0, "onset")
    slow = turns(*((cut, 18 - cut) for cut in (11, 10, 12, 12, 13, 14)), count=66)
    return at(built(*relayed([(9, 9)] * 40), onset, *relayed(slow, slowdown=(1.0, 2.0), first=40)), 106)


def test_the_edge_between_stages_is_blurred(spread):
    assert plain(spread, width=80).splitlines()[8:15] == [
        " stage    layers 0-17           hands over at      time  slowdown  busy",
        " 0 cpu:0  ━━━━━━━━━━━━╍╍──────     12 (11-13)    120 ms      1.0x  100%  ━━━━━━",
        " 1 cpu:1  ────────────╍╍━━━━━━            end    120 ms    ! 2.0x  100%  ━━━━━━",
        "          └ disturbed: cause not known yet",
        " ━ layers that a stage runs of most requests, ╍ of fewer; hands over at: median",
        " cut (quartiles), end: nowhere, it answers",
        "",
    ]
    assert plain(spread).startswith(" resnet50  about 12|6  relay  ")


def test_long_causes_leave_room_for_what_the_bars_mean(spread):
    culprits = tuple(Culprit(4000 + index, "python a_long_name.py", 0.1) for index in range(8))
    stages = tuple(
        msgspec.structs.replace(stage, state="disturbed", interference="CPU share", culprits=culprits)
        for stage in spread.stages
    )
    rows = plain(msgspec.structs.replace(spread, stages=stages), width=80).splitlines()[8:15]
    assert [row[:11] for row in rows[:5]] == [" stage    l", " 0 cpu:0  ━", "          └", " 1 cpu:1  ─", "          └"]
    assert rows[5].startswith(" ━ layers that a stage runs of most")
    assert rows[6].endswith("end: nowhere, it answers")


def test_at_the_end_of_the_chain_nothing_is_handed_over():
    """Cut 18 of 18 layers is no place to hand over at: the stage answered those requests itself."""
    text = plain(at(built(*relayed(turns((4, 14), (18, 0), (18, 0), count=64))), 64), width=80)
    assert "  end (4-end)  " in text
    assert "18)" not in text


def test_no_half_of_what_the_bars_mean(spread):
    lines = stage_lines(spread, width=80, height=5, glyphs=UNICODE)
    assert [line.plain[:11] for line in lines] == [" stage    l", " 0 cpu:0  ━", " 1 cpu:1  ─", "          └"]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 130, 200])
@pytest.mark.parametrize("height", [8, 12, 24, 50])
def test_no_line_is_too_long_at_any_size(spread, width, height, ascii_only):
    text = render(spread, width=width, height=height, ascii_only=ascii_only).plain
    assert max(map(cell_len, text.split("\n"))) <= width
    assert text.count("\n") < height
    assert ascii_only <= text.isascii()
    assert ("=" if ascii_only else "╍") in text
    assert "! 2.0x" in text


def test_a_fixed_plan_looks_as_ever():
    text = plain(at(built(*relayed([(9, 9)] * 20), windows=""), 20), width=200)
    assert not any(word in text for word in ("╍", "about", "hand"))


def test_the_report_of_a_run(spread):
    table = stage_table(spread, spread.layers)
    assert table.title == "resnet50, requests may change hands at cuts 0-18"
    assert table.caption == (
        "layers: means; from ... to, time, queue: medians over the last requests; share: busy part of the time"
    )
