"""What runs apart leaves nothing in this process, and its result and its errors arrive as they are."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from loads import wait_for

from odin.cluster.apart import run_apart
from odin.stages.device import Device, DeviceError


def test_it_is_another_process_which_ends():
    def double(array: np.ndarray, *, times: int) -> tuple[int, np.ndarray]:
        return os.getpid(), array * times

    pid, array = run_apart(double, np.arange(100_000.0), times=2)
    assert pid != os.getpid()
    assert np.array_equal(array, 2 * np.arange(100_000.0))
    wait_for(lambda: not psutil.pid_exists(pid), what="the process ends")


def test_an_error_keeps_its_type_and_its_text():
    def parse(text: str) -> Device:
        return Device.parse(text)

    with pytest.raises(DeviceError, match=r"^'cpu:x' is not a device") as raised:
        run_apart(parse, "cpu:x")
    assert type(raised.value) is DeviceError


def test_a_process_that_dies_is_told_with_what_it_said():
    def die() -> None:
        os.write(2, b"out of luck")
        os._exit(7)

    with pytest.raises(RuntimeError, match=r"die ended with status 7: out of luck"):
        run_apart(die)


def test_what_cannot_be_sent_back_is_an_error():
    def lock() -> object:
        import threading

        return threading.Lock()

    with pytest.raises(RuntimeError, match="cannot pickle"):
        run_apart(lock)


def test_arrays_are_not_copied_when_they_arrive_and_cannot_be_written():
    def flags(array: np.ndarray) -> tuple[bool, np.ndarray]:
        return array.flags.writeable, array

    writeable, array = run_apart(flags, np.zeros(1000))
    assert not writeable
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def import_both() -> tuple[bool, str]:
        import random

        import only_here

        return hasattr(random, "Random"), only_here.NAME

    (tmp_path / "random.py").write_text("")  # the current folder's, which nobody here would import
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "only_here.py").write_text("NAME = 'found'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    assert run_apart(import_both) == (True, "found")
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.setattr("sys.path", ["", *sys.path[1:]])  # as in an interactive session
    assert run_apart(import_both) == (True, "found")


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_logged_there_is_logged_here(caplog: pytest.LogCaptureFixture, fails: bool):
    def tell() -> None:
        import logging

        logging.getLogger("odin.startup").info("took %d s", 3)
        logging.getLogger("odin.partitioner.graph").debug("of no interest")
        logging.getLogger("another.library").error("of no interest")
        if fails:
            raise ValueError("in vain")

    caplog.set_level(logging.INFO, logger="odin.startup")
    with pytest.raises(ValueError, match="in vain") if fails else contextlib.nullcontext():
        run_apart(tell)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("odin.startup", "took 3 s")]
    caplog.clear()
    caplog.set_level(logging.WARNING, logger="odin.startup")
    with pytest.raises(ValueError, match="in vain") if fails else contextlib.nullcontext():
        run_apart(tell)
    assert not caplog.records


CALLER = """
import os, signal, sys
from odin.cluster.apart import run_apart

def linger(told, end):
    import tempfile, time
    with tempfile.TemporaryDirectory() as folder:
        print(os.getpid(), folder, file=open(told, "w"), flush=True)
        if end == "itself":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

try:
    run_apart(linger, *sys.argv[1:])
except (RuntimeError, KeyboardInterrupt):
    pass
"""


@pytest.mark.parametrize("end", ["itself", "interrupted", "killed"])
def test_temporary_files_are_gone_whoever_is_killed(tmp_path: Path, end: str):
    told = tmp_path / "told"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(told), end], env=environment, start_new_session=True)
    try:
        if end != "itself":
            wait_for(lambda: told.exists() and told.read_text().endswith("\n"), what="the function runs")
            assert Path(told.read_text().split()[1]).is_relative_to(tmp_path)
            if end == "killed":
                caller.kill()
            else:
                os.killpg(caller.pid, signal.SIGINT)
        caller.wait(60)
        wait_for(lambda: [path.name for path in tmp_path.iterdir()] == ["told"], what="the files are removed")
        pid = int(told.read_text().split()[0])
        wait_for(lambda: not psutil.pid_exists(pid), what="the process ends")
    finally:
        caller.kill()
        caller.wait()
