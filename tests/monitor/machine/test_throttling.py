"""Throttled time from cgroup files, in made-up and recorded trees; tests/monitor/attribution has real quotas."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin.monitor.machine.throttling import ThrottleCounter, cpu_stat_files

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
        (file.parent / "cpu.max").write_text("20000 100000\n" if "_usec" in text else "")
        (file.parent / "cpu.cfs_period_us").write_text("100000\n")
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
    assert counter.period_s == 0.1
    assert counter.stopped_cores() == 0.0
    unified.write("pod/stage", V2.format(20, 9, 750_000))
    assert counter.stopped_cores() == pytest.approx(0.5)  # of ten periods of 0.1 s
    assert counter.stopped_cores() == 0.0


def test_it_is_told_of_periods_that_ended_not_of_the_time_between_two_looks(unified):
    """Within a period nothing moves; then all that it stopped the group for is there at once."""
    unified.write("pod/stage", V2.format(10, 4, 250_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    unified.write("pod/stage", V2.format(11, 5, 330_000))
    assert counter.stopped_cores() == pytest.approx(0.8)


def test_two_cores_are_stopped_at_a_time(unified):
    unified.write("pod/stage", V2.format(10, 4, 250_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    unified.write("pod/stage", V2.format(20, 14, 2_050_000))
    assert counter.stopped_cores() == pytest.approx(1.8)


def test_the_quota_of_an_outer_group_counts(unified):
    unified.write("pod", V2.format(10, 1, 100_000))
    unified.write("pod/stage", V2.format(10, 9, 900_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    unified.write("pod", V2.format(20, 5, 500_000))
    unified.write("pod/stage", V2.format(20, 10, 1_000_000))
    assert counter.stopped_cores() == pytest.approx(0.4)


def test_version_1_counts_nanoseconds(tmp_path):
    tree = Tree(
        tmp_path,
        group="9:name=systemd:/\n4:memory:/elsewhere\n2:cpu,cpuacct:/docker/4ce3\n0::/\n",
        mount="32 31 0:29 / /other rw - cgroup cgroup rw,memory\n"
        "33 31 0:30 /docker/4ce3 WHERE rw - cgroup cgroup rw,cpu,cpuacct\n",
    )
    # The container's mount shows its own group at the top.
    tree.write("", V1.format(59, 57, 6_851_413_781))
    counter = ThrottleCounter(7, proc=tree.proc)
    tree.write("", V1.format(109, 106, 10_743_886_351))
    assert counter.stopped_cores() == pytest.approx(0.778, abs=0.001)  # recorded: a quota of a fifth, 50 periods


def test_both_versions_beside_each_other(tmp_path):
    """Recorded where version 1 has the controller: version 2's file has CPU time, and nothing of a quota."""
    tree = Tree(
        tmp_path,
        group="1:cpu:/stage\n0::/stage\n",
        mount="33 31 0:30 / WHERE rw,relatime - cgroup cgroup rw,cpu\n"
        f"41 31 0:31 / {tmp_path / 'unified'!s} rw,relatime - cgroup2 cgroup2 rw\n",
    )
    (tmp_path / "unified" / "stage").mkdir(parents=True)
    usage = "usage_usec 2232010\nuser_usec 479133\nsystem_usec 1752876\nnice_usec 0\n"
    (tmp_path / "unified" / "stage" / "cpu.stat").write_text(usage)
    tree.write("stage", V1.format(59, 57, 6_851_413_781))
    tree.write("", V1.format(0, 0, 0))
    counter = ThrottleCounter(7, proc=tree.proc)
    tree.write("stage", V1.format(69, 67, 7_651_413_781))
    assert counter.stopped_cores() == pytest.approx(0.8)


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
    assert counter.stopped_cores() is None


def test_no_files_tell_nothing(unified, tmp_path):
    assert ThrottleCounter(7, proc=unified.proc).stopped_cores() is None  # no cpu.stat
    assert ThrottleCounter(8, proc=unified.proc).stopped_cores() is None  # no such process
    assert ThrottleCounter(proc=tmp_path / "nowhere").stopped_cores() is None  # not Linux


def test_a_group_that_is_gone_tells_nothing(unified):
    file = unified.write("pod/stage", V2.format(10, 4, 250_000))
    counter = ThrottleCounter(7, proc=unified.proc)
    file.unlink()
    assert counter.stopped_cores() is None
    file.write_text(V2.format(11, 5, 300_000))
    assert counter.stopped_cores() is None  # since when?
    assert counter.stopped_cores() == 0.0


def test_here():
    """Whatever this system has, asking does no harm."""
    stopped = ThrottleCounter().stopped_cores()
    assert stopped is None or stopped >= 0
