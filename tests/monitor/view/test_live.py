"""The loop behind the terminal UI: keys, ends, and a terminal that is always given back as it was."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from patience import PROMPT_S
from rich.console import Console
from synthetic_run import START_S, interference, run_started

import odin.monitor.view.terminal
from odin.monitor.events import PolicyChanged, RequestFailed, RunEnded
from odin.monitor.view.builder import ViewBuilder
from odin.monitor.view.terminal import Freeze, Keyboard, keyboard, live_panel, watch

ALTERNATE, NORMAL = b"\x1b[?1049h", b"\x1b[?1049l"

WATCHER = """
import sys
from rich.console import Console
from synthetic_run import START_S, interference
from odin.monitor.view.terminal import watch
from odin.monitor.view.builder import ViewBuilder

builder, calls = ViewBuilder(), 0
events = interference(seconds=(2, 2, 2), end=sys.argv[1] == "ends")
for event in events[:50]:
    builder.apply(event)

def next_view():
    global calls
    calls += 1
    if sys.argv[1] == "breaks" and calls == 3:
        raise RuntimeError("the connection broke")
    if sys.argv[1] == "ends" and calls == 3:
        for event in events[50:]:
            builder.apply(event)
    return builder.view(START_S + 3)

print("reason:", watch(next_view, Console(), refresh_hz=20))
"""


class Terminal:
    """A process with a terminal of its own, 80 x 24."""

    def __init__(self, what, **environment):
        pid, self.descriptor = pty.fork()
        if pid == 0:
            here = Path(__file__).parents[2] / "helpers"
            os.environ.update(
                {"PYTHONPATH": f"{here}:{here.parents[1]}", "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
                | environment
            )
            os.execv(sys.executable, [sys.executable, "-c", WATCHER, what])
        self.pid = pid
        self.before = termios.tcgetattr(self.descriptor)
        self.output = b""

    def read_until(self, text):
        """Read what the process writes until ``text`` has come; fail if it does not."""
        deadline_s = time.monotonic() + PROMPT_S
        while text not in self.output:
            if not select.select([self.descriptor], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                pytest.fail(f"{text!r} did not come: {self.output!r}")
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # the process has gone, and the terminal with it
                data = b""
            if not data:
                pytest.fail(f"{text!r} did not come: {self.output!r}")
            self.output += data

    def type(self, keys):
        os.write(self.descriptor, keys)

    def modes(self):
        return termios.tcgetattr(self.descriptor)

    def wait(self):
        """Exit status of the process, everything that it wrote read."""
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:
                break
            if not data:
                break
            self.output += data
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture
def terminal():
    made = []

    def make(what, **environment):
        made.append(Terminal(what, **environment))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
def test_q_quits_and_gives_the_terminal_back(terminal):
    shown = terminal("goes on")
    shown.read_until(b"resnet50")
    assert ALTERNATE in shown.output
    assert not shown.modes()[3] & termios.ICANON
    shown.type(b"xp ")  # other keys do no harm
    shown.read_until(b"q quit")
    shown.type(b"q")
    shown.read_until(b"reason: quit")
    assert shown.modes() == shown.before
    assert shown.wait() == 0
    assert shown.output.rindex(NORMAL) > shown.output.rindex(ALTERNATE)
    assert shown.output.rindex(b"\x1b[?25h") > shown.output.rindex(b"\x1b[?25l")  # the cursor is shown again


@pytest.mark.slow
def test_ctrl_c_quits(terminal):
    shown = terminal("goes on")
    shown.read_until(b"resnet50")
    shown.type(b"\x03")
    shown.read_until(b"reason: interrupted")
    assert shown.modes() == shown.before
    assert NORMAL in shown.output
    assert shown.wait() == 0
    assert b"Traceback" not in shown.output


@pytest.mark.slow
def test_sigterm_gives_the_terminal_back(terminal):
    shown = terminal("goes on")
    shown.read_until(b"resnet50")
    os.kill(shown.pid, signal.SIGTERM)
    shown.read_until(NORMAL)
    assert shown.wait() == 128 + signal.SIGTERM
    assert b"Traceback" not in shown.output


@pytest.mark.slow
def test_the_end_leaves_the_last_picture_and_says_why(terminal):
    shown = terminal("ends")
    shown.read_until(b"reason: ended")
    assert shown.modes() == shown.before
    after = shown.output[shown.output.rindex(NORMAL) :].decode()
    assert " resnet50  9|9  filter" in after
    assert "ended: all images done\r\nreason: ended" in after
    assert shown.wait() == 0


@pytest.mark.slow
def test_an_error_comes_after_the_screen_is_left(terminal):
    shown = terminal("breaks")
    shown.read_until(b"RuntimeError: the connection broke")
    assert shown.output.index(NORMAL) < shown.output.index(b"Traceback")
    assert shown.wait() == 1


@pytest.mark.slow
def test_resizing(terminal):
    shown = terminal("goes on", COLUMNS="", LINES="")
    termios.tcsetwinsize(shown.descriptor, (24, 80))
    shown.read_until(b"alone")
    termios.tcsetwinsize(shown.descriptor, (60, 200))
    shown.read_until(b"from ... to")
    termios.tcsetwinsize(shown.descriptor, (10, 40))
    shown.read_until(b" p50 ")
    shown.type(b"q")
    shown.read_until(b"reason: quit")


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(terminal):
    shown = terminal("ends", TERM="dumb")
    shown.read_until(b"reason: ended")
    assert b"\x1b" not in shown.output
    assert b"      0.0 s  started: resnet50 on 2 stages, 9|9\r\n" in shown.output
    assert shown.output.count(b"ended: all images done") == 1


@pytest.mark.slow
def test_no_terminal_at_all():
    here = Path(__file__).parents[2] / "helpers"
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, "ends"],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROMPT_S,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "      0.0 s  started: resnet50 on 2 stages, 9|9"
    assert lines[-2].endswith("s  ended: all images done")
    assert lines[-1] == "reason: ended"
    assert "\x1b" not in done.stdout


# -- without processes ----------------------------------------------------------------------------------------------


class Keys:
    """A keyboard on which these keys are pressed, a list per picture."""

    def __init__(self, *presses):
        self.presses = list(presses)

    def wait(self, timeout_s):
        return self.presses.pop(0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def built(*events):
    builder = ViewBuilder()
    for event in (run_started(), *events):
        builder.apply(event)
    return builder


def console(**options):
    return Console(file=io.StringIO(), width=80, height=24, legacy_windows=False, **options)


def test_events_are_told_once_without_a_terminal(monkeypatch):
    monkeypatch.setattr(odin.monitor.view.terminal, "keyboard", lambda: Keys([], [], [], []))
    builder = built()
    steps = iter(
        [
            [],
            [PolicyChanged(START_S + 1, "lls")],
            [PolicyChanged(START_S + 2, "static"), RequestFailed(START_S + 3, 1, "no\x1b[31m [red]")],
            [],
            [RunEnded(START_S + 4, "done", 0, 1)],
            [],
        ]
    )

    def next_view():
        for event in next(steps):
            builder.apply(event)
        return builder.view(START_S + 5)

    out = console()
    assert watch(next_view, out) == "ended"
    assert out.file.getvalue().splitlines() == [
        "      0.0 s  started: resnet50 on 2 stages, 9|9",
        "      1.0 s  policy: lls",
        "      2.0 s  policy: static",
        "      3.0 s  failed: request 1: no?[31m [red]",
        "      4.0 s  ended: done",
    ]


@pytest.mark.parametrize("key", ["q", "Q"])
def test_quitting_by_key_stops_asking_for_views(monkeypatch, key):
    monkeypatch.setattr(odin.monitor.view.terminal, "keyboard", lambda: Keys([], ["x", key]))
    builder = built()
    calls = []
    out = console(force_terminal=True, _environ={"TERM": "xterm"})
    assert watch(lambda: calls.append(1) or builder.view(START_S), out) == "quit"
    assert len(calls) == 2


def test_freeze_holds_the_picture():
    numbers = iter(range(10))
    freeze = Freeze(lambda: next(numbers))
    assert (freeze(), freeze()) == (0, 1)
    freeze.press("p")
    assert freeze.status() == "paused"
    assert (freeze(), freeze()) == (1, 1)
    freeze.press("x")
    freeze.press(" ")
    assert (freeze.status(), freeze()) == ("", 2)


def test_keys_are_told_apart():
    reader, writer = os.pipe()
    keys = Keyboard(reader)
    assert keys.wait(0.0) == []
    os.write(writer, b"a\x1b[A\x1b[B\x1b[C\x1b[D\x1bOCq ")
    assert keys.wait(PROMPT_S) == ["a", "up", "down", "right", "left", "right", "q", " "]
    os.close(writer)
    assert keys.wait(PROMPT_S) == []
    assert keys.wait(0.0) == []  # it ended: there is nothing to read any more
    os.close(reader)


def test_what_is_no_terminal_has_no_keys(tmp_path):
    with (tmp_path / "file").open("w+") as file, keyboard(file.fileno()) as keys:
        assert keys.wait(0.0) == []
    with keyboard(987_654) as keys:
        assert keys.wait(0.0) == []


def test_a_panel_is_drawn_above_which_others_print():
    builder = built()
    drawn = threading.Event()

    def next_view():
        drawn.set()
        return builder.view(START_S)

    out = console(force_terminal=True, _environ={"TERM": "xterm"})
    with live_panel(next_view, out, refresh_hz=50, height=10):
        assert drawn.wait(PROMPT_S)
        out.print("beside")
    text = out.file.getvalue()
    assert "beside" in text
    assert "resnet50" in text
    assert ALTERNATE.decode() not in text


def test_a_panel_survives_a_view_that_cannot_be_had():
    calls = threading.Semaphore(0)

    def next_view():
        calls.release()
        raise RuntimeError("not yet")

    out = console(force_terminal=True, _environ={"TERM": "xterm"})
    with live_panel(next_view, out, refresh_hz=100):
        for _ in range(3):
            assert calls.acquire(timeout=PROMPT_S)


def test_without_a_terminal_there_is_no_panel():
    out = console()
    with live_panel(lambda: pytest.fail("nobody looks"), out):
        out.print("beside")
    assert out.file.getvalue() == "beside\n"


def test_interference_is_a_story_of_two_moves():
    """The run that the processes above show."""
    assert sum(event.kind == "plan" for event in interference(seconds=(2, 2, 2))) == 2
