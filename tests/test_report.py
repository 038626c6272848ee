import io
import math

from rich.console import Console

from monitor.window import StageStatistics
from odin.report import RunReport, RunTally, render_report
from odin.snapshot import PipelineSnapshot, StageSnapshot
from odin.stream import Outcome
from partitioner.plan import Plan

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


def test_nothing_done():
    report = RunTally().report(elapsed_s=0.0, ending="interrupted")
    assert math.isnan(report.throughput_hz)
    assert math.isnan(report.latency_p50_s)
    assert report.ending == "interrupted"


def test_rendering():
    statistics = StageStatistics._make((9, 0.00412, 0.0587, 0.05, 0.0, 0.001, 0.874))
    nothing = StageStatistics._make((0, *(NAN,) * 6))
    snapshot = PipelineSnapshot(
        model="net",
        plan=Plan((2, 1, 0)),
        epoch=0,
        completed=9,
        failed=0,
        in_flight=0,
        max_in_flight=8,
        throughput_hz=NAN,
        latency_p50_s=NAN,
        latency_p95_s=NAN,
        latency_p99_s=NAN,
        stages=(
            StageSnapshot(0, "cpu:0", "n", 1, 0, 2, statistics),
            StageSnapshot(1, "cpu:1", "n", 2, 2, 3, statistics),
            StageSnapshot(2, "cpu:2-3", "n", 3, 3, 3, nothing),
        ),
    )
    report = RunReport(9, 2, 4.5, 0.1234, 0.2, 1.2, ending="interrupted")
    lines = rendered(render_report(report, snapshot, ["conv1", "layer1.0", "fc"]))
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
