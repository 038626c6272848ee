"""The picture of a pipeline: exact lines at given sizes, and no line ever longer than it may be."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from synthetic_run import START_S, interference, many_stages, run_started

from odin.monitor.events import Attributed, Culprit, PlanChanged, RequestFailed, RunStarted, SlowdownChanged
from odin.monitor.view.builder import EventLine, ViewBuilder
from odin.monitor.view.screen import Picture, plain, render
from odin.monitor.view.sparkline import ASCII, UNICODE, calm_top, chart, per_cell, sparkline, thin_out
from odin.monitor.view.stage_table import bar, stage_lines
from odin.monitor.view.textfit import clean, fit, fit_end, pad, wrap

DATA = Path(__file__).parents[2] / "data"
SIZES = [(80, 24), (120, 30), (200, 60), (40, 10)]


def view_at(events, at_s, **options):
    builder = ViewBuilder()
    for event in events:
        if event.at_s <= START_S + at_s:
            builder.apply(event)
    return builder.view(START_S + at_s, **options)


def lines(view, width, height, **options):
    return [line.rstrip() for line in render(view, width=width, height=height, **options).plain.split("\n")]


@pytest.fixture(scope="module")
def disturbed():
    """Layers have moved away from stage 1, which is 2.1 times as slow as alone; 40 s into the run."""
    return view_at(interference(layer_s=0.01, end=False), 40.0, in_flight=4)


def test_80_by_24(disturbed):
    assert lines(disturbed, 80, 24, keys="q quit   p pause", status="paused") == [
        " resnet50  12|6  filter                             409 done  4 in flight  0:40",
        "",
        " throughput          ███████████████▂╌▁▁▁",
        " 7.94/s              ████████████████████",
        " ╌ bound 8.20/s 97%  ████████████████████",
        " p50 239 ms          ▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▆▅▅▅▅",
        " p99 359 ms          ▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▇▅▅▅▅",
        "",
        " stage    layers 0-17                  time     alone  slowdown     queue  busy",
        " 0 cpu:0  ━━━━━━━━━━━━━━━╸───────    120 ms    120 ms      1.0x   50.4 ms   95%",
        " 1 cpu:1  ───────────────╺━━━━━━━    126 ms   60.0 ms    ! 2.1x   50.4 ms  100%",
        "          └ disturbed: CPU share, pid 4242 stress-ng 50%",
        " injected: cpu on cpu:1 at 100%",
        "",
        " events",
        "     0.0 s  started: resnet50 on 2 stages, 9|9",
        "    30.0 s  load: cpu on cpu:1 at 100%",
        "    31.1 s  detected: stage 1 cpu:1 2.1x",
        "    31.1 s  cause: CPU share on stage 1, pid 4242 stress-ng 50%",
        "    31.1 s  moved 9|9 -> 12|6 in 2 ms, expecting 8.33/s (stage 1 is slow)",
        "    32.6 s  got 8.17/s (expected 8.33/s)",
        "",
        "",
        " q quit   p pause                                                        paused",
    ]


def test_200_by_60_has_everything_in_the_row(disturbed):
    drawn = lines(disturbed, 200, 60)
    assert len(drawn) == 60
    [heading] = [line for line in drawn if line.startswith(" stage")]
    assert re.split(r"  +", heading.strip()) == [
        "stage", "layers 0-17", "from ... to", "time", "alone", "slowdown", "queue", "busy", "state", "cause",
    ]  # fmt: skip
    [row] = [line for line in drawn if line.startswith(" 1 cpu:1")]
    assert row.endswith(
        "  126 ms   60.0 ms    ! 2.1x   50.4 ms  100%  ━━━━━━  disturbed  CPU share, pid 4242 stress-ng 50%"
    )
    assert "layer12 ... layer17" in row
    assert not any("└" in line for line in drawn)
    assert drawn[2].startswith(" throughput")
    assert "latency p50 239 ms" in drawn[2]
    assert len([line for line in drawn if re.match(r" +\d+\.\d s  ", line)]) == 6


def test_40_by_10_shows_what_matters(disturbed):
    assert lines(disturbed, 40, 10) == [
        " resnet50  12|6  filter            0:40",
        " 7.94/s of 8.20 █████████████▇▆▅▆▆▆▆▆▆▆",
        " p50 239 ms  p99 359 ms",
        " stage    layers         time  slowdown",
        " 0 cpu:0  ━━━━━━───    120 ms      1.0x",
        " 1 cpu:1  ──────━━━    126 ms    ! 2.1x",
        "          └ disturbed: CPU share, pid",
        "            4242 stress-ng 50%",
        "    31.1 s  moved 9|9 -> 12|6 in 2 ms, …",
        "    32.6 s  got 8.17/s (expected 8.33/s)",
    ]


@pytest.fixture(scope="module")
def crowded():
    """The same with long names, three culprits, latencies of seconds, and one second of strange figures."""
    story = []
    culprits = Culprit(4242, "stress-ng-cpu", 0.5), Culprit(4243, "python3 train.py", 0.31)
    for event in interference(layer_s=0.01, end=False):
        if isinstance(event, RunStarted):
            stages = (msgspec.structs.replace(one, device=f"node-of-the-lab-7/{one.device}") for one in event.stages)
            event = msgspec.structs.replace(event, stages=tuple(stages))
        elif isinstance(event, Attributed):
            more = (*culprits, Culprit(4244, "firefox-esr", 0.12))
            event = msgspec.structs.replace(event, culprits=more, note="others are hidden")
        story.append(event)
    view = view_at(story, 40.0, in_flight=4)
    throughput_hz, p99_s = list(view.history.throughput_hz), list(view.history.latency_p99_s)
    throughput_hz[10], p99_s[12] = 400.0, 12.3
    history = msgspec.structs.replace(view.history, throughput_hz=tuple(throughput_hz), latency_p99_s=tuple(p99_s))
    return msgspec.structs.replace(view, latency_p50_s=9.876, latency_p99_s=9.999, history=history)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_that_tells_is_cut_off(crowded, width):
    """At 200 columns the unit of ``latency p50 9,876 ms`` and most of the cause were cut off, at 60 the events."""
    drawn = lines(crowded, width, 30, keys="q quit   p pause")
    assert drawn == (DATA / f"screen_{width}.txt").read_text().splitlines()
    told = " ".join(" ".join(drawn).split())
    assert all(name in told for name in ("cpu:0", "cpu:1", "9,876 ms", "9,999 ms", "12.3 s", "400/s"))
    assert "firefox-esr 12%" in told
    assert not any("…" in line for line in drawn if "…e-lab-7/cpu:" not in line)


def test_one_strange_second_does_not_flatten_the_chart(disturbed):
    """The chart's top was the highest second: all others were a flat line."""
    throughput_hz = list(disturbed.history.throughput_hz)
    calm = lines(disturbed, 80, 24)[2:5]
    throughput_hz[4] = 4000.0
    history = msgspec.structs.replace(disturbed.history, throughput_hz=tuple(throughput_hz))
    drawn = lines(msgspec.structs.replace(disturbed, history=history), 80, 24)[2:5]
    assert drawn[0].startswith(" throughput ▲ 4,000/s")
    assert drawn[0].count("▲") == 2
    assert drawn[2].count("█") >= calm[2].count("█") - 1
    assert drawn[1].count(" ") < 40


def test_of_a_device_the_end_is_kept():
    assert fit_end("very-long-host.example/cpu:0-15", 14, UNICODE) == "…mple/cpu:0-15"
    assert fit_end("node/cpu:3", 14, ASCII) == "node/cpu:3"
    assert cell_len(fit_end("名前名前/cpu:3", 8, UNICODE)) <= 8
    assert fit_end("abc", 1, UNICODE) == fit_end("abc", 0, UNICODE) == ""


def test_wrap():
    assert wrap("one two three", 7, lines=3, glyphs=UNICODE) == ["one two", "three"]
    assert wrap("one two three four", 7, lines=2, glyphs=UNICODE) == ["one two", "three …"]
    assert wrap("abcdefgh ij", 5, lines=9, glyphs=UNICODE) == ["abcde", "fgh", "ij"]
    assert wrap("", 5, lines=1, glyphs=UNICODE) == []


@pytest.mark.parametrize(
    ("values", "at_least", "top"),
    [
        ([], [], 0.0),
        ([math.nan], [3.0], 3.0),
        ([10.0] * 60, [12.0], 12.0),
        ([10.0] * 59 + [14.0], [], 14.0),
        ([10.0] * 59 + [400.0], [], 15.0),
        ([10.0] * 59 + [400.0], [20.0], 30.0),
        ([400.0] + [10.0] * 58 + [math.inf], [], 15.0),
        ([10.0] * 50 + [400.0] * 10, [], 400.0),  # a level of its own
        ([0.0] * 59 + [5.0], [], 5.0),
        ([1.0, 400.0], [], 1.5),
    ],
)
def test_the_top_of_a_chart(values, at_least, top):
    assert calm_top(values, at_least=at_least) == top


def test_ascii(disturbed):
    text = render(disturbed, width=80, height=24, ascii_only=True).plain
    assert text.isascii()
    drawn = [line.rstrip() for line in text.split("\n")]
    assert " 1 cpu:1  ...............########    126 ms   60.0 ms    ! 2.1x   50.4 ms  100%" in drawn
    assert "          ` disturbed: CPU share, pid 4242 stress-ng 50%" in drawn


def test_the_end_is_said():
    drawn = lines(view_at(interference(), 1000.0), 80, 24)
    assert drawn[0].endswith("ended  1,278 done  1:24")
    assert drawn[-3] == "    84.2 s  ended: all images done"


def test_a_move_is_seen():
    events = interference(layer_s=0.01)
    before, during, after = (lines(view_at(events, at_s), 80, 24) for at_s in (20.0, 40.0, 78.0))

    def bars(drawn):
        return [line.split()[2] for line in drawn if re.match(r" \d cpu", line)]

    assert bars(before) == bars(after) == ["━━━━━━━━━━━╸───────────", "───────────╺━━━━━━━━━━━"]
    assert bars(during) == ["━━━━━━━━━━━━━━━╸───────", "───────────────╺━━━━━━━"]


def test_52_stages_at_80_by_24_shows_the_disturbed_ones():
    view = view_at(many_stages(52, disturbed=(3, 17, 40, 51)), 19.0)
    drawn = lines(view, 80, 24)
    shown = [int(match[1]) for line in drawn if (match := re.match(r" +(\d+) cpu:", line))]
    assert shown == [0, 1, 2, 3, 4, 17, 40, 51]
    assert " … 44 more: all quiet" in drawn
    assert [line.split()[0] for line in drawn if " ! " in line] == ["3", "17", "40", "51"]


def test_more_disturbed_stages_than_lines_shows_the_worst():
    view = view_at(many_stages(52, disturbed=tuple(range(52))), 19.0)
    drawn = lines(view, 80, 24)
    shown = [int(match[1]) for line in drawn if (match := re.match(r" +(\d+) cpu:", line))]
    assert shown == list(range(44, 52))  # later stages are slower
    assert " … 44 more: all disturbed" in drawn


def test_52_stages_fit_into_60_lines_of_plain_rows_or_say_what_is_hidden():
    view = view_at(many_stages(52, disturbed=(51,)), 19.0)
    drawn = lines(view, 200, 70)
    assert sum(bool(re.match(r" +\d+ cpu:", line)) for line in drawn) == 52
    assert not any("more:" in line for line in drawn)
    text = plain(view)
    assert len(re.findall(r"(?m)^ +\d+ cpu:", text)) == 52


@pytest.mark.parametrize("stages", [1, 2, 8, 52])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_nothing_is_ever_wider_or_higher_than_it_may_be(stages, ascii_only):
    events = many_stages(stages, disturbed=range(0, stages, 3))
    view = view_at(events, 19.0, in_flight=7)
    for width in (1, 8, 20, 39, 59, 60, 80, 129, 130, 150, 170, 200):
        for height in (1, 2, 7, 10, 12, 20, 24, 60):
            text = render(view, width=width, height=height, ascii_only=ascii_only, keys="q quit", status="paused")
            drawn = text.plain.split("\n")
            assert len(drawn) == height
            assert max(cell_len(line) for line in drawn) <= width


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_strange_names_break_nothing(width, height):
    run = run_started(
        (9, 9),
        model="模型\x1b[2Jx" * 9,
        policy="odin:alpha=10",
        devices=["very-long-host-name.example/cpu:0-15", "gpu:0"],
    )
    culprits = (Culprit(1, "\x1b]0;owned\x07\n名前" * 5, 0.5), Culprit(2, "[bold]no markup[/]", math.nan))
    builder = ViewBuilder()
    for event in (
        run,
        SlowdownChanged(START_S + 1, 1, 3, 1, math.inf, "onset"),
        Attributed(START_S + 1, 1, "memory", culprits, "the system hides\nothers"),
        RequestFailed(START_S + 2, 1, "ValueError: \x1b[31mred\nlines" * 10),
        PlanChanged(START_S + 3, 4, 1, (9, 9), (18, 0), "move", "\ttabs", math.nan, math.nan),
    ):
        builder.apply(event)
    view = builder.view(START_S + 4)
    for ascii_only in (False, True):
        text = render(view, width=width, height=height, ascii_only=ascii_only).plain
        assert all(character.isprintable() for character in text.replace("\n", ""))
        assert len(text.split("\n")) == height
        assert max(cell_len(line) for line in text.split("\n")) <= width
        assert not ascii_only or text.isascii()
    assert "[bold]no markup[/]" in plain(view, width=200)


def test_lost_and_empty_are_words():
    error = "StageLostError: stage 0 (cpu:0, process 77) is gone; start a new pipeline and submit again"
    events = [
        run_started((9, 9)),
        PlanChanged(START_S, 0, 1, (9, 9), (18, 0), "move", "", math.nan, math.nan),
        RequestFailed(START_S + 1, 0, error),
    ]
    drawn = lines(view_at(events, 2.0), 100, 24)
    assert [line.split()[1:] for line in drawn if re.match(r" \d cpu", line)] == [
        ["cpu:0", "━" * 24, "lost", "180", "ms", "-", "-", "-", "lost"],
        ["cpu:1", "─" * 24, "empty", "-", "1.0x", "-", "-", "empty"],
    ]


def test_colour_says_nothing_that_words_do_not(disturbed):
    """The same text with and without colour; the latter without any escape code."""

    def printed(**options):
        console = Console(file=io.StringIO(), width=80, height=24, legacy_windows=False, **options)
        console.print(Picture(disturbed))
        return console.file.getvalue()

    coloured = printed(force_terminal=True, color_system="truecolor")
    without = printed(force_terminal=False, color_system=None)
    assert "\x1b[" in coloured
    assert "\x1b" not in without
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == without
    no_color = printed(force_terminal=True, color_system="truecolor", no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", no_color)


def test_plain_is_plain(disturbed):
    text = plain(disturbed)
    assert text.startswith(" resnet50  12|6  filter")
    assert "\x1b" not in text
    assert text.endswith("got 8.17/s (expected 8.33/s)\n")
    assert max(cell_len(line) for line in text.splitlines()) <= 100
    assert max(cell_len(line) for line in plain(disturbed, width=80).splitlines()) <= 80
    assert plain(disturbed, ascii_only=True).isascii()


def test_the_last_events_are_shown(disturbed):
    events = tuple(EventLine(float(number), "policy", f"number {number}") for number in range(50))
    drawn = lines(msgspec.structs.replace(disturbed, events=events), 80, 24)
    shown = [int(line.split()[-1]) for line in drawn if "number" in line]
    assert shown == list(range(50 - len(shown), 50))
    assert len(shown) >= 6


def test_before_the_first_request():
    drawn = lines(view_at([run_started()], 0.0), 80, 24)
    assert drawn[3] == " -/s"
    assert " 0 cpu:0  ━━━━━━━━━━━╸───────────         -   90.0 ms      1.0x         -     -" in drawn


# -- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 18, "━━━━━━━━━"),
        (0, 9, "━━━━╸────"),
        (9, 18, "────╺━━━━"),
        (0, 0, "─────────"),
        (18, 18, "─────────"),
        (17, 18, "────────╺"),
    ],
)
def test_bar(first, last, expected):
    assert bar(first, last, 18, 9, UNICODE) == expected


def test_a_held_layer_is_always_seen():
    for width in (1, 5, 20):
        for first in range(200):
            assert set(bar(first, first + 1, 200, width, UNICODE)) & {"━", "╺", "╸"}


def test_bars_of_nothing():
    assert bar(0, 1, 0, 4, UNICODE) == "────"
    assert bar(0, 1, 1, 0, UNICODE) == ""
    assert bar(0, 0.5, 1, 4, ASCII) == "##.."


def test_sparkline():
    assert sparkline([0, 1, 2, 4, 8, 9, math.nan], top=8) == "▁▁▂▄█▲ "
    assert sparkline([1.0], top=0.0) == "▁"
    assert sparkline([], top=1.0) == ""


def test_chart():
    assert chart([4, 2, math.nan, 1], bounds=[4, 4, 2, 3], top=4, height=2) == ["█╌ ╌", "██╌▄"]
    assert chart([3.0], bounds=[9.0], top=4, height=2) == ["▄", "█"]  # a bound beyond the top is at the top


def test_thin_out():
    assert thin_out([1, 3, 5, 7], 2, end=4) == [2, 6]
    assert thin_out([1, 3, 5, 7], 2, end=5) == [1, 4, 7]  # groups begin at even seconds
    assert thin_out([1, math.nan, math.nan, math.nan], 2, end=4)[0] == 1
    assert math.isnan(thin_out([1, math.nan, math.nan, math.nan], 2, end=4)[1])
    assert thin_out([1, 2], 1, end=7) == [1, 2]


def test_per_cell():
    assert [per_cell(120, cells) for cells in (0, 1, 20, 40, 58, 60, 79, 100, 120, 500)] == [
        120,
        120,
        6,
        3,
        2,
        2,
        1,
        1,
        1,
        1,
    ]


def test_clean_fit_pad():
    assert clean("a\x1b[2J\n b\tc", UNICODE) == "a?[2J b c"
    assert clean("naïve 名", ASCII) == "na?ve ?"
    assert fit(Text("名前名前"), 5, UNICODE).plain == "名前…"
    assert fit(Text("名前名前"), 4, UNICODE).cell_len <= 4
    assert fit(Text("abc"), 0, UNICODE).plain == ""
    assert pad(Text("名"), 4).plain == "名  "


def test_stage_lines_without_room():
    view = view_at([run_started()], 0.0)
    assert stage_lines(view, width=80, height=0, glyphs=UNICODE) == []
    assert [line.plain for line in stage_lines(view, width=80, height=1, glyphs=UNICODE)] == [" … 2 more: all quiet"]
