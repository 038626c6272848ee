"""``odin tune``: what it refuses before anything starts, and what it shows and keeps."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from odin.cli.main import main
from odin.tuning.choice import Choice, Probe
from odin.tuning.periods import Period
from odin_lab.report.figures import write
from odin_lab.tuning.plot import tuning_plot
from odin_lab.tuning.serving import Done, Serving
from odin_lab.tuning.view import probe_table, served_lines, sweep_line

PROBES = (Probe("batch", 1, 0.010, 0.009, 110.0, 60), Probe("instances", 2, 0.020, 0.015, 130.0, 60))
SERVING = Serving(
    "batch",
    1,
    tuple(Done(0.1 * number, 0.05, 2) for number in range(1, 100)),
    (Period(2.0, 1, 5, 0.02, 40), Period(4.0, 5, 5, 0.09, 40), Period(6.0, 5, 4, 0.12, 9)),
    ((5.0, 8.0, "cpu@cpu:1*0.5"),),
    10.0,
)


def text_of(renderable: object) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense:x"], "nonsense"),
        (["resnet18", "--stages", "cpu:0,gpu:0"], "give cores of one machine, or one GPU"),
        (["resnet18", "--seconds", "-1"], "--seconds -1 is not a number"),
        (["resnet18", "--seconds", "0", "--load", "cpu@cpu:0"], "--load means nothing with --seconds 0"),
        (["resnet18", "--load", "rain@cpu:0"], "there is no load 'rain'"),
        (["resnet18", "--plot", "tune.txt"], "end it in .png, .svg, .pdf"),
        (["resnet18", "--output", "no/such/folder/x.json"], "--output"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(capsys, arguments, message):
    assert main(["tune", "--latency-ms", "100", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_limit_is_needed(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "resnet18"])
    assert "--latency-ms" in capsys.readouterr().err


def test_the_table_tells_what_keeps_the_limit_and_what_was_chosen():
    choice = Choice("instances", 2, True, "why")
    text = text_of(probe_table(PROBES, limit_s=0.015, statistic="p95", choice=choice, title="a model"))
    assert "batching" in text
    assert "no, chosen" in text
    text = text_of(probe_table(PROBES, limit_s=0.015, statistic="mean", choice=choice, title="a model"))
    assert "yes, chosen" in text


def test_what_came_of_serving():
    assert (SERVING.value, SERVING.settled_s, SERVING.throughput_hz) == (4, 2.0, 19.8)
    assert SERVING.within(0.1) == pytest.approx(4 / 6)
    lines = text_of(served_lines(SERVING, limit_s=0.1, statistic="p95"))
    assert "served 99 requests in 10 s: 19.8 samples/s" in lines
    assert "batch 1 -> 4, changed 2 times, settled after 2.0 s" in lines
    assert "p95 within 100 ms for 67% of the time" in lines
    assert "load cpu@cpu:1*0.5 from 5 to 8 s" in lines


def test_serving_that_turns_to_the_end_has_not_settled():
    assert SERVING._replace(spells=()).settled_s is None
    assert SERVING._replace(periods=()).settled_s is None


def test_how_far_the_choice_is_from_the_best():
    assert sweep_line(PROBES[1], 0.97, 2).endswith("2 instances with 130 samples/s; the tuner's 2 has 0.97 of that")


def test_the_figure_is_drawn(tmp_path):
    file = tmp_path / "tune.png"
    write(tuning_plot(SERVING, limit_s=0.1, statistic="p95", model="resnet18"), file)
    assert file.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.ray
@pytest.mark.slow
def test_the_whole_command(tmp_path, two_cores, capsys):
    """One core: batches of one and two samples, a choice, and serving until some periods have ended."""
    output = tmp_path / "tune.json"
    command = [
        "tune",
        "resnet18",
        "--latency-ms",
        "600000",
        "--stages",
        two_cores[0],
        "--batch",
        "2",
        "--requests",
        "2",
    ]
    assert main([*command, "--seconds", "4", "--period", "2", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    kept = json.loads(output.read_text())
    assert kept["why"] in out.replace("\n", " ") or kept["why"][:60] in out
    assert [(one[0], one[1]) for one in kept["probes"]] == [("batch", 1), ("batch", 2)]
    assert (kept["knob"], kept["keeps"]) == ("batch", True)
    assert kept["serving"][0] == "batch"
    assert 'source = "resnet18"' in out
