"""Processes of actors are ended also where Ray cannot do it any more."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from odin.cluster import actors
from odin.stages.lease import free_indices

HOLDER = """
import sys, threading, time
from pathlib import Path
from odin.stages.device import Device
from odin.stages.lease import Lease
lease = Lease(Device("cpu", (7,)), label="test", directory=Path(sys.argv[1]))
memory = bytearray(200 * 2**20)
memory[::4096] = bytes(len(memory[::4096])).replace(b"\\0", b"1")
for _ in range(int(sys.argv[2])):
    threading.Thread(target=time.sleep, args=(1000,)).start()
print("holds it", flush=True)
time.sleep(1000)
"""


def test_a_process_that_nobody_asks_to_end_is_killed_unless_it_is_another_program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actors, "_END_S", 0.5)
    named = [subprocess.Popen([name, "1000"], executable="/bin/sleep") for name in ("ray::StageActor", "sleep")]
    try:
        actors.wait_until_ended([process.pid for process in named])
        assert [psutil.pid_exists(process.pid) for process in named] == [False, True]
    finally:
        for process in named:
            process.kill()
            process.wait()


@pytest.mark.parametrize("threads", [0, 20])
def test_what_a_process_held_is_free_once_it_has_been_waited_for(threads: int, tmp_path: Path):
    # A process without its memory, or whose first thread is a zombie, was taken for gone: its lock was held still.
    command = ["ray::StageActor", "-c", HOLDER, str(tmp_path), str(threads)]
    for _ in range(3):
        with subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"holds it\n"
            assert free_indices("cpu", [7], directory=tmp_path) == []
            process.kill()
            while is_named(process.pid):
                pass
            actors.wait_until_ended([process.pid])
            assert free_indices("cpu", [7], directory=tmp_path) == [7]


def is_named(pid: int) -> bool:
    """Whether its command line is there still, which is so until it has begun to end."""
    with contextlib.suppress(psutil.ZombieProcess):
        return bool(psutil.Process(pid).cmdline())
    return False
