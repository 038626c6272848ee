"""``odin cost`` beside a program in place of ``odin serve``: what is started, asked, shown, kept, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from patience import PROMPT_S

from odin.cli.main import main
from odin_lab.cost.serving import serving

HELPERS = Path(__file__).parents[2] / "helpers"
FAKE = (sys.executable, str(HELPERS / "fake_odin_serve.py"))
BASE = ["--stages", "cpu:0", "--price", "0.09"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The folder in which each start is noted."""
    folder = tmp_path / "started"
    folder.mkdir()
    monkeypatch.setenv("FAKE_SERVE", str(folder))
    monkeypatch.setattr("odin_lab.commands.cost.serving", partial(serving, command=FAKE))
    return folder


def starts(folder: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def pids(folder: Path) -> list[int]:
    return [int(path.name.rpartition("-")[2]) for path in folder.glob("*-*")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("vgg16 torchvision:vgg16 --p95-ms 9", "both called 'vgg16'"),
        ("a b --p95-ms a=9", "--p95-ms a=9: no number for b"),
        ("a b --p95-times 3 --rates a=1", "--rates a=1: no number for b"),
        ("a --p95-ms 9 --seconds inf", "--seconds inf is not a finite number"),
        ("a --p95-ms 9 --seed -1", "--seed -1 is not from 0"),
        ("a --p95-ms 9 --plot x.gif", "--plot x.gif: end it in .png, .svg, .pdf"),
        ("a --p95-ms 9 --stages auto", "--stages auto: name the devices"),
    ],
)
def test_wrong_usage(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", *BASE, *words.split()]) == 2
    assert says in capsys.readouterr().err


def test_a_limit_must_be_said(capsys):
    with pytest.raises(SystemExit):
        main(["cost", "a", *BASE])
    assert "one of the arguments --p95-ms --p95-times is required" in capsys.readouterr().err


@pytest.mark.slow
def test_costs_alone_and_together(started, tmp_path, capsys):
    pytest.importorskip("mlperf_loadgen")
    file, picture = tmp_path / "o.json", tmp_path / "o.png"
    words = ["a", "b", *BASE, "--p95-ms", "60000", "--seconds", "0.3", "--trials", "1", "--rates", "a=1,b=2"]
    assert main(["cost", *words, "--engine", "torch", "--output", str(file), "--plot", str(picture)]) == 0
    kept = json.loads(file.read_text())
    first, second, both = starts(started)
    assert (list(first), list(second), list(both)) == (["a"], ["b"], ["a", "b"])
    assert both["a"] == 'source = "a"\nstages = "cpu:0"\nengine = "torch"\n'
    alone = {name: peak["best"]["parts"][name] for name, peak in kept["outcome"]["dedicated"].items()}
    together = kept["outcome"]["shared"]["best"]["parts"]
    assert together["b"]["rate_hz"] == pytest.approx(2 * together["a"]["rate_hz"])
    assert all(
        part["requests"] == part["answered"] == part["in_time"] > 0 for part in (*alone.values(), *together.values())
    )
    assert kept["dedicated_per_million"]["a"] == pytest.approx(25.0 / alone["a"]["rate_hz"])
    work = sum(together[name]["rate_hz"] / alone[name]["rate_hz"] for name in "ab")
    assert kept["work"] == pytest.approx(work)
    assert kept["shared_per_million"]["a"] == pytest.approx(kept["dedicated_per_million"]["a"] / work)
    assert kept["machines"] == [2, 1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "dedicated machines: sharing" in out
    assert not any(psutil.pid_exists(pid) for pid in pids(started))


@pytest.mark.slow
def test_a_server_that_does_not_start(started, capsys):
    pytest.importorskip("mlperf_loadgen")
    assert main(["cost", "broken", *BASE, "--p95-ms", "9"]) == 1
    assert (
        "odin serve with broken: it ended with status 1; its last words:\nthere is no model broken"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_ctrl_c_ends_all_and_shows_what_is_known(started, tmp_path):
    pytest.importorskip("mlperf_loadgen")
    program = (
        "import sys\nfrom functools import partial\nimport odin_lab.commands.cost as cost\n"
        "from odin.cli.main import main\n"
        f"cost.serving = partial(cost.serving, command={FAKE!r})\nsys.exit(main())"
    )
    file = tmp_path / "o.json"
    words = ["cost", "a", *BASE, "--p95-ms", "60000", "--seconds", "1000", "--output", str(file)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAKE_HANGS_AFTER": "40", "TMPDIR": str(tmp_path)},
    ) as process:
        end_s = time.monotonic() + PROMPT_S
        while not (started / "hangs").exists() and process.poll() is None and time.monotonic() < end_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PROMPT_S)
    assert (process.returncode, err) == (130, "")
    assert "ended early" in out
    assert json.loads(file.read_text())["outcome"]["lone_s"]["a"] > 0
    assert not any(psutil.pid_exists(pid) for pid in pids(started))
    assert not list(tmp_path.glob("odin-*"))
