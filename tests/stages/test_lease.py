"""Leases: nobody gets a device that another holds, and none stays taken by the dead."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
from channels import SPAWN, child
from descriptors import open_descriptors
from patience import PROMPT_S

from odin.stages.device import Device, DeviceError
from odin.stages.lease import Lease, free_indices, refuse_taken_devices

CORE = Device("cpu", (1,))


def hold(ready: Connection, text: str, share: bool, directory: Path) -> None:
    lease = Lease(Device.parse(text), label="pipeline resnet50", share=share, directory=directory)
    ready.send("held")
    ready.recv()
    lease.release()
    ready.send("released")
    threading.Event().wait()


@pytest.mark.slow
def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path):
    ours, theirs = SPAWN.Pipe()
    with child(hold, theirs, "cpu:1", False, tmp_path) as process:
        assert ours.recv() == "held"
        for share in (False, True):
            with pytest.raises(DeviceError) as caught:
                Lease(CORE, label="mine", share=share, directory=tmp_path)
            remedy = (
                "close that pipeline, or start it so that it shares, too"
                if share
                else "close that pipeline, or let both share it (share_devices=True, --share-devices)"
            )
            assert str(caught.value) == (
                f"cpu:1 is in use by pid {process.pid}, pipeline resnet50; choose another device, {remedy}"
            )
        assert free_indices("cpu", range(4), directory=tmp_path) == [0, 2, 3]
        ours.send("release")
        assert ours.recv() == "released"
        Lease(CORE, label="mine", directory=tmp_path).release()


@pytest.mark.slow
def test_the_lease_of_a_killed_process_is_free(tmp_path: Path):
    ours, theirs = SPAWN.Pipe()
    with child(hold, theirs, "cpu:1", False, tmp_path) as process:
        assert ours.recv() == "held"
        os.kill(process.pid, signal.SIGKILL)
        process.join(PROMPT_S)
        with Lease(CORE, label="mine", directory=tmp_path):
            assert free_indices("cpu", [1], directory=tmp_path) == []
    assert free_indices("cpu", [1], directory=tmp_path) == [1]


@pytest.mark.slow
def test_those_who_share_hold_it_together_and_keep_others_out(tmp_path: Path):
    ours, theirs = SPAWN.Pipe()
    with child(hold, theirs, "cpu:1", True, tmp_path):
        assert ours.recv() == "held"
        with Lease(CORE, label="mine", share=True, directory=tmp_path):
            assert free_indices("cpu", [1], directory=tmp_path) == []
            with pytest.raises(DeviceError, match=f"in use by pid {os.getpid()}, mine"):
                Lease(CORE, label="third", directory=tmp_path)


def test_a_device_of_several_cores_is_taken_whole_or_not_at_all(tmp_path: Path):
    with Lease(Device("cpu", (2,)), label="one", directory=tmp_path):
        before = open_descriptors()
        with pytest.raises(DeviceError, match="cpu:2 is in use by"):
            Lease(Device("cpu", (0, 1, 2, 3)), label="four", directory=tmp_path)
        assert free_indices("cpu", range(4), directory=tmp_path) == [0, 1, 3]
        assert open_descriptors() == before


def test_kinds_are_apart(tmp_path: Path):
    with Lease(Device("gpu", (1,)), label="gpu", directory=tmp_path), Lease(CORE, label="cpu", directory=tmp_path):
        assert free_indices("gpu", [0, 1], directory=tmp_path) == [0]


def test_release_can_be_repeated(tmp_path: Path):
    lease = Lease(CORE, label="mine", directory=tmp_path)
    lease.release()
    lease.release()
    assert free_indices("cpu", [1], directory=tmp_path) == [1]


def test_who_only_looks_does_not_get_others_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Lease(CORE, label="create the file", directory=tmp_path).release()
    looking = os.open(tmp_path / "cpu-1", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    pauses_s: list[float] = []

    def stop_looking(pause_s: float) -> None:
        pauses_s.append(pause_s)
        if len(pauses_s) == 3:
            os.close(looking)

    monkeypatch.setattr("odin.stages.lease.time", SimpleNamespace(sleep=stop_looking, monotonic=time.monotonic))
    with Lease(CORE, label="mine", directory=tmp_path):
        assert pauses_s == [0.01] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="others do not believe a folder that is not root's")
def test_files_are_usable_by_other_users(tmp_path: Path):
    directory = tmp_path / "leases"
    Lease(CORE, label="mine", directory=directory).release()
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert (directory / "cpu-1").stat().st_mode & 0o777 == 0o666


def test_stages_of_a_program_that_was_killed_are_given_time_to_end(tmp_path: Path):
    """Who started again at once after ``kill -9`` was refused its own cores, which its old stages held for a moment."""
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    lease = Lease(CORE, label=f"pipeline resnet50 of process {gone}", directory=tmp_path)
    timer = threading.Timer(0.3, lease.release)
    timer.start()
    refuse_taken_devices([CORE], directory=tmp_path)  # waits
    timer.join()
    with (
        Lease(CORE, label=f"pipeline resnet50 of process {os.getpid()}", directory=tmp_path),
        pytest.raises(DeviceError, match=f"cpu:1 is in use by .* of process {os.getpid()}"),
    ):
        refuse_taken_devices([CORE], directory=tmp_path)


def compute(ready: Connection, directory: Path) -> None:
    lease = Lease(CORE, label="pipeline resnet50", share=True, directory=directory)
    lease.company.computes(True)
    ready.send("computes")
    threading.Event().wait()


@pytest.mark.slow
def test_who_computes_on_a_shared_core_is_seen_until_it_is_killed(tmp_path: Path):
    ours, theirs = SPAWN.Pipe()
    with (
        Lease(CORE, label="mine", share=True, directory=tmp_path) as lease,
        child(compute, theirs, tmp_path) as process,
    ):
        assert ours.recv() == "computes"
        assert lease.company.beside
        lease.company.computes(True)
        os.kill(process.pid, signal.SIGKILL)
        process.join(PROMPT_S)
        assert not lease.company.beside  # itself is nobody beside it
    lease.company.computes(False)  # there is nothing left to say
    assert Lease(CORE, label="mine", directory=tmp_path).company is None
