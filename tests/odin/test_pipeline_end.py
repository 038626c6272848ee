"""What is left when the process that holds the gateway ends: nothing. Each driver is a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loads import command, living
from patience import PROMPT_S

from odin.stages.device import usable_cores

pytestmark = pytest.mark.ray

DRIVER = """
import json, os, signal, sys, time
import psutil, torch
import odin
from small_pipelines import images, small_chain

if __name__ == "__main__":
    # A shell without job control starts what runs in its background with Ctrl-C ignored, and so its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chain, stages = small_chain(), sys.argv[1].split(",")
    pipe = odin.Pipeline(chain, stages=stages)
    futures = [pipe.submit(x) for x in images(3)]
    family = [child.pid for child in psutil.Process().children(recursive=True)]
    print(json.dumps({"stages": [s.pid for s in pipe.snapshot().stages], "family": family}), flush=True)
    if sys.argv[2] == "forget":
        sys.exit(0)
    while True:
        pipe(images(1)[0])
"""


def start_driver(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], dict[str, list[int]]]:
    cores = usable_cores()
    if len(cores) < 2:
        pytest.skip("two stages need two cores")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "helpers"),
        "ODIN_LEASE_DIR": str(tmp_path / "leases"),
    }
    driver = subprocess.Popen(
        [sys.executable, str(script), f"cpu:{cores[0]},cpu:{cores[1]}", how],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert line, f"the driver ended with {driver.wait()}"
    return driver, json.loads(line)


def alive(pids: list[int]) -> list[str]:
    # Ray's own two agents take a minute to notice that everything else is gone.
    names = [command(process).strip() for process in living(pids)]
    return [name[:100] for name in names if name not in ("", "ray::DashboardAgent", "ray::RuntimeEnvAgent")]


def wait_until_gone(pids: list[int]) -> list[str]:
    deadline_s = time.monotonic() + PROMPT_S
    while (left := alive(pids)) and time.monotonic() < deadline_s:
        time.sleep(0.1)  # polling other processes: there is no event to wait for
    return left


def shared_memory(pids: list[int]) -> set[str]:
    """Files in shared memory that these processes have mapped; others on this machine have theirs."""
    maps = ""
    for pid in pids:
        with contextlib.suppress(OSError):
            maps += Path(f"/proc/{pid}/maps").read_text()
    return {name for name in os.listdir("/dev/shm") if f"/dev/shm/{name}" in maps}


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGTERM", "forget"])
def test_nothing_outlives_the_driver(tmp_path, how):
    driver, pids = start_driver(tmp_path, how)
    try:
        shared = shared_memory(pids["family"])
        if how != "forget":
            assert alive(pids["stages"])
            driver.send_signal(signal.Signals[how])
        driver.wait(2 * PROMPT_S)
        assert wait_until_gone(pids["family"] + pids["stages"]) == []
        assert shared.isdisjoint(os.listdir("/dev/shm"))
    finally:
        driver.kill()
        driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()
