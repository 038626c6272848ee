"""Who shares a core: made-up snapshots of /proc, and real busy processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from odin.monitor.attribution.culprits import CoreWatcher, CulpritReport, Suspect, find_culprits
from odin.monitor.events import Culprit
from odin.monitor.machine.procfs import CoreTimes, ProcessTimes, ThreadTimes
from odin.stages.device import usable_cores

STAGE, GATEWAY, OTHER = 500, 501, 900


class FakeProc:
    """/proc of a machine with four cores, of which a test moves the hands."""

    tick_s = 0.01

    def __init__(self) -> None:
        self.now_s = 50.0
        self._cores = {core: [10.0, 0.0, 0.0, 100.0] for core in range(4)}
        self._processes = {}
        self._threads = {}
        self._affinity = {}
        self._commands = {}
        self.sibling_of = {}
        self.hiding = ""
        self.thread_reads = []

    def add(self, pid, name, core, *, cpu_s=0.0, parent=1, start=100, command=(), affinity=None, threads=()):
        """``threads`` are triples: thread id, CPU seconds, core."""
        self._processes[pid] = [name, parent, start, cpu_s, 0.0, max(len(threads), 1), core]
        self._threads[pid] = {thread: [used_s, on] for thread, used_s, on in threads}
        self._commands[pid] = tuple(command)
        self._affinity[pid] = affinity

    def end(self, pid):
        """It ends and its parent collects it, and the CPU time that it used."""
        _, parent, _, cpu_s, children_s, *_ = self._processes.pop(pid)
        self._threads.pop(pid)
        self._processes[parent][4] += cpu_s + children_s

    def run(self, pid, used_s, *, core=None, thread=None, seen=True):
        """Let it use a core, its last one if none is given."""
        process = self._processes[pid]
        process[3] += used_s
        if thread is not None:
            entry = self._threads[pid][thread]
            entry[0] += used_s
            core = entry[1] = entry[1] if core is None else core
        else:
            core = process[6] = process[6] if core is None else core
        self._cores[core][0] += used_s

    def use(self, core, *, processes_s=0.0, interrupts_s=0.0, steal_s=0.0):
        """Let something use a core that no process accounts for."""
        for index, used_s in enumerate((processes_s, interrupts_s, steal_s)):
            self._cores[core][index] += used_s

    def drop_core(self, core):
        del self._cores[core]

    def pass_time(self, seconds):
        self.now_s += seconds
        for times in self._cores.values():
            times[3] += seconds

    def clock(self):
        return self.now_s

    def processes(self):
        return {pid: ProcessTimes(*values) for pid, values in self._processes.items()}

    def threads(self, pid):
        self.thread_reads.append(pid)
        return {thread: ThreadTimes(*values) for thread, values in self._threads.get(pid, {}).items()}

    def cores(self):
        return {core: CoreTimes(*values) for core, values in self._cores.items()}

    def affinity(self, thread):
        return self._affinity.get(thread)

    def command(self, pid):
        return self._commands.get(pid, ())

    def siblings(self, core):
        return frozenset(self.sibling_of.get(core, ()))

    def hidden(self):
        return self.hiding


@pytest.fixture
def proc():
    fake = FakeProc()
    fake.add(1, "init", 0)
    fake.add(STAGE, "ray::Stage", 1, cpu_s=30.0, affinity={1})
    fake.add(GATEWAY, "python", 0, cpu_s=9.0)
    return fake


@pytest.fixture
def watcher(proc):
    return watch(proc)


def watch(proc, cores=(1,), **options):
    watcher = CoreWatcher(cores, own_pids=(STAGE, GATEWAY), proc=proc, clock=proc.clock, **options)
    watcher.start()
    return watcher


def test_a_process_on_the_core_is_named_with_its_share(proc):
    proc.add(OTHER, "stress-ng-cpu", 1, cpu_s=7.0, affinity={1})
    watcher = watch(proc)
    proc.run(OTHER, 0.2)
    proc.run(STAGE, 0.2)
    proc.pass_time(0.4)
    assert watcher.report() == CulpritReport((Culprit(OTHER, "stress-ng-cpu", pytest.approx(0.5)),))


def test_the_worst_comes_first_and_the_harmless_do_not_come(proc):
    used_s = {901: 0.08, 902: 0.2, 903: 0.01, 904: 0.0}
    for pid in used_s:
        proc.add(pid, f"p{pid}", 1)
    watcher = watch(proc)
    for pid, seconds in used_s.items():
        proc.run(pid, seconds)
    proc.pass_time(0.4)
    assert [(culprit.pid, culprit.share) for culprit in watcher.report().culprits] == [
        (902, pytest.approx(0.5)),
        (901, pytest.approx(0.2)),
    ]


def test_own_processes_and_rays_daemons_are_never_blamed(proc):
    proc.add(800, "raylet", 1)
    proc.add(801, "python", 1, command=("python", "/site-packages/ray/_private/log_monitor.py"))
    proc.add(802, "ray::Stage", 1)  # another pipeline's
    watcher = watch(proc)
    for pid in (STAGE, GATEWAY, 800, 801, 802):
        proc.run(pid, 0.1, core=1)
    proc.pass_time(0.5)
    assert [culprit.pid for culprit in watcher.report().culprits] == [802]


def test_kernel_threads_are_named(proc):
    proc.add(43, "[kworker/1:1]", 1, parent=2, affinity={1})
    watcher = watch(proc)
    proc.run(43, 0.1)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(43, "[kworker/1:1]", pytest.approx(0.25)),)


def test_a_process_on_another_core_is_no_culprit(proc):
    proc.add(OTHER, "busy", 2, affinity={2})
    watcher = watch(proc)
    proc.run(OTHER, 0.4)
    proc.pass_time(0.4)
    assert watcher.report().culprits == ()


def test_a_process_that_changed_its_core_counts_half(proc):
    proc.add(OTHER, "wanderer", 2)
    watcher = watch(proc)
    proc.run(OTHER, 0.4, core=1)
    proc.pass_time(0.4)
    report = watcher.report()
    assert report.culprits == (Culprit(OTHER, "wanderer", pytest.approx(0.5)),)
    assert report.suspects == ()  # it is named already


def test_affinity_says_where_it_ran_whatever_was_seen(proc):
    proc.add(OTHER, "newly pinned", 2, affinity={1})
    proc.add(901, "newly sent away", 1, affinity={3})
    watcher = watch(proc)
    proc.run(OTHER, 0.2, core=1)
    proc.run(901, 0.2, core=3)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "newly pinned", pytest.approx(0.5)),)


def test_a_process_that_has_just_been_sent_elsewhere_was_here(proc):
    proc.add(OTHER, "leaving", 1, affinity={3})
    watcher = watch(proc)
    proc.run(OTHER, 0.2)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "leaving", pytest.approx(0.5)),)


def test_threads_are_told_apart(proc):
    proc.add(OTHER, "server", 0, cpu_s=5.0, threads=((OTHER, 1.0, 0), (901, 2.0, 1), (902, 2.0, 3)))
    watcher = watch(proc)
    proc.run(OTHER, 0.1, thread=901)
    proc.run(OTHER, 0.4, thread=902)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "server", pytest.approx(0.25)),)


def test_threads_that_started_meanwhile_count(proc):
    proc.add(OTHER, "server", 0, cpu_s=5.0, threads=((OTHER, 5.0, 0), (901, 0.0, 0)))
    watcher = watch(proc)
    proc._threads[OTHER][902] = [0.0, 1]
    proc.run(OTHER, 0.2, thread=902)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "server", pytest.approx(0.5)),)


def test_threads_are_read_only_where_it_matters(proc):
    proc.add(OTHER, "server", 0, cpu_s=5.0, threads=((OTHER, 5.0, 0), (901, 0.0, 0)))
    proc.add(700, "sleeper", 0, cpu_s=0.0, threads=((700, 0.0, 0), (701, 0.0, 0)))
    watcher = watch(proc)
    assert proc.thread_reads == [OTHER]
    proc.pass_time(0.4)
    watcher.report()
    assert proc.thread_reads == [OTHER]


def test_a_process_that_started_meanwhile_counts(proc, watcher):
    proc.add(OTHER, "new", 1)
    proc.run(OTHER, 0.2)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "new", pytest.approx(0.5)),)


def test_a_number_that_was_used_again_is_another_process(proc):
    proc.add(700, "shell", 1)
    proc.add(OTHER, "old", 1, cpu_s=100.0, parent=700, start=100)
    watcher = watch(proc)
    proc.end(OTHER)
    proc.add(OTHER, "new", 1, cpu_s=0.0, start=5000)
    proc.run(OTHER, 0.2)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "new", pytest.approx(0.5)),)


def test_children_that_come_and_go_are_their_parents(proc):
    # A build: the shell does nothing itself. What its children used before we looked does not count.
    proc.add(OTHER, "make", 1, affinity={1})
    proc.add(901, "cc1", 1, cpu_s=3.0, parent=OTHER)
    watcher = watch(proc)
    proc.run(901, 0.1)
    proc.end(901)
    proc.add(902, "cc1", 1, parent=OTHER)
    proc.run(902, 0.1)
    proc.end(902)
    proc.pass_time(0.4)
    assert watcher.report() == CulpritReport((Culprit(OTHER, "make", pytest.approx(0.5)),))


def test_a_family_that_ends_leaves_its_account_to_who_survives(proc):
    # A shell runs "timeout 60 train": both end, and what train used long ago is suddenly the shell's.
    proc.add(700, "shell", 1)
    proc.add(701, "timeout", 1, parent=700)
    proc.add(702, "train", 1, cpu_s=60.0, parent=701)
    watcher = watch(proc)
    proc.run(702, 0.1)
    proc.end(702)
    proc.end(701)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(700, "shell", pytest.approx(0.25)),)


def test_an_account_that_nobody_can_have_run_up_meanwhile_does_not_count(proc):
    proc.add(700, "reaper", 1)
    proc.add(701, "shell", 1)
    proc.add(702, "train", 1, cpu_s=60.0, parent=701)
    watcher = watch(proc)
    proc.end(701)
    proc._processes[702][1] = 700  # an orphan is adopted
    proc.end(702)
    proc.pass_time(0.4)
    assert watcher.report() == CulpritReport(())


def test_a_share_is_the_largest_of_any_core(proc):
    proc.add(OTHER, "solver", 1, cpu_s=1.0, threads=((OTHER, 1.0, 1), (901, 0.0, 2)))
    watcher = watch(proc, cores=(1, 2))
    proc.run(OTHER, 0.1, thread=OTHER)
    proc.run(OTHER, 0.3, thread=901)
    proc.pass_time(0.4)
    assert watcher.report().culprits == (Culprit(OTHER, "solver", pytest.approx(0.75)),)


@pytest.mark.parametrize(
    ("hiding", "whose"),
    [
        ("processes that this container cannot see", "processes that this container cannot see"),
        ("", "processes that ended meanwhile or are hidden here"),
    ],
)
def test_a_core_that_is_busy_with_nobody_knows_whom(proc, hiding, whose):
    proc.hiding = hiding
    watcher = watch(proc)
    proc.run(STAGE, 0.2)
    proc.use(1, processes_s=0.192)
    proc.use(0, processes_s=0.4)  # not ours to explain
    proc.pass_time(0.4)
    assert watcher.report() == CulpritReport((), f"unknown: the core is 48% busy with {whose}")


def test_a_few_ticks_that_nobody_accounts_for_are_no_hidden_process(proc, watcher):
    proc.use(1, processes_s=0.05)
    proc.pass_time(0.25)
    assert watcher.report() == CulpritReport(())


def test_the_machines_host_and_interrupts_are_noted(proc, watcher):
    proc.use(1, interrupts_s=0.08, steal_s=0.048)
    proc.pass_time(0.4)
    assert watcher.report() == CulpritReport(
        (), "the machine's host takes 12% of the core (steal); interrupts take 20% of the core"
    )


def test_of_several_cores_the_worst_is_named(proc):
    watcher = watch(proc, cores=(1, 2, 3))
    proc.use(2, steal_s=0.2)
    proc.use(3, steal_s=0.04)
    proc.pass_time(0.4)
    assert watcher.report().note == "the machine's host takes 50% of cpu:2 (steal)"


def test_what_the_pipelines_other_processes_take_is_noted(proc):
    watcher = watch(proc, stage_pid=STAGE)
    proc.run(STAGE, 0.2)
    proc.run(GATEWAY, 0.12, core=1)
    proc.pass_time(0.4)
    # Seen on core 0 first: half of it.
    note = "the pipeline's other processes and Ray take 15% of the core (mostly python, pid 501)"
    assert watcher.report() == CulpritReport((), note, others_share=pytest.approx(0.3))


def test_users_of_other_cores_are_only_suspects(proc):
    proc.sibling_of = {1: {3}}
    proc.add(901, "stream", 2, affinity={2})
    proc.add(902, "sibling", 3, affinity={3})
    proc.add(903, "small", 0, affinity={0})
    proc.add(904, "mild", 1, affinity={1})
    watcher = watch(proc)
    for pid, used_s in ((901, 0.4), (902, 0.2), (903, 0.05), (904, 0.04), (GATEWAY, 0.3)):
        proc.run(pid, used_s)
    proc.pass_time(0.4)
    report = watcher.report()
    mild, sibling, stream = (
        Culprit(pid, name, pytest.approx(share))
        for pid, name, share in ((904, "mild", 0.1), (902, "sibling", 0.5), (901, "stream", 1.0))
    )
    assert report == CulpritReport((mild,), "", (Suspect(sibling, 3, True), Suspect(stream, 2, False)))
    for kind in ("CPU share", "throttling", "unknown"):
        assert report.blame(kind) == ((mild,), "")
    for kind in ("memory", "CPU share + memory", "core speed", "memory or core speed"):
        note = "only suspected: sibling on cpu:3 (the same physical core), stream on cpu:2"
        assert report.blame(kind) == ((mild, sibling, stream), note)


def test_no_more_than_three_suspects(proc):
    for pid in range(901, 906):
        proc.add(pid, "busy", 2)
    watcher = watch(proc)
    for pid in range(901, 906):
        proc.run(pid, 0.3)
    proc.pass_time(0.4)
    assert [suspect.culprit.pid for suspect in watcher.report().suspects] == [901, 902, 903]


def test_a_report_can_be_asked_for_again(proc):
    proc.add(OTHER, "busy", 1)
    watcher = watch(proc)
    proc.run(OTHER, 0.1)
    proc.pass_time(0.2)
    assert watcher.report().culprits[0].share == pytest.approx(0.5)
    proc.pass_time(0.2)
    assert watcher.report().culprits[0].share == pytest.approx(0.25)
    watcher.start()
    proc.pass_time(0.2)
    assert watcher.report() == CulpritReport(())


def test_what_cannot_be_answered(proc):
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        CoreWatcher([1], own_pids=(), proc=proc).report()
    with pytest.raises(ValueError, match="no core"):
        CoreWatcher([], own_pids=())
    for interval_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="interval_s is"):
            find_culprits([1], own_pids=(), interval_s=interval_s)
    assert watch(proc).report().note == "unknown: no time has passed between the two looks"
    watcher = watch(proc, cores=(1, 9))
    proc.pass_time(0.4)
    assert watcher.report().note == "unknown: /proc says nothing about core 9 here"
    watcher = watch(proc)
    proc.pass_time(0.4)
    proc.drop_core(1)  # it was taken offline
    assert watcher.report().note == "unknown: /proc says nothing about core 1 here"


def test_find_culprits_waits_in_between(proc):
    proc.add(OTHER, "busy", 1)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        proc.run(OTHER, seconds / 2)
        proc.pass_time(seconds)

    report = find_culprits([1], own_pids=(STAGE,), interval_s=0.3, proc=proc, clock=proc.clock, sleep=sleep)
    assert report.culprits == (Culprit(OTHER, "busy", pytest.approx(0.5)),)
    assert slept == [0.3]


@contextlib.contextmanager
def busy(core):
    """A real process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(process.pid, {core})
        yield process.pid
    finally:
        process.kill()
        process.wait()


def look(core, own_pids, until):
    """Look at a core until the report is as wanted: on a crowded machine a process may not run for a while."""
    for _ in range(20):
        report = find_culprits([core], own_pids=own_pids, interval_s=0.3, least_share=0.001)
        if until(report):
            return report
    raise AssertionError(report)


@pytest.mark.slow
def test_a_real_process_is_found_on_its_core_and_on_no_other():
    here, *others = usable_cores()
    with busy(here) as pid:
        report = look(here, (), until=lambda report: pid in [culprit.pid for culprit in report.culprits])
        found = {culprit.pid: culprit for culprit in report.culprits}
        assert found[pid].name.endswith(" -c")
        assert 0 < found[pid].share <= 1
        assert os.getpid() not in found
        if others:
            report = find_culprits(others[:1], own_pids=(), interval_s=0.3, least_share=0.001)
            assert pid not in [culprit.pid for culprit in report.culprits]


@pytest.mark.slow
def test_a_real_process_of_our_own_is_not_named():
    core = usable_cores()[0]
    with busy(core) as pid:
        report = find_culprits([core], own_pids=[pid], interval_s=0.3)
    assert pid not in [culprit.pid for culprit in report.culprits]
    assert pid not in [suspect.culprit.pid for suspect in report.suspects]
