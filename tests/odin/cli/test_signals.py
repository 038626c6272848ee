"""How commands end by a signal.

What happened: SIGTERM aborted ``odin run`` with a native stack trace (exit 134) and without a summary, since Ray puts
its handlers in the place of the program's and aborts three seconds later; one that a script started in its background
ignored Ctrl-C until it served; and timeout(1), which signals the whole process group, took Ray's processes away before
anything could be finished.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from loads import command as command_line
from patience import PROMPT_S
from PIL import Image

from odin.cli.main import main
from odin.process.signals import Signals, Stopped, draining, held, importing
from odin.stages.device import usable_cores

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def left() -> list[int]:
    """Statuses with which the process would have been left at once."""
    return []


@pytest.fixture
def signals(left) -> Iterator[Signals]:
    """Handled in this process; every signal comes a second after the last."""
    with Signals(clock=itertools.count().__next__, leave=left.append) as signals:
        yield signals


def send(number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)


# ---------------------------------------------------------------- what each signal does
@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_one_ends_what_starts(signals, number):
    with pytest.raises(Stopped) as stopped:
        send(number)
    assert stopped.value.status == signals.status == 128 + number


@pytest.mark.parametrize("number", NUMBERS)
def test_while_requests_flow_the_first_stops_feeding_and_the_second_drops(signals, number):
    with draining() as drain:
        assert not drain.is_set()
        send(number)
        assert drain.is_set()
        with pytest.raises(Stopped):
            send(signal.SIGTERM)
    assert signals.status == 128 + number  # the first one says why


def test_what_is_being_ended_is_not_disturbed_and_a_third_one_leaves_at_once(signals, left):
    with pytest.raises(Stopped):
        send()
    send()
    assert left == []
    send()
    assert left == [143]


def test_after_requests_flowed_all_is_being_ended(signals, left):
    with draining():
        pass
    send()
    assert signals.status == 143
    assert left == []


def test_one_signal_sent_twice_at_once_is_one(left):
    with Signals(clock=lambda: 0.0, leave=left.append), draining() as drain:
        send()
        send()  # as timeout(1) does: to the process, and to its group
        assert drain.is_set()


def test_held_until_the_end_of_the_block(signals):
    done = []

    def work() -> None:
        with held():
            send()
            done.append("whole")

    with pytest.raises(Stopped):
        work()
    assert done == ["whole"]


def test_what_came_and_was_caught_by_somebody_ends_it_before_requests_flow(signals):
    """Such as a bare except around an import; a caught exception must not be the end of the matter."""
    signals._number, signals._state = signal.SIGTERM, "running"
    with pytest.raises(Stopped), draining():
        pytest.fail("nothing may begin")


def test_during_imports_the_process_is_left_at_once(signals, left):
    with importing():
        send(signal.SIGINT)
    assert left == [130]


def test_an_exception_that_python_drops_comes_again(signals, capsys):
    class Sends:
        def __del__(self) -> None:
            send()

    def work() -> None:
        Sends()
        threading.Event().wait(PROMPT_S)

    with pytest.raises(Stopped):
        work()
    assert capsys.readouterr().err == ""
    assert signals.status == 143


def test_ignored_sigint_is_handled_and_ignored_sighup_is_not():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
            for number in (signal.SIGINT, signal.SIGTERM):
                assert callable(signal.getsignal(number))
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in NUMBERS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_another_thread_nothing_is_handled():
    before = signal.getsignal(signal.SIGTERM)

    def look() -> None:
        with Signals() as signals, draining() as drain, held(), importing():
            assert signal.getsignal(signal.SIGTERM) is before
            assert Signals.current is None
            assert not drain.is_set()
            assert signals.status is None

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()


def test_main_gives_handlers_back(capsys):
    before = [signal.getsignal(number) for number in NUMBERS]
    assert main(["run", "resnet18", "--input", "/nowhere"]) == 2
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert Signals.current is None


@pytest.mark.slow
def test_output_to_a_terminal_that_is_gone_goes_nowhere():
    """In a process of its own, in a terminal that is closed: the exit status is the signal's, not that of its print."""
    code = """
import sys, time
from odin.process.signals import Signals, draining
with Signals() as signals, draining() as drain:
    print("ready", flush=True)
    while not drain.is_set():
        time.sleep(0.01)
    print("summary", flush=True)
    print("summary", file=sys.stderr, flush=True)
    sys.exit(signals.status)
"""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    output = b""
    while b"ready" not in output:
        output += os.read(descriptor, 1000)
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129


# ---------------------------------------------------------------- Ray
@pytest.mark.ray
def test_ray_leaves_the_programs_handlers_alone():
    """In a process of its own. Ray's own SIGTERM handler, and its C++ one that aborts, are not to be seen."""
    code = """
import os, signal
from odin.cluster.ray_runtime import RayRuntime
got = []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
runtime = RayRuntime()
os.kill(os.getpid(), signal.SIGTERM)
runtime.close()
os.kill(os.getpid(), signal.SIGTERM)
assert got == [signal.SIGTERM] * 2, got
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=4 * PROMPT_S)
    assert (done.returncode, done.stderr) == (0, "")


def folder_of_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


class Command:
    """``odin run`` without end in a process group of its own, started as by a script in its background."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results.jsonl"
        images = folder / "images"
        images.mkdir()
        words = ["run", "test_run:tiny", "--input", str(folder_of_images(images)), "--repeat", "1000000"]
        words += ["--stages", f"cpu:{usable_cores()[0]}", "--output", str(self.results)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "ODIN_LEASE_DIR": str(folder / "leases"),
            "ODIN_TEST_MARK": str(folder),
        }
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "odin.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 3 * PROMPT_S
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)  # polling another process: there is no event to wait for

    def family(self) -> list[psutil.Process]:
        """Processes that it started, wherever they belong to by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mark = f"ODIN_TEST_MARK={self.folder}".encode()
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    found.append(process)
        return found

    def end(self) -> tuple[int, str]:
        """Exit status and what it printed; nothing of it may be left."""
        output, _ = self.process.communicate(timeout=3 * PROMPT_S)
        psutil.wait_procs(self.family(), timeout=PROMPT_S)
        assert self.family() == []
        assert "Traceback" not in output
        assert "***" not in output  # as native stack traces begin
        return self.process.returncode, output

    def records(self) -> list[dict[str, object]]:
        text = self.results.read_text()
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def command(tmp_path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.process.kill()
    command.process.communicate()


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_drains_and_tells(command, number):
    command.wait_for(lambda: command.results.exists() and command.results.stat().st_size > 1000)
    os.killpg(command.process.pid, number)
    status, output = command.end()
    assert status == 128 + number
    assert "interrupted: " in output
    records = command.records()
    assert records
    assert not [record for record in records if "error" in record]  # what was in flight was finished


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "running"),
    [
        (signal.SIGINT, lambda names: True),
        (signal.SIGTERM, lambda names: "gcs_server" in names),
        (signal.SIGTERM, lambda names: "ray::StageActor" in names),
    ],
    ids=["at once", "Ray starts", "stages start"],
)
def test_a_signal_while_it_starts(command, number, running):
    command.wait_for(lambda: handles(command))
    command.wait_for(lambda: running(" ".join(command_line(process) for process in command.family())))
    command.process.send_signal(number)
    status, _ = command.end()
    assert status == 128 + number


def handles(command: Command) -> bool:
    """Whether it has begun to handle signals: before that it is Python that starts."""
    text = Path(f"/proc/{command.process.pid}/status").read_text()
    caught = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
