"""``odin replay``: a log played at its speed, looked at once, or refused with a reason."""

from __future__ import annotations

import argparse
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PROMPT_S
from synthetic_run import interference, request, run_started

from odin.cli import replay
from odin.cli.replay import Player
from odin.monitor.events import to_json
from odin.monitor.view.builder import PipelineView
from odin.testing import FakeClock


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("logs") / "run.jsonl"
    path.write_text("".join(to_json(event) + "\n" for event in interference(layer_s=0.01)), encoding="utf-8")
    return path


def command(*arguments):
    parser = argparse.ArgumentParser()
    replay.add_parser(parser.add_subparsers())
    return replay.run(parser.parse_args(["replay", *map(str, arguments)]))


def test_the_end_as_text(log, capsys):
    assert command(log, "--once", "--width", 80) == 0
    out = capsys.readouterr().out
    assert out.startswith(" resnet50  9|9  filter ")
    assert out.endswith("ended: all images done\n")
    assert max(map(len, out.splitlines())) <= 80


def test_a_moment_as_text(log, capsys):
    assert command(log, "--once", "--at", 40) == 0
    out = capsys.readouterr().out
    assert out.startswith(" resnet50  12|6  filter ")
    assert "disturbed: CPU share, pid 4242 stress-ng 50%" in out
    assert out.endswith("got 8.17/s (expected 8.33/s)\n")


def test_json(log, capsys):
    assert command(log, "--json", "--at", 40) == 0
    view = PipelineView.from_json(capsys.readouterr().out)
    assert (view.plan, view.uptime_s, view.ended) == ((12, 6), 40.0, None)
    assert command(log, "--json") == 0
    assert PipelineView.from_json(capsys.readouterr().out).ended == "all images done"
    assert command(log, "--json", "--at", 1e9) == 0
    assert PipelineView.from_json(capsys.readouterr().out).ended == "all images done"


def test_played_at_its_speed(log):
    clock = FakeClock(50.0)
    player = Player(log, speed=4.0, clock=clock)
    assert player().uptime_s == 0.0
    clock.now_s += 2.5
    assert player().uptime_s == pytest.approx(10.0)
    player.press(" ")
    clock.now_s += 100
    view = player()
    assert view.uptime_s == pytest.approx(10.0)
    assert player.status() == "paused   replay x4"
    player.press(" ")
    player.press("up")
    clock.now_s += 1
    assert player().uptime_s == pytest.approx(18.0)
    assert player.status() == "replay x8"
    player.press("down")
    player.press("down")
    player.press("down")
    assert player.status() == "replay x1"
    clock.now_s += 1000
    assert player().ended == "all images done"


def test_jumps(log):
    player = Player(log, clock=FakeClock(50.0))
    player.press("right")
    player.press("right")
    view = player()
    assert view.uptime_s == pytest.approx(20.0)
    player.press("right")
    player.press("left")
    again = player()
    assert again.uptime_s == pytest.approx(20.0)
    assert again.to_json() == view.to_json()
    for _ in range(5):
        player.press("left")
    assert player().uptime_s == 0.0


def test_a_log_without_an_end_ends_where_it_ends(log, tmp_path):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(log.read_bytes()[:20_000])
    player = Player(cut, clock=FakeClock(50.0))
    assert player().ended is None
    player.advance(1e9)
    view = player()
    assert view.ended.startswith(f"the log ends without the run's end: {cut}: the last line (")
    assert view.uptime_s < 100

    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"\n".join(log.read_bytes().split(b"\n")[:50]) + b"\n")
    player = Player(whole, clock=FakeClock(50.0))
    player.advance(1e9)
    assert player().ended == "the log ends without the run's end: the run was killed, or goes on"


def test_a_command_tells_of_a_cut_off_log_without_python_s_frills(log, tmp_path):
    cut, page = tmp_path / "cut.jsonl", tmp_path / "page.html"
    cut.write_bytes(log.read_bytes()[:20_000])
    words = [sys.executable, "-m", "odin", "report", str(cut), "--output", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    (told,) = [line for line in done.stderr.splitlines() if "cut off" in line]
    assert told.startswith(f"odin: {cut}: the last line (")
    assert "Warning" not in done.stderr
    assert "warn(" not in done.stderr


def test_a_log_of_a_run_alone(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(to_json(run_started()) + "\n")
    player = Player(path, clock=FakeClock(50.0))
    player.advance(1e9)
    assert (player().completed, player().uptime_s) == (0, 0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "is empty"),
        ("nonsense\n", "line 1: not an event"),
        (to_json(run_started()) + "\nnonsense\n", "line 2: not an event"),
        (to_json(run_started()).replace('"plan":[9,9]', '"plan":[9,8]') + "\n", "does not spread 18 layers"),
        (
            to_json(run_started()) + "\n" + to_json(request(0, 1000.5, (0.1,) * 3, plan=(6, 6, 6))) + "\n",
            "a stage beyond the run's 2",
        ),
    ],
)
@pytest.mark.parametrize("how", ["--once", "--json"])
def test_bad_files_are_refused_by_name(tmp_path, content, message, how):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        command(path, how)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [("--speed", 0), ("--speed", "nan"), ("--speed", "fast"), ("--at", -1), ("--at", "nan"), ("--at", "inf")],
)
def test_wrong_numbers(log, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command(log, *arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--width", 0), ("--height", -3), ("--width", 10**9)])
def test_wrong_sizes(log, arguments):
    with pytest.raises(ValueError, match=f"{arguments[0]} {arguments[1]}: give a number"):
        command(log, "--once", *arguments)


SCRIPT = """
import argparse, sys
from odin.cli import replay
parser = argparse.ArgumentParser()
replay.add_parser(parser.add_subparsers())
sys.exit(replay.run(parser.parse_args(["replay", *sys.argv[1:]])))
"""


@pytest.mark.slow
def test_without_a_terminal_the_events_are_printed(log):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log), "--speed", "1024"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROMPT_S,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "      0.0 s  started: resnet50 on 2 stages, 9|9"
    assert lines[-1].endswith("s  ended: all images done")
    assert len(lines) == 11


@pytest.mark.slow
def test_on_a_terminal_it_pauses_jumps_and_quits(log):
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(PYTHONPATH=str(Path(__file__).parents[3]), TERM="xterm", COLUMNS="80", LINES="24")
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT, str(log), "--at", "25", "--speed", "0.001"])
    try:
        deadline_s, output = time.monotonic() + PROMPT_S, b""

        def read_until(text):
            nonlocal output
            while text not in output:
                assert select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))[0], output
                output += os.read(descriptor, 65536)

        read_until(b"replay x0.001")
        read_until(b"0:25")
        os.write(descriptor, b" ")
        read_until(b"paused")
        os.write(descriptor, b"\x1b[C")
        read_until(b"0:35")
        read_until(b"12|6")
        os.write(descriptor, b"q")
        read_until(b"\x1b[?1049l")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = None
    finally:
        if pid is not None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(descriptor)
