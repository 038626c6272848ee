"""Real loads: they are where they should be, do what they should, and end, whatever becomes of who started them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from loads import GONE, a_core, alive, another_core, cpu_s, family, left_after, living, name, wait_for
from patience import PROMPT_S

from odin.stages.device import Device, DeviceError
from odin_lab.inject import Injector, Load, LoadError, LoadFailedError, worker
from odin_lab.inject import injector as injector_module

pytestmark = pytest.mark.slow

STARTS = """
import signal, sys, time
# A shell without job control starts what runs in its background with Ctrl-C ignored, and so its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
from odin_lab.inject import Injector, Load
injector = Injector()
handles = [injector.start(Load.parse(text)) for text in sys.argv[1:]]
assert "torch" not in sys.modules and "ray" not in sys.modules
print(*(pid for handle in handles for pid in handle.pids), flush=True)
"""


@pytest.fixture
def events():
    return []


@pytest.fixture
def injector(events):
    with Injector(on_event=events.append) as injector:
        yield injector
        pids = [pid for handle in injector.handles for pid in handle.pids]
        below = family(os.getpid())
    assert alive(pids) == []
    assert [what for what in alive(below) if "odin_lab/inject" in what] == []


def cpu_load(**options):
    return Load("cpu", Device("cpu", (a_core(),)), **options)


def program(command):
    return Load("program", Device("cpu", (a_core(),)), program=command)


# ---------------------------------------------------------------- what a load does
@pytest.mark.parametrize("kind", ["cpu", "membw", "cache"])
def test_a_load_works_on_its_core_and_ends(injector, events, kind):
    load = Load(kind, Device("cpu", (a_core(),)))
    begin_s = time.perf_counter()
    handle = injector.start(load, name="neighbour")
    (pid,) = handle.pids
    process = psutil.Process(pid)
    assert process.cpu_affinity() == [a_core()]
    assert process.name() == f"odin-load-{kind}"
    assert str(load) in process.cmdline()
    assert process.nice() == 0
    assert handle.description
    used_s = cpu_s(pid)
    wait_for(lambda: cpu_s(pid) >= used_s + 0.05, what=f"{kind} uses CPU time")
    handle.stop()
    assert alive([pid]) == []
    assert [(event.name, event.load, event.on, event.intensity, event.pid) for event in events] == [
        ("neighbour", str(load), str(load.on), 1.0, pid),
        ("neighbour", str(load), str(load.on), 0.0, pid),
    ]
    assert begin_s <= events[0].at_s < events[1].at_s <= time.perf_counter()  # on the same clock


def test_workers_need_neither_torch_nor_ray_nor_numpy(injector):
    handle = injector.start(Load("membw", Device("cpu", (a_core(),))))
    used = Path(f"/proc/{handle.pids[0]}/maps").read_text()
    assert not any(name in used for name in ("torch", "ray", "numpy"))


def test_several_processes_of_one_load_take_its_cores_in_turn(injector):
    cores = sorted((a_core(), another_core()))
    if cores[1] != cores[0] + 1:
        pytest.skip("needs neighbouring cores")
    handle = injector.start(Load("cpu", Device("cpu", tuple(cores)), threads=3))
    assert [psutil.Process(pid).cpu_affinity() for pid in handle.pids] == [[cores[0]], [cores[1]], [cores[0]]]


def test_an_idle_load_waits_without_cpu_time(injector, events):
    handle = injector.start(cpu_load(), idle=True)
    (pid,) = handle.pids
    assert handle.running
    assert (handle.intensity, events) == (0.0, [])
    used_s = cpu_s(pid)
    handle.set_intensity(0.5)
    wait_for(lambda: cpu_s(pid) > used_s + 0.03, what="it works")
    handle.set_intensity(0.0)
    handle.set_intensity(0.0)  # no change, no record
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, what="it rests")
    used_s = cpu_s(pid)
    handle.set_intensity(1.0)
    wait_for(lambda: cpu_s(pid) > used_s + 0.03, what="it works again")
    assert [event.intensity for event in events] == [0.5, 0.0, 1.0]
    assert handle.intensity == 1.0


class Periods:
    """A clock that steps and waits move, and the intensities that a worker is sent at which moments."""

    def __init__(self, *messages):
        self.now_s, self.busy = 0.0, []
        self.messages = list(messages)

    def perf_counter(self):
        self.now_s += 1e-7  # as a clock does
        return self.now_s

    def step(self):
        self.busy.append(self.now_s)
        self.now_s += 0.001

    def latest(self, timeout_s):
        if self.messages and (timeout_s is None or self.messages[0][0] <= self.now_s + timeout_s):
            at_s, intensity = self.messages.pop(0)
            self.now_s = max(self.now_s, at_s)
            return intensity
        if timeout_s is None:
            raise StopIteration
        self.now_s += timeout_s
        return None


@pytest.mark.parametrize("phase", [0.0, 0.5])
def test_intensity_is_the_part_of_the_time_that_it_is_busy(monkeypatch, phase):
    periods = Periods((1.03, 0.25), (2.07, 0.75), (3.0, 0.0))
    monkeypatch.setattr(worker, "time", periods)
    with pytest.raises(StopIteration):
        worker.work(periods.step, periods, period_s=0.1, phase=phase)
    begin_s = 1.1 + phase * 0.1  # the turns lie on a grid, wherever the change fell
    for first_s, last_s, part in ((begin_s, 2.0, 0.25), (begin_s + 1.0, 2.9, 0.75)):
        whole = round((last_s - first_s) / 0.1)
        for number in range(whole):
            turn = [at_s for at_s in periods.busy if 0 <= at_s - first_s - 0.1 * number + 1e-9 < 0.1]
            assert len(turn) == pytest.approx(100 * part, abs=1)
            assert turn[0] == pytest.approx(first_s + 0.1 * number, abs=0.0011)
    assert max(periods.busy) < 3.0


def test_a_load_of_less_than_all_of_the_time_rests_in_between(injector):
    (pid,) = injector.start(cpu_load(intensity=0.25)).pids
    used_s = cpu_s(pid)
    for _ in range(3):
        wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, what="it rests")
        wait_for(lambda before_s=used_s: cpu_s(pid) > before_s, what="it works")
        used_s = cpu_s(pid)


def test_loads_that_cannot_be(injector):
    with pytest.raises(DeviceError, match="no usable core 9999"):
        injector.start(Load("cpu", Device("cpu", (9999,))))
    with pytest.raises(DeviceError, match=r"edge7/cpu:1 is on another node, .* run it there, on cpu:1"):
        injector.start(Load.parse("cpu@edge7/cpu:1"))
    with pytest.raises(LoadError, match="no program 'no-such-program-here' that can be run"):
        injector.start(program("no-such-program-here --x"))
    with pytest.raises(LoadError, match="cannot be started idle"):
        injector.start(program("sleep 60"), idle=True)
    handle = injector.start(cpu_load(), idle=True)
    with pytest.raises(LoadError, match="intensity 2 is not within"):
        handle.set_intensity(2)
    handle = injector.start(program("sleep 60"))
    with pytest.raises(LoadError, match="the intensity of a program cannot be set"):
        handle.set_intensity(1.0)


def test_too_little_memory_starts_nothing(injector, monkeypatch):
    monkeypatch.setattr("odin_lab.inject.sizes.available_nbytes", lambda: 100 * 2**20)
    with pytest.raises(LoadError, match=r"membw@cpu:.*needs 64 MiB, but only 25 MiB"):
        injector.start(Load("membw", Device("cpu", (a_core(),))))
    assert injector.handles == ()


def test_a_worker_that_cannot_work_says_why(injector, monkeypatch):
    monkeypatch.setattr(injector_module, "buffer_nbytes", lambda load: 2**60)  # more than there can be
    with pytest.raises(LoadFailedError, match=r"cache@cpu:\d+: .*[Mm]emory"):
        injector.start(Load("cache", Device("cpu", (a_core(),))))
    assert injector.handles == ()


def test_a_killed_worker_is_reported_and_its_fellows_end(events):
    ended = []
    with Injector(on_event=events.append, on_end=ended.append) as injector:
        handle = injector.start(cpu_load(threads=2))
        os.kill(handle.pids[1], signal.SIGKILL)
        assert handle.wait(PROMPT_S)
        assert left_after(handle.pids) == []
        assert handle.ended == f"process {handle.pids[1]} was killed by SIGKILL"
        assert handle.failed
        assert not handle.running
        handle.set_intensity(0.5)  # too late, and no harm
        handle.stop()
    assert ended == [handle]
    assert [event.intensity for event in events] == [1.0, 0.0]


def test_a_load_outlives_the_thread_that_started_it(injector):
    """The kernel takes a process's parent for dead when the thread that started it has ended."""
    handles = []
    thread = threading.Thread(target=lambda: handles.append(injector.start(cpu_load(intensity=0.1))))
    thread.start()
    thread.join()
    used_s = cpu_s(handles[0].pids[0])
    wait_for(lambda: cpu_s(handles[0].pids[0]) > used_s, what="it works on")
    assert handles[0].running


def test_a_closed_injector_starts_nothing():
    with Injector() as injector:
        handle = injector.start(cpu_load(intensity=0.1))
    assert alive(handle.pids) == []
    assert handle.wait(0.0)
    assert (handle.ended, handle.failed) == ("", False)
    injector.close()
    with pytest.raises(LoadError, match="the injector is closed"):
        injector.start(cpu_load())


def test_a_fork_does_not_end_the_loads_of_its_parent(injector):
    handle = injector.start(cpu_load(intensity=0.1))
    child = os.fork()
    if child == 0:
        injector.close()
        os._exit(0)
    os.waitpid(child, 0)
    used_s = cpu_s(handle.pids[0])
    wait_for(lambda: cpu_s(handle.pids[0]) > used_s, what="it works on")


# ---------------------------------------------------------------- programs
def tree(*, deaf=False):
    """A program that starts one that stays, one that leaves for a session of its own, and an orphan."""
    trap = "trap '' TERM HUP; " if deaf else ""
    inner = "while :; do sleep 0.05; done"
    elsewhere = f"setsid sh -c {shlex.quote(trap + inner)}"
    return f"sh -c {shlex.quote(f'{trap}({inner}) & {elsewhere} & ( ({inner}) & ); {inner}')}"


def started_tree(injector, **options):
    handle = injector.start(program(tree(**options)))
    (pid,) = handle.pids
    supervisor = psutil.Process(pid).parent()
    guard = supervisor.parent()
    wait_for(lambda: sum(name(p) == "sh" for p in guard.children(recursive=True)) >= 4, what="the tree is there")
    return handle, guard, supervisor, [p.pid for p in guard.children(recursive=True)]


def test_a_program_and_all_it_starts_is_bound_and_ended(injector, events):
    handle, _, _, pids = started_tree(injector)
    bound = []
    for process in living(pids):
        with contextlib.suppress(*GONE):  # the shells start one short sleep after another
            if process.name() == "sh":
                bound.append(process.cpu_affinity())
    assert len(bound) >= 4
    assert all(cores == [a_core()] for cores in bound)
    handle.stop()
    assert alive(pids) == []
    assert [(event.name, event.intensity, event.pid) for event in events] == [
        ("sh", 1.0, handle.pids[0]),
        ("sh", 0.0, handle.pids[0]),
    ]


@pytest.mark.parametrize("who", ["guard", "supervisor", "program"])
def test_no_kill_leaves_a_part_of_a_program(injector, who):
    handle, guard, supervisor, pids = started_tree(injector, deaf=True)
    victim = {"guard": guard.pid, "supervisor": supervisor.pid, "program": handle.pids[0]}[who]
    os.kill(victim, signal.SIGKILL)
    if who == "program":  # what it has started is still a load
        assert len(alive(pids)) >= 3
        assert handle.running
        handle.stop()
    assert left_after([*pids, guard.pid, supervisor.pid]) == []
    assert handle.wait(PROMPT_S)
    assert handle.failed is (who != "program")


@pytest.mark.parametrize(
    ("command", "ended"),
    [
        ("true", "done"),
        ("sh -c 'echo first; echo last >&2; exit 3'", "sh ended with status 3: last"),
        ("sh -c 'kill -KILL $$'", "sh was killed by SIGKILL"),
        # A program that goes into the background is there for as long as anything of it is.
        ("sh -c 'sleep 0.2 & exit 0'", "done"),
        ("sh -c 'yes | head -c 1000000'", "done"),
    ],
)
def test_a_program_that_ends_by_itself_is_reported(injector, events, command, ended):
    handle = injector.start(program(command))
    assert handle.wait(PROMPT_S)
    assert handle.ended == ended
    assert handle.failed is (ended != "done")
    assert [event.intensity for event in events] == [1.0, 0.0]


def test_a_program_that_cannot_be_run_is_reported(injector, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(LoadFailedError, match=r"script does not start: .*No such file"):
        injector.start(program(str(script)))


# ---------------------------------------------------------------- whatever becomes of who injects
def start_injecting(*texts, then="time.sleep(600)"):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS + then, *texts],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line, f"it ended with {process.wait()}"
    return process, [int(word) for word in line.split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_load_outlives_who_injects(number):
    process, pids = start_injecting(f"cpu@cpu:{a_core()}x2", f"program@cpu:{a_core()} {tree(deaf=True)}")
    try:
        wait_for(lambda: len(family(process.pid)) >= 2 + 2 + 4, what="the tree is there")
        below = family(process.pid)
        assert set(pids) <= set(below)
        process.send_signal(number)
        process.wait(PROMPT_S)
        assert left_after(below) == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_no_load_outlives_who_injects_though_a_fork_holds_its_pipes():
    """Then no end of input tells the loads, only the kernel does."""
    fork = "\nimport os\nif os.fork() == 0:\n    print(os.getpid(), flush=True)\ntime.sleep(600)"
    process, pids = start_injecting(f"cpu@cpu:{a_core()}", f"program@cpu:{a_core()} {tree(deaf=True)}", then=fork)
    fork_pid = int(process.stdout.readline())
    try:
        below = set(family(process.pid)) - {fork_pid}
        assert set(pids) <= below
        process.kill()
        process.wait(PROMPT_S)
        assert left_after(below) == []
        assert alive([fork_pid]) != []
    finally:
        os.kill(fork_pid, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "1 / 0", "import os; os._exit(0)"])
def test_no_load_outlives_the_end_of_a_script(then):
    process, pids = start_injecting(f"cpu@cpu:{a_core()}", f"program@cpu:{a_core()} sleep 600", then="\n" + then)
    with process:
        process.wait(PROMPT_S)
        assert left_after(pids) == []


def test_a_frozen_injector_is_not_dead():
    """Stopped, as by Ctrl-Z or a debugger: its loads go on."""
    process, pids = start_injecting(f"cpu@cpu:{a_core()}*0.1")
    try:
        process.send_signal(signal.SIGSTOP)
        used_s = cpu_s(pids[0])
        wait_for(lambda: cpu_s(pids[0]) > used_s, what="it works on")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert left_after(pids) == []


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gpu", "gpu-copy"])
def test_a_gpu_works(injector, kind):
    """Written by the documentation; has not run on a GPU so far."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    handle = injector.start(Load(kind, Device("gpu", (0,)), 0.5))
    wait_for(lambda: torch.cuda.utilization(0) > 0, what="the GPU is busy")
    handle.stop()
    assert alive(handle.pids) == []


def test_a_missing_gpu_is_reported(injector):
    with pytest.raises(LoadFailedError, match="there is no gpu:4000 that torch can use here"):
        injector.start(Load("gpu", Device("gpu", (4000,))))
