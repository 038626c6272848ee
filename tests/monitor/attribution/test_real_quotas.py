"""Real CPU quotas, where this process may set them: nobody is told to compete with a stage that a quota stops."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PROMPT_S

from odin.monitor.attribution.kind import Interference, classify
from odin.monitor.attribution.neighbours import find_neighbours
from odin.monitor.machine.throttling import cpu_stat_files
from odin.monitor.timing import StageTiming
from odin.stages.device import usable_cores

_WORK = """
import os, sys, time
from odin.stages.compute.executor import RunDelay
os.sched_setaffinity(0, {int(sys.argv[1])})
delay = RunDelay()
while True:
    wall_s, cpu_s, delay_s = time.perf_counter(), time.thread_time(), delay.read_s()
    while time.thread_time() < cpu_s + 0.02:
        pass
    print(time.perf_counter() - wall_s, time.thread_time() - cpu_s, delay.read_s() - delay_s, flush=True)
"""
"""A stage whose requests take 20 ms of CPU time each; it prints their wall, CPU and run-queue seconds."""


class Group:
    """A control group with a quota, of either version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version_2 = (folder / "cpu.max").exists()
        # Whatever else this machine does is to matter little: the group has the largest weight there is.
        name, weight = ("cpu.weight", "10000") if self._version_2 else ("cpu.shares", "262144")
        (folder / name).write_text(weight)

    def limit(self, quota_us: int, period_us: int) -> None:
        if self._version_2:
            (self.folder / "cpu.max").write_text(f"{quota_us} {period_us}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(period_us))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us))

    def add(self, process: subprocess.Popen[str]) -> None:
        (self.folder / "cgroup.procs").write_text(str(process.pid))


class Stage:
    """The process, and what it has printed."""

    def __init__(self, core: int) -> None:
        self.core = core
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORK, str(core)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )

    def timings(self, count: int) -> list[StageTiming]:
        assert self.process.stdout is not None
        rows = [[float(word) for word in self.process.stdout.readline().split()] for _ in range(count)]
        return [StageTiming(0, 0, 1, 0.0, wall_s, cpu_s, delay_s, 0.0, (wall_s,)) for wall_s, cpu_s, delay_s in rows]

    def told(self) -> Interference:
        """What is told of it now; an undisturbed request computes for 20 ms."""
        self.timings(30)  # it is at work
        pid = self.process.pid
        seen = find_neighbours("cpu", [self.core], stage_pid=pid, own_pids=[pid])
        now = self.timings(60)[-40:]  # three periods of a second at least
        before = [StageTiming(0, 0, 1, 0.0, 0.02, 0.02, 0.0, 0.0, (0.02,))] * 20
        return classify(before, now, throttled_share=seen.stopped_cores, others_share=seen.report.others_share)


@pytest.fixture
def group() -> Iterator[Group]:
    folder = _make_folder()
    try:
        yield Group(folder)
    except OSError as error:
        pytest.skip(f"this process may not set a CPU quota: {error}")
    finally:
        _remove(folder)


@contextlib.contextmanager
def _stage(group: Group) -> Iterator[Stage]:
    stage = Stage(usable_cores()[-1])
    try:
        group.add(stage.process)
        yield stage
    finally:
        stage.process.kill()
        stage.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("period_us", [20_000, 1_000_000])
def test_a_quota_is_told_as_throttling_whatever_its_period(group, period_us):
    group.limit(period_us // 4, period_us)
    with _stage(group) as stage:
        found = stage.told()
    assert found.kind == "throttling", found.shares
    assert dict(found.parts).get("CPU share", 0.0) < 0.25


@pytest.mark.slow
def test_a_competitor_within_a_quota_that_is_not_used_up_is_told_as_such(group):
    group.limit(300_000, 100_000)
    with _stage(group) as stage, _stage(group):
        found = stage.told()
    assert found.kind == "CPU share", found.shares


def _make_folder() -> Path:
    for parent in {file.parent: None for file in cpu_stat_files()}:
        folder = parent / f"odin-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / "cpu.max").exists() or (folder / "cpu.cfs_quota_us").exists():
                return folder
            _remove(folder)
    pytest.skip("this process may not make a control group with a CPU quota")


def _remove(folder: Path) -> None:
    for _ in range(int(PROMPT_S / 0.05)):  # the kernel takes a moment to let go of a process that has ended
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} is left behind")
