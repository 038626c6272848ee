"""Reading /proc: a made-up one with the odd things that real ones contain, and the real one of this process."""

from __future__ import annotations

import os
import threading
import time

import pytest

from odin.monitor.machine.procfs import CoreTimes, ProcessTimes, ProcFs, ThreadTimes

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def stat_line(pid, name, *, parent=1, flags=0, user=0, system=0, children=(0, 0), threads=1, start=100, core=0):
    """A line of /proc/PID/stat, whose fields proc(5) numbers from 1."""
    fields = ["0"] * 52
    fields[0], fields[1], fields[2], fields[3] = str(pid), f"({name})", "S", str(parent)
    fields[8], fields[13], fields[14] = str(flags), str(user), str(system)
    fields[15], fields[16] = map(str, children)
    fields[19], fields[21], fields[38] = str(threads), str(start), str(core)
    return " ".join(fields) + "\n"


@pytest.fixture
def root(tmp_path):
    for pid in ("1", "42", "43", "self"):
        (tmp_path / pid).mkdir()
    (tmp_path / "1" / "stat").write_text(stat_line(1, "init", parent=0))
    odd = stat_line(
        42, "a b) S (c", user=150, system=50, children=(7, 3), threads=2, start=900, core=3, flags=0x00400000
    )
    (tmp_path / "42" / "stat").write_text(odd)
    (tmp_path / "42" / "cmdline").write_bytes(b"/opt/a b) S (c\0--fast\0\0")
    for thread, user, core in ((42, 20, 3), (44, 180, 1)):
        (tmp_path / "42" / "task" / str(thread)).mkdir(parents=True)
        (tmp_path / "42" / "task" / str(thread) / "stat").write_text(stat_line(thread, "worker", user=user, core=core))
    (tmp_path / "43" / "stat").write_text(stat_line(43, "kworker/0:1", parent=2, flags=0x04208060, core=0))
    (tmp_path / "43" / "cmdline").write_bytes(b"")
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 10 20 300 5 1 2 7 50 0\ncpu3 0 0 0 400 0 0 0 0 0 0\nintr 7 0\nctxt 3\n"
    )
    return tmp_path


def test_processes(root):
    found = ProcFs(root).processes()
    assert sorted(found) == [1, 42, 43]
    assert found[42] == ProcessTimes(
        name="a b) S (c",
        parent=1,
        start=900,
        cpu_s=pytest.approx(200 * TICK_S),
        children_s=pytest.approx(10 * TICK_S),
        threads=2,
        core=3,
    )
    assert found[43].name == "[kworker/0:1]"


def test_threads(root):
    expected = {42: ThreadTimes(pytest.approx(20 * TICK_S), 3), 44: ThreadTimes(pytest.approx(180 * TICK_S), 1)}
    assert ProcFs(root).threads(42) == expected
    assert ProcFs(root).threads(999) == {}


def test_cores(root):
    # Guests' time is in the users' already; waiting for a disk is idle.
    times = CoreTimes(*(pytest.approx(ticks * TICK_S) for ticks in (130, 3, 7, 445)))
    assert ProcFs(root).cores() == {0: times, 3: CoreTimes(0, 0, 0, pytest.approx(400 * TICK_S))}


def test_commands(root):
    proc = ProcFs(root)
    assert proc.command(42) == ("/opt/a b) S (c", "--fast")
    assert proc.command(43) == ()
    assert proc.command(999) == ()


def test_a_process_that_ends_while_it_is_read_is_left_out(root):
    (root / "42" / "stat").unlink()
    assert sorted(ProcFs(root).processes()) == [1, 43]


def test_without_proc_nothing_is_known(tmp_path):
    proc = ProcFs(tmp_path / "nowhere")
    assert (proc.processes(), proc.cores(), proc.threads(1), proc.command(1)) == ({}, {}, {}, ())
    assert proc.hidden() == ""


def test_containers_hide_processes(root):
    (root / "self" / "ns").mkdir()
    (root / "self" / "ns" / "pid").symlink_to("pid:[4026532901]")
    assert ProcFs(root).hidden() == "processes that this container cannot see"


@pytest.mark.parametrize(
    ("options", "user", "hides"),
    [
        ("rw,hidepid=2", 1000, True),
        ("rw,hidepid=invisible,gid=5", 1000, True),
        ("rw,hidepid=0", 1000, False),
        ("rw", 1000, False),
        ("rw,hidepid=2", 0, False),
    ],
)
def test_mount_options_hide_processes(root, monkeypatch, options, user, hides):
    (root / "self" / "ns").mkdir()
    (root / "self" / "ns" / "pid").symlink_to("pid:[4026531836]")
    (root / "self" / "mounts").write_text(f"/dev/sda / ext4 rw 0 0\nproc /proc proc {options} 0 0\n")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("hidepid" in ProcFs(root).hidden()) == hides


def test_this_process():
    proc = ProcFs()
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        now, threads = proc.processes()[os.getpid()], proc.threads(os.getpid())
    finally:
        release.set()
        thread.join()
    assert now.parent == os.getppid()
    assert now.threads >= 2
    assert {os.getpid(), thread.native_id} <= threads.keys()
    assert now.cpu_s <= time.process_time() + 2 * TICK_S  # the file tells it in ticks, twice
    assert now.core in proc.cores()
    assert proc.affinity(os.getpid()) == os.sched_getaffinity(0)
    assert "pytest" in " ".join(proc.command(os.getpid()))
    assert now.core not in proc.siblings(now.core)


def test_affinity_of_what_has_ended_is_unknown():
    assert ProcFs().affinity(2**22 + 1) is None
