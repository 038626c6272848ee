"""Throttled time from cgroup files: made-up trees, and a real quota where this process may set one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PROMPT_S

from odin.monitor.machine.throttling import ThrottleCounter, Throttling, cpu_stat_files

V2 = "usage_usec 900\nuser_usec 800\nsystem_usec 100\nnr_periods {0}\nnr_throttled {1}\nthrottled_usec {2}\n"
V1 = "nr_periods {0}\nnr_throttled {1}\nthrottled_time {2}\nnr_bursts 0\nburst_time 0\n"


class Tree:
    """A made-up /proc and cgroup mount."""

    def __init__(self, folder: Path, *, group: str, mount: str) -> None:
        self.proc = folder / "proc"
        self.mount = folder / "cgroup mount"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "7").mkdir()
        self.mount.mkdir()
        (self.proc / "7" / "cgroup").write_text(group)
        where = str(self.mount).replace(" ", "\\040")
        (self.proc / "self" / "mountinfo").write_text(mount.replace("WHERE", where))

    def write(self, group: str, text: str) -> Path:
        file = self.mount / group / "cpu.stat"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file


@pytest.fixture
def unified(tmp_path):
    return Tree(
        tmp_path,
        group="0::/pod/stage\n",
        mount="22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "31 23 0:28 / WHERE rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    )


def test_version_2_counts_microseconds(unified):
    unified.write("", "usage_usec 900\n")  # a root group has no quota
    unified.write("pod", V2.format(0, 0, 0))
    unified.write("pod/stage", V2.format(10, 4, 250_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    assert counter.read() == Throttling(10, 4, 0.25)
    assert counter.delta_s() == 0.0
    unified.write("pod/stage", V2.format(20, 9, 750_000))
    assert counter.delta_s() == pytest.approx(0.5)
    assert counter.delta_s() == 0.0


def test_the_quota_of_an_outer_group_counts(unified):
    unified.write("pod", V2.format(10, 1, 100_000))
    unified.write("pod/stage", V2.format(10, 9, 900_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    unified.write("pod", V2.format(20, 5, 500_000))
    unified.write("pod/stage", V2.format(20, 10, 1_000_000))
    assert counter.delta_s() == pytest.approx(0.4)


def test_version_1_counts_nanoseconds(tmp_path):
    tree = Tree(
        tmp_path,
        group="9:name=systemd:/\n4:memory:/elsewhere\n2:cpu,cpuacct:/docker/4ce3\n0::/\n",
        mount="32 31 0:29 / /other rw - cgroup cgroup rw,memory\n"
        "33 31 0:30 /docker/4ce3 WHERE rw - cgroup cgroup rw,cpu,cpuacct\n",
    )
    # The container's mount shows its own group at the top.
    tree.write("", V1.format(7, 5, 347_638_695))
    assert ThrottleCounter(7, proc=tree.proc).read() == Throttling(7, 5, pytest.approx(0.347638695))


def test_a_group_named_as_from_outside_is_the_mounts_root(tmp_path):
    tree = Tree(
        tmp_path,
        group="0::/kubepods/pod1/4ce3\n",
        mount="31 23 0:28 /kubepods/pod1/other WHERE rw - cgroup2 cgroup2 rw\n",
    )
    assert cpu_stat_files(7, proc=tree.proc) == (tree.mount / "cpu.stat",)


def test_a_group_beside_the_namespace_is_unknown(tmp_path):
    tree = Tree(tmp_path, group="0::/../sibling\n", mount="31 23 0:28 / WHERE rw - cgroup2 cgroup2 rw\n")
    assert cpu_stat_files(7, proc=tree.proc) == ()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "throttled_usec many\nnr_periods 1\nnr_throttled 1\n", "usage_usec 9\n"]
)
def test_files_without_the_numbers_tell_nothing(unified, text):
    unified.write("pod/stage", text)
    counter = ThrottleCounter(7, proc=unified.proc)
    assert counter.read() is None
    assert counter.delta_s() is None


def test_no_files_tell_nothing(unified, tmp_path):
    assert ThrottleCounter(7, proc=unified.proc).delta_s() is None  # no cpu.stat
    assert ThrottleCounter(8, proc=unified.proc).delta_s() is None  # no such process
    assert ThrottleCounter(proc=tmp_path / "nowhere").delta_s() is None  # not Linux


def test_a_group_that_is_gone_tells_nothing(unified):
    file = unified.write("pod/stage", V2.format(10, 4, 250_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    file.unlink()
    assert counter.delta_s() is None
    file.write_text(V2.format(11, 5, 300_000))
    assert counter.delta_s() is None  # since when?
    assert counter.delta_s() == 0.0


def test_here():
    """Whatever this system has, asking does no harm."""
    delta_s = ThrottleCounter().delta_s()
    assert delta_s is None or delta_s >= 0


@pytest.mark.slow
def test_a_real_quota():
    group, quota = _make_group()
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        try:
            (group / "cgroup.procs").write_text(str(process.pid))
            for name, value in quota.items():
                (group / name).write_text(value)
        except OSError as error:
            pytest.skip(f"this process may not set a CPU quota: {error}")
        counter = ThrottleCounter(process.pid)
        deadline_s = time.perf_counter() + PROMPT_S
        while (delta_s := counter.delta_s()) == 0.0 and time.perf_counter() < deadline_s:
            time.sleep(0.1)
        assert delta_s is not None
        assert delta_s > 0
    finally:
        process.kill()
        process.wait()
        _remove(group)


def _make_group() -> tuple[Path, dict[str, str]]:
    name = f"odin-test-{os.getpid()}"
    found = [file.parent for file in cpu_stat_files()]
    if not found:
        pytest.skip("this system has no control groups")
    for parent in found:
        for quota in (
            {"cpu.cfs_period_us": "20000", "cpu.cfs_quota_us": "2000"},
            {"cpu.max": "2000 20000"},
        ):
            group = parent / name
            try:
                group.mkdir()
            except OSError:
                continue
            if all((group / file).exists() for file in quota):
                return group, quota
            _remove(group)
    pytest.skip("this process may not make a control group with a CPU quota")


def _remove(group: Path) -> None:
    for _ in range(int(PROMPT_S / 0.05)):  # the kernel takes a moment to let go of a process that has ended
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)
    raise AssertionError(f"{group} is left behind")
