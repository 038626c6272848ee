"""Control groups from made-up file trees: version 1, version 2, both; nested, in containers, and with files missing.

What happened: page cache counted as used memory, so that a container that had read its own model file refused to start
a pipeline; only the group at the top of the mount was looked at, never the process's own; and ``auto`` made 64 stages
on 64 cores where a quota allowed the time of two.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from odin.cluster.placement import _cores_to_take, warn_of_quotas
from odin.control.local_profile import local_devices, type_of
from odin.monitor.machine.cgroups import available_memory_nbytes, cpu_quota_cores, group_folders
from odin.stages.actor import NodeDevices, StageActor, StageInfo
from odin.stages.device import Device, allowed_core_count, thread_count
from odin.stages.host import available_nbytes

GIB = 2**30
NO_LIMIT = "9223372036854771712"


class Host:
    """A made-up /proc and mounts of control groups below it.

    Parameters
    ----------
    groups
        Lines of /proc/self/cgroup.
    mounts
        (root, folder, type, options) of each mount of control groups.
    """

    def __init__(self, folder: Path, groups: list[str], mounts: list[tuple[str, str, str, str]]) -> None:
        self.proc, self.folder = folder / "proc", folder
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text("".join(f"{group}\n" for group in groups))
        lines = ["22 27 0:21 / /proc rw,relatime - proc proc rw", "a line that is none"]
        lines += [
            f"31 23 0:28 {root} {folder / where} rw,nosuid shared:9 - {kind} cgroup {options}"
            for root, where, kind, options in mounts
        ]
        (self.proc / "self" / "mountinfo").write_text("".join(f"{line}\n" for line in lines))

    def write(self, group: str, **files: str) -> None:
        """Write files of a group; ``__`` in a name stands for a dot."""
        (self.folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / group / name.replace("__", ".")).write_text(f"{text}\n")

    @property
    def memory(self) -> int | None:
        return available_memory_nbytes(proc=self.proc)

    @property
    def quota(self) -> float | None:
        return cpu_quota_cores(proc=self.proc)


def version_2(folder: Path, group: str = "/pod/stage", root: str = "/") -> Host:
    return Host(folder, [f"0::{group}"], [(root, "v2", "cgroup2", "rw,nsdelegate")])


def version_1(folder: Path, group: str = "/docker/4ce3", root: str = "/") -> Host:
    groups = [f"9:memory:{group}", "4:name=systemd:/elsewhere", f"2:cpu,cpuacct:{group}", "0::/"]
    return Host(folder, groups, [(root, "memory", "cgroup", "rw,memory"), (root, "cpu", "cgroup", "rw,cpu,cpuacct")])


# ---------------------------------------------------------------- memory
def test_files_in_the_page_cache_are_available(tmp_path):
    host = version_2(tmp_path)
    host.write(
        "v2/pod/stage",
        memory__max=8 * GIB,
        memory__current=7 * GIB,
        memory__stat=f"anon {GIB}\ninactive_file {3 * GIB}\nactive_file {2 * GIB}\nslab_reclaimable {GIB // 2}",
    )
    assert host.memory == GIB + 5 * GIB + GIB // 2


def test_shared_memory_is_not(tmp_path):
    """The kernel counts it under "file" as well, but no room comes of it: it is on no list of files."""
    host = version_2(tmp_path)
    stat = f"file {5 * GIB}\nshmem {5 * GIB}\ninactive_anon {5 * GIB}\ninactive_file 0\nactive_file 0"
    host.write("v2/pod/stage", memory__max=8 * GIB, memory__current=5 * GIB, memory__stat=stat)
    assert host.memory == 3 * GIB


def test_version_1_counts_the_groups_within(tmp_path):
    host = version_1(tmp_path)
    host.write(
        "memory/docker/4ce3",
        memory__limit_in_bytes=8 * GIB,
        memory__usage_in_bytes=7 * GIB,
        memory__stat=f"inactive_file 1\nactive_file 1\ntotal_inactive_file {2 * GIB}\ntotal_active_file {GIB}",
    )
    assert host.memory == 4 * GIB


def test_version_1_tells_the_limit_of_groups_out_of_sight(tmp_path):
    host = version_1(tmp_path, root="/docker/4ce3")
    stat = f"hierarchical_memory_limit {2 * GIB}"
    host.write("memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=GIB, memory__stat=stat)
    assert host.memory == GIB


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"pod/stage": 5, "pod": 9, "": "max"}, 4),  # its own
        ({"pod/stage": 9, "pod": 5, "": "max"}, 3),  # that of the pod, in which others run as well
        ({"pod/stage": "max", "pod": "max"}, None),
        ({"pod": 5}, 3),  # its own tells nothing
    ],
)
def test_the_tightest_of_all_groups_counts(tmp_path, limits, left):
    host = version_2(tmp_path)
    for group, limit in limits.items():
        used = {"pod/stage": 1, "pod": 2, "": 3}[group]
        host.write(f"v2/{group}", memory__max=limit if limit == "max" else limit * GIB, memory__current=used * GIB)
    assert host.memory == (None if left is None else left * GIB)


def test_a_high_mark_is_a_limit(tmp_path):
    """Above memory.high the kernel stops the group's processes to take memory back: it might as well be the end."""
    host = version_2(tmp_path)
    host.write("v2/pod/stage", memory__max=8 * GIB, memory__high=4 * GIB, memory__current=GIB)
    assert host.memory == 3 * GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    host = version_2(tmp_path)
    host.write("v2/pod/stage", memory__max=GIB, memory__current=2 * GIB, memory__stat="inactive_file 5")
    assert host.memory == 0


def test_both_versions_beside_each_other(tmp_path):
    """As systemd's hybrid layout has it: controllers in version 1, an empty version 2 for its own bookkeeping."""
    host = Host(
        tmp_path,
        ["9:memory:/job", "2:cpu,cpuacct:/job", "1:name=systemd:/job", "0::/job"],
        [
            ("/", "memory", "cgroup", "rw,memory"),
            ("/", "cpu", "cgroup", "rw,cpu,cpuacct"),
            ("/", "systemd", "cgroup", "rw,xattr,name=systemd"),
            ("/", "unified", "cgroup2", "rw"),
        ],
    )
    host.write("memory/job", memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=GIB)
    host.write("cpu/job", cpu__cfs_quota_us=250_000, cpu__cfs_period_us=100_000)
    host.write("unified/job", cgroup__procs="")
    assert host.memory == 2 * GIB
    assert host.quota == 2.5


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "max", "1e9"])
def test_files_that_tell_nothing_are_passed_over(tmp_path, text):
    host = version_2(tmp_path)
    host.write("v2/pod/stage", memory__max=text, memory__current=GIB, cpu__max=text)
    assert host.memory is None
    assert host.quota is None
    host.write("v2/pod", memory__max=4 * GIB, memory__current=GIB, memory__stat=f"{text}\n{text} {text}")
    assert host.memory == 3 * GIB


def test_without_control_groups_the_machine_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert available_nbytes(proc=tmp_path / "none") == GIB
    host = version_2(tmp_path)
    host.write("v2/pod/stage", memory__max=GIB, memory__current=GIB // 4)
    assert available_nbytes(proc=host.proc) == GIB - GIB // 4
    host.write("v2/pod/stage", memory__max=8 * GIB)
    assert available_nbytes(proc=host.proc) == GIB


def test_here():
    """Whatever this machine has, the answer is a number of bytes that it may have."""
    assert 0 < available_nbytes() <= psutil.virtual_memory().total


# ---------------------------------------------------------------- where a group is
@pytest.mark.parametrize(
    ("group", "root", "folders"),
    [
        ("/pod/stage", "/", ["pod/stage", "pod", ""]),
        ("/", "/", [""]),  # a container with a namespace of its own
        ("/docker/4ce3", "/docker/4ce3", [""]),  # a container of version 1: its part of the hierarchy is mounted
        ("/docker/4ce3/inner", "/docker/4ce3", ["inner", ""]),
        ("/kubepods/pod1/4ce3", "/kubepods/other", [""]),  # its name outside; the mount shows what it has inside
        ("/", "/docker/4ce3", [""]),
        ("/../..", "/", []),  # moved out of the namespace: nothing of it is mounted
        ("/../sibling", "/", []),
        ("/../..", "/../..", [""]),  # mounted before the namespace was made
        ("/../../x/y", "/../..", ["x/y", "x", ""]),
        ("/", "/../..", [""]),  # two groups below, of unknown names; the one at the top allows no less
        ("/../x", "/../..", [""]),
        ("/pod/stage (deleted)", "/", ["pod/stage (deleted)", "pod", ""]),
    ],
)
def test_where_a_group_is(tmp_path, group, root, folders):
    host = version_2(tmp_path, group, root)
    expected = tuple(tmp_path / "v2" / folder for folder in folders)
    assert group_folders("memory", proc=host.proc) == expected


def test_the_mount_that_shows_most_is_read(tmp_path):
    mounts = [("/pod", "part", "cgroup2", "rw"), ("/", "all", "cgroup2", "rw"), ("/other", "no", "cgroup2", "rw")]
    host = Host(tmp_path, ["0::/pod/stage"], mounts)
    assert group_folders("cpu", proc=host.proc) == tuple(tmp_path / "all" / x for x in ("pod/stage", "pod", ""))


# ---------------------------------------------------------------- CPU quota
@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"pod/stage": "200000 100000"}, 2.0),
        ({"pod/stage": "max 100000"}, None),
        ({"pod/stage": "400000 100000", "pod": "150000 100000", "": "max 100000"}, 1.5),
        ({"pod/stage": "max 100000", "pod": "50000 50000"}, 1.0),
        ({"pod/stage": "1000 100000"}, 0.01),
        ({"pod/stage": "100000 0"}, None),
        ({}, None),
    ],
)
def test_quota_of_version_2(tmp_path, files, quota):
    host = version_2(tmp_path)
    for group, text in files.items():
        host.write(f"v2/{group}", cpu__max=text)
    assert host.quota == quota


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"docker/4ce3": (200_000, 100_000)}, 2.0),
        ({"docker/4ce3": (-1, 100_000)}, None),
        ({"docker/4ce3": (-1, 100_000), "docker": (300_000, 100_000), "": (-1, 100_000)}, 3.0),
        ({}, None),
    ],
)
def test_quota_of_version_1(tmp_path, files, quota):
    host = version_1(tmp_path)
    for group, (quota_us, period_us) in files.items():
        host.write(f"cpu/{group}", cpu__cfs_quota_us=quota_us, cpu__cfs_period_us=period_us)
    assert host.quota == quota


@pytest.mark.parametrize(
    ("text", "count"), [("200000 100000", 2), ("290000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_as_many_cores_as_the_quota_allows(tmp_path, monkeypatch, text, count):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    host = version_2(tmp_path)
    host.write("v2/pod/stage", cpu__max=text)
    assert allowed_core_count(proc=host.proc) == count


@pytest.mark.parametrize(
    ("device", "text", "count"),
    [
        ("cpu:0-3", "200000 100000", 2),
        ("cpu:0-3", "290000 100000", 2),
        ("cpu:0-3", "50000 100000", 1),
        ("cpu:0-3", "800000 100000", 4),
        ("cpu:0-3", "max 100000", 4),
        ("cpu:2", "200000 100000", 1),
        ("gpu:0", "max 100000", 1),
    ],
)
def test_a_stage_has_no_more_threads_than_cores_and_quota_allow(tmp_path, device, text, count):
    host = version_2(tmp_path)
    host.write("v2/pod/stage", cpu__max=text)
    assert thread_count(Device.parse(device), proc=host.proc) == count


@pytest.mark.parametrize(("quota_us", "count"), [(300_000, 3), (-1, 4), (5_000, 1)])
def test_the_same_under_version_1(tmp_path, quota_us, count):
    host = version_1(tmp_path)
    host.write("cpu/docker/4ce3", cpu__cfs_quota_us=quota_us, cpu__cfs_period_us=100_000)
    assert thread_count(Device.parse("cpu:0-3"), proc=host.proc) == count


def test_a_stage_computes_and_is_profiled_with_that_number(monkeypatch):
    monkeypatch.setattr("odin.stages.device.cpu_quota_cores", lambda **_: 2.5)
    monkeypatch.setattr(StageActor, "_end_with_parent", lambda stage: None)  # nobody starts it, and so ends its watch
    stage = StageActor(0, "cpu:0-3", "a test", share=True, precision="float32")
    assert stage.threads() == 2
    assert type_of(Device.parse("cpu:0-3")).startswith("cpu x2 ")


def test_auto_takes_no_more_cores_than_that(monkeypatch):
    monkeypatch.setattr("odin.control.local_profile.usable_cores", lambda: tuple(range(64)))
    monkeypatch.setattr("odin.control.local_profile.allowed_core_count", lambda: 2)
    assert local_devices(layer_count=100) == (Device("cpu", (0,)), Device("cpu", (1,)))


def node(free: tuple[int, ...], *, allowed: int) -> NodeDevices:
    return NodeDevices("n", "host", "cpu", tuple(range(64)), free, (), (), allowed)


def test_auto_leaves_the_quota_of_pipelines_that_run(monkeypatch):
    everything = tuple(range(64))
    assert _cores_to_take(node(everything, allowed=64)) == everything
    assert _cores_to_take(node(everything[5:], allowed=64)) == everything[5:]
    assert _cores_to_take(node(everything, allowed=2)) == (0, 1)
    assert _cores_to_take(node(everything[1:], allowed=2)) == (1,)
    assert _cores_to_take(node(everything[3:], allowed=2)) == ()


def test_cores_named_beyond_the_quota_are_allowed_and_warned_of():
    info = StageInfo(0, "cpu:0", "cpu x1", 1, "n", "host", quota_cores=2.0)
    placed = [(Device("cpu", (core,)), "n") for core in range(3)]
    with pytest.warns(UserWarning, match=r"stages on host have 3 cores \(0-2\), but a CPU quota of 2 CPUs holds there"):
        warn_of_quotas(placed, [info])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_quotas(placed[:2], [info])
        warn_of_quotas(placed, [info._replace(quota_cores=None)])
        warn_of_quotas([(Device("cpu", (0, 1)), "n")] * 3, [info])  # shared cores count once
        warn_of_quotas([(Device("gpu", (0,)), "n")] * 3, [info])


def test_a_stage_of_more_cores_than_the_quota_is_told_to_compute_with_fewer_threads():
    info = StageInfo(0, "cpu:0-3", "cpu x2", 1, "n", "host", quota_cores=2.5)
    said = (
        r"have 4 cores \(0-3\), but a CPU quota of 2\.5 CPUs holds there: they compute with 2 threads; name fewer cores"
    )
    with pytest.warns(UserWarning, match=said):
        warn_of_quotas([(Device.parse("cpu:0-3"), "n")], [info])
    both = [(Device.parse("cpu:0-3"), "n"), (Device.parse("cpu:4"), "n")]
    with pytest.warns(UserWarning, match=r"have 5 cores \(0-4\), .* holds there: they will be throttled"):
        warn_of_quotas(both, [info])
