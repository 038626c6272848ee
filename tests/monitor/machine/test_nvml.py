"""Who shares a GPU. All but the last test ask a stand-in for the driver, whose answers follow NVML's documentation and
what others have seen of it; the last one asks a real driver, where there is one.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from patience import PROMPT_S

from odin.monitor.events import Culprit
from odin.monitor.machine.nvml import GpuProcess, GpuReport, gpu_processes

STAGE, OTHER, IDLE = 500, 900, 901
NOW_S = 1_700_000_000.0
GIB = 2**30


class NVMLError(Exception):
    pass


class FakeNvml:
    """The module ``pynvml`` as far as it is used, for one GPU."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = type("NVMLError_LibraryNotFound", (NVMLError,), {})
    NVMLError_DriverNotLoaded = type("NVMLError_DriverNotLoaded", (NVMLError,), {})
    NVMLError_InvalidArgument = type("NVMLError_InvalidArgument", (NVMLError,), {})
    NVMLError_NoPermission = type("NVMLError_NoPermission", (NVMLError,), {})
    NVMLError_NotFound = type("NVMLError_NotFound", (NVMLError,), {})
    NVMLError_NotSupported = type("NVMLError_NotSupported", (NVMLError,), {})

    def __init__(self, compute=(), samples=(), *, graphics=(), mig=None, names=None):
        """Processes as (pid, bytes), samples as (pid, percent, seconds ago); an exception instead is raised."""
        self.compute, self.samples, self.graphics, self.mig = compute, samples, graphics, mig
        self.names = names or {}
        self.users = 0
        self.init_error = None

    def nvmlInit(self):  # noqa: N802
        if self.init_error:
            raise self.init_error
        self.users += 1

    def nvmlShutdown(self):  # noqa: N802
        self.users -= 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index != 0:
            raise self.NVMLError_InvalidArgument("Invalid Argument")
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != "GPU-1234":
            raise self.NVMLError_NotFound("Not Found")
        return "handle"

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if self.mig is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return [self.mig, self.mig]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return self._processes(self.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):  # noqa: N802
        return self._processes(self.graphics)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle):  # noqa: N802
        raise self.NVMLError_NotSupported("Not Supported")

    def nvmlDeviceGetProcessUtilization(self, handle, since_us):  # noqa: N802
        if isinstance(self.samples, Exception):
            raise self.samples
        if not self.samples:
            raise self.NVMLError_NotFound("Not Found")
        return [
            SimpleNamespace(pid=pid, smUtil=percent, timeStamp=int((NOW_S - ago_s) * 1e6))
            for pid, percent, ago_s in self.samples
        ]

    def nvmlSystemGetProcessName(self, pid):  # noqa: N802
        if pid not in self.names:
            raise self.NVMLError_NotFound("Not Found")
        return self.names[pid]

    @staticmethod
    def _processes(found):
        if isinstance(found, Exception):
            raise found
        return [SimpleNamespace(pid=pid, usedGpuMemory=nbytes) for pid, nbytes in found]


class FakeProc:
    """/proc of a machine with these processes."""

    def __init__(self, commands, *, container=False):
        self._commands = commands
        self._container = container

    def command(self, pid):
        return self._commands.get(pid, ())

    def hidden(self):
        return "processes that this container cannot see" if self._container else ""


PROC = FakeProc(
    {STAGE: ("ray::Stage",), OTHER: ("/usr/bin/python", "/home/me/train.py"), IDLE: ("/opt/jupyter-kernel", "-f")}
)


def ask(nvml, gpu=0, *, proc=PROC, **waiting):
    report = gpu_processes(gpu, (STAGE,), nvml=nvml, proc=proc, unix_s=lambda: NOW_S, **waiting)
    assert nvml.users == 0
    return report


def test_others_are_named_with_their_use_and_memory():
    nvml = FakeNvml(
        compute=[(STAGE, 2 * GIB), (IDLE, GIB), (OTHER, 4 * GIB)],
        samples=[(OTHER, 70, 1.5), (OTHER, 50, 0.5), (STAGE, 30, 0.5)],
    )
    for gpu in (0, "GPU-1234"):
        report = ask(nvml, gpu)
        assert report == GpuReport(
            (
                GpuProcess(OTHER, "python train.py", 4 * GIB, pytest.approx(0.6)),
                GpuProcess(IDLE, "jupyter-kernel", GIB, 0.0),
            )
        )
        assert report.culprits == (Culprit(OTHER, "python train.py", pytest.approx(0.6)),)
        assert report.share == pytest.approx(0.6)


def test_nobody_else():
    report = ask(FakeNvml(compute=[(STAGE, GIB)], samples=[(STAGE, 90, 0.5)]))
    assert (report, report.culprits, report.share) == (GpuReport(()), (), None)
    assert ask(FakeNvml()) == GpuReport(())


def test_old_samples_and_what_is_none_do_not_count():
    nvml = FakeNvml(
        compute=[(STAGE, GIB), (OTHER, GIB)],
        samples=[(OTHER, 99, 30.0), (OTHER, 4_294_967_295, 0.1), (0, 50, 0.1), (STAGE, 10, 0.1)],
    )
    report = ask(nvml)
    assert report == GpuReport((GpuProcess(OTHER, "python train.py", GIB, 0.0),))
    assert (report.culprits, report.share) == ((), 0.0)


def test_who_has_just_begun_is_seen_by_waiting_for_a_sample():
    """A program that came a moment ago was in no sample yet, and the slowdown that it caused was called unknown."""
    nvml = FakeNvml(compute=[(STAGE, GIB), (OTHER, GIB)], samples=[(STAGE, 90, 0.5)])
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            nvml.samples = [(STAGE, 90, 0.5), (OTHER, 60, -0.3), (STAGE, 40, -0.3)]

    report = ask(nvml, wait_s=1.0, sleep=sleep)
    assert [(p.pid, p.share) for p in report.processes] == [(OTHER, 0.6)]
    assert waits == [pytest.approx(0.1)] * 3
    assert ask(FakeNvml(compute=[(STAGE, GIB), (OTHER, GIB)]), wait_s=1.0, sleep=waits.append).share == 0.0
    assert len(waits) == 13  # no sample came


def test_programs_that_draw_count_too():
    nvml = FakeNvml(compute=[(STAGE, GIB)], graphics=[(OTHER, None)], samples=[(OTHER, 20, 0.3)])
    assert ask(nvml) == GpuReport((GpuProcess(OTHER, "python train.py", None, 0.2),))


def test_use_that_the_driver_does_not_tell_is_unknown():
    nvml = FakeNvml(
        compute=[(STAGE, GIB), (OTHER, GIB)], samples=FakeNvml.NVMLError_NotSupported("Not Supported"), mig=0
    )
    report = ask(nvml)
    assert report.note == "unknown: the driver cannot tell of the use of the GPU"
    assert [(culprit.pid, math.isnan(culprit.share)) for culprit in report.culprits] == [(OTHER, True)]
    assert math.isnan(report.share)


def test_a_divided_gpu():
    report = ask(FakeNvml(compute=[(STAGE, GIB), (OTHER, GIB)], samples=[(OTHER, 50, 0.1)], mig=1))
    assert "MIG" in report.note
    assert math.isnan(report.share)


@pytest.mark.parametrize("error", [FakeNvml.NVMLError_LibraryNotFound("?"), FakeNvml.NVMLError_DriverNotLoaded("?")])
def test_no_driver(error):
    nvml = FakeNvml()
    nvml.init_error = error
    assert ask(nvml) == GpuReport((), "unknown: there is no NVIDIA driver here")


def test_no_such_gpu_and_no_permission():
    assert ask(FakeNvml(), 7) == GpuReport((), "unknown: GPU 7: Invalid Argument")
    assert ask(FakeNvml(), "GPU-9") == GpuReport((), "unknown: GPU GPU-9: Not Found")
    refusing = FakeNvml(compute=FakeNvml.NVMLError_NoPermission("Insufficient Permissions"))
    assert ask(refusing) == GpuReport((), "unknown: the driver does not let this user see other processes")


def test_a_process_of_another_container_or_user():
    nvml = FakeNvml(compute=[(STAGE, GIB), (4242, 3 * GIB)], samples=[(4242, 80, 0.5)])
    report = ask(nvml)
    assert report.processes == (GpuProcess(4242, "?", 3 * GIB, 0.8),)
    assert report.note == "process 4242 cannot be seen from here (another container's or user's)"
    # The driver may know its name even so.
    nvml.names = {4242: "/usr/bin/trainer"}
    assert ask(nvml) == GpuReport((GpuProcess(4242, "trainer", 3 * GIB, 0.8),))


def test_numbers_of_the_host_in_a_container():
    # Our own stage is 645400 there. Nobody may be blamed for that, not even who has this number here.
    for pid in (645400, OTHER):
        nvml = FakeNvml(compute=[(pid, GIB)], samples=[(pid, 80, 0.5)])
        report = ask(nvml, proc=FakeProc({STAGE: ("ray::Stage",), OTHER: ("bash",)}, container=True))
        assert (report.processes, report.share) == ((), None)
        assert "as the host does" in report.note


def test_numbers_of_the_host_in_samples_only():
    # Driver 560 lists the container's numbers, and samples have the host's.
    nvml = FakeNvml(compute=[(STAGE, GIB), (OTHER, GIB)], samples=[(645400, 80, 0.5), (645500, 15, 0.5)])
    report = ask(nvml)
    assert [(p.pid, math.isnan(p.share)) for p in report.processes] == [(OTHER, True)]
    assert "as the host does" in report.note


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_processes(0, ()) == GpuReport((), "unknown: the package nvidia-ml-py is not installed")


def test_with_the_package_on_any_machine():
    """Whatever is here, asking answers."""
    report = gpu_processes(0, (os.getpid(),))
    assert report.processes or report.note or report.share is None


_LOAD = """
import time, torch
a = torch.randn(4096, 4096, device="cuda")
print("ready", flush=True)
end = time.monotonic() + 600
while time.monotonic() < end:
    for _ in range(50):
        b = a @ a
    torch.cuda.synchronize()
"""


@pytest.mark.slow
@pytest.mark.gpu
def test_a_real_process_on_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    mine = torch.ones(1, device="cuda")  # so that this process has the GPU open, as a stage has
    gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    process = subprocess.Popen([sys.executable, "-c", _LOAD], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        deadline_s = time.perf_counter() + PROMPT_S
        while time.perf_counter() < deadline_s:
            report = gpu_processes(gpu, (os.getpid(),))
            if report.note or any(p.pid == process.pid and p.share > 0 for p in report.processes):
                break
            time.sleep(0.5)
    finally:
        process.kill()
        process.communicate()
    assert float(mine) == 1.0
    if report.note.startswith("unknown"):  # a container's driver; then it must say so and blame nobody falsely
        assert all(math.isnan(p.share) for p in report.processes)
        return
    assert os.getpid() not in [p.pid for p in report.processes]
    found = {p.pid: p for p in report.processes}[process.pid]
    assert 0 < found.share <= 1
    assert found.memory_nbytes is None or found.memory_nbytes > 0
