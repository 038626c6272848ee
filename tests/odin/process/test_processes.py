"""Processes of one start are found and ended, and no others."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loads import alive

from odin.process.groups import MARK_VARIABLE, ProcessGroup, start_group

pytestmark = pytest.mark.slow

# A leader that starts two children: one ordinary, one that forgets its environment as setproctitle makes it.
TREE = """
import subprocess, sys, time
sleeper = [sys.executable, "-c", "print(0, flush=True); import time; time.sleep(600)"]
children = [subprocess.Popen(sleeper, stdout=subprocess.PIPE, env=env) for env in (None, {})]
for child in children:
    child.stdout.readline()
print("ready", *(child.pid for child in children), flush=True)
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + TREE


def start(tmp_path: Path, code: str) -> tuple[ProcessGroup, list[int]]:
    log = tmp_path / "log"
    with log.open("wb") as output:
        group = start_group([sys.executable, "-c", code], environment=dict(os.environ), output=output)
    while not log.read_text().startswith("ready"):
        assert group.members()
    return group, [int(pid) for pid in log.read_text().split()[1:]]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same kind that somebody else started."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_the_whole_tree_is_found_leader_first(tmp_path: Path) -> None:
    group, children = start(tmp_path, TREE)
    assert [process.pid for process in group.members()] == [group.leader_pid, *sorted(children)]
    assert group.end(grace_s=1.0) == ()


def test_end_leaves_others_alone(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    group, children = start(tmp_path, TREE)
    assert group.end(grace_s=1.0) == ()
    assert group.members() == ()
    assert alive(children) == []
    assert stranger.poll() is None


def test_what_a_killed_leader_left_is_still_found(tmp_path: Path) -> None:
    group, children = start(tmp_path, TREE)
    leader = psutil.Process(group.leader_pid)
    leader.kill()
    leader.wait()
    assert [process.pid for process in group.members()] == sorted(children)
    assert group.end(grace_s=1.0) == ()


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    group, _ = start(tmp_path, STUBBORN)
    told: list[str] = []
    assert group.end(grace_s=0.3, notify=told.append) == ()
    assert "are killed" in told[-1]


def test_a_reused_process_id_is_not_ours(stranger: subprocess.Popen[bytes]) -> None:
    created_s = psutil.Process(stranger.pid).create_time()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ProcessGroup("none", stranger.pid, created_s - 3600.0, boot_id).members() == ()


def test_nothing_survives_a_reboot(tmp_path: Path) -> None:
    group, _ = start(tmp_path, TREE)
    try:
        assert dataclasses.replace(group, boot_id="another").members() == ()
    finally:
        assert group.end(grace_s=1.0) == ()


def test_this_process_never_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK_VARIABLE, "mine")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    created_s = psutil.Process().create_time()
    group = ProcessGroup("mine", os.getpid(), created_s, boot_id)
    assert os.getpid() not in [process.pid for process in group.members()]
