import io
import math

import msgspec
from rich.console import Console
from synthetic_run import START_S, run_started

from odin.cli.run_report import RunReport, RunTally, render_report
from odin.errors import DeadlineExceededError
from odin.monitor.view.builder import StageView, ViewBuilder
from odin.requests.stream import Outcome

NAN = math.nan


def rendered(renderable):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_tally():
    tally = RunTally()
    for latency_s in (0.1, 0.2, 0.3):
        tally.add(Outcome("x", value=1, latency_s=latency_s))
    tally.add(Outcome("x", error=ValueError("no")))
    report = tally.report(elapsed_s=1.5)
    assert (report.completed, report.failed, report.ending) == (3, 1, "done")
    assert (report.throughput_hz, report.latency_p50_s) == (2.0, 0.2)
    assert 0.29 < report.latency_p99_s <= 0.3


def test_deadlines_kept_missed_and_refused():
    tally = RunTally()
    for _ in range(6):
        tally.add(Outcome("x", value=1, latency_s=0.1))
    tally.add(Outcome("x", error=DeadlineExceededError("late")))
    for _ in range(2):
        error = DeadlineExceededError.of_refusal(predicted_s=0.3, left_s=0.2, ahead=1)
        tally.add(Outcome("x", error=error))
    report = tally.report(elapsed_s=2.0)
    assert (report.completed, report.failed, report.late, report.refused) == (6, 3, 1, 2)
    builder = ViewBuilder()
    builder.apply(run_started((2, 1), model="net"))
    names = ["a", "b", "c"]
    shown = rendered(render_report(report, builder.view(START_S), names, deadline_ms=200.0))
    assert shown[2] == "deadline 200 ms: 6 in time, 1 late, 2 refused; goodput 3.00 images/s"
    assert not any("deadline" in line for line in rendered(render_report(report, builder.view(START_S), names)))


def test_nothing_done():
    report = RunTally().report(elapsed_s=0.0, ending="interrupted")
    assert math.isnan(report.throughput_hz)
    assert math.isnan(report.latency_p50_s)
    assert report.ending == "interrupted"


def test_rendering():
    def stage(index, device, first, last, *, time_s=0.0587, queue_s=0.00412, utilisation=0.874):
        return StageView(index, device, "n", 1, first, last, "quiet", time_s, time_s, 1.0, queue_s, utilisation)

    builder = ViewBuilder()
    builder.apply(run_started((2, 1, 0), model="net", devices=["cpu:0", "cpu:1", "cpu:2-3"]))
    view = msgspec.structs.replace(
        builder.view(START_S),
        stages=(
            stage(0, "cpu:0", 0, 2),
            stage(1, "cpu:1", 2, 3),
            stage(2, "cpu:2-3", 3, 3, time_s=NAN, queue_s=NAN, utilisation=0.0),
        ),
    )
    report = RunReport(9, 2, 4.5, 0.1234, 0.2, 1.2, ending="interrupted")
    lines = rendered(render_report(report, view, ["conv1", "layer1.0", "fc"]))
    assert lines == [
        "interrupted: 9 images in 4.5 s, 2 failed",
        "throughput 2.00 images/s, latency p50 123 ms, p95 200 ms, p99 1200 ms",
        "net, plan 2|1|0",
        "",
        "  stage   device    layers   from ... to             time   share     queue",
        " ───────────────────────────────────────────────────────────────────────────",
        "  0       cpu:0          2   conv1 ... layer1.0   58.7 ms     87%   4.12 ms",
        "  1       cpu:1          1   fc                   58.7 ms     87%   4.12 ms",
        "  2       cpu:2-3        0   -                          -       -         -",
        "",
        "time, queue: medians over the last requests; share: busy part of the time",
    ]


def test_60_columns_are_enough():
    """Names of layers took the room of all other columns: they were a letter wide."""
    builder = ViewBuilder()
    builder.apply(run_started((2, 1), model="net", devices=["node-of-the-lab-7/cpu:0", "cpu:1"]))
    view = builder.view(START_S)
    stages = (
        StageView(0, "node-of-the-lab-7/cpu:0", "n", 1, 0, 2, "quiet", 9.876, 9.9, 1.0, 0.00412, 0.874),
        StageView(1, "cpu:1", "n", 1, 2, 3, "quiet", 0.0587, 0.0587, 1.0, 0.00412, 0.874),
    )
    report = RunReport(9, 2, 4.5, 0.1234, 0.2, 12.2)
    names = ["features.denseblock1.denselayer1.conv1", "features.denseblock4.norm", "classifier.fc"]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(render_report(report, msgspec.structs.replace(view, stages=stages), names))
    assert [line.rstrip() for line in console.export_text().splitlines()][5:] == [
        "  stage   device        layers      time   share     queue",
        " ──────────────────────────────────────────────────────────",
        "  0       node-of-the        2   9876 ms     87%   4.12 ms",
        "          -lab-7/cpu:",
        "          0",
        "  1       cpu:1              1   58.7 ms     87%   4.12 ms",
        "",
        "time, queue: medians over the last requests; share: busy",
        "part of the time",
    ]
