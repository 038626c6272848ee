"""An embedded Ray keeps to this machine, leaves nothing behind, and does not take the program with it when it dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from channels import numbers
from patience import PROMPT_S
from test_gateway import gateway_and_stage

from odin.errors import StageLostError

PROGRAM = """
import contextlib, json, os, random, sys, threading, time, warnings
import psutil, ray, torch
import odin
from odin.stages.device import usable_cores

victim = sys.argv[1]
me = psutil.Process()
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).eval()
x = torch.ones(1, 3, 16, 16)

def pipeline():
    return odin.Pipeline(model, example_input=x, stages=[f"cpu:{usable_cores()[0]}"], policy="static")

def ray_processes():
    found = []
    for process in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found

def listening():
    connections = [c for process in (me, *ray_processes()) for c in process.net_connections("inet")]
    return sorted({c.laddr.ip for c in connections if c.status == "LISTEN"})

said = {}
random.seed(0)
before = random.getstate()
with pipeline() as pipe:
    said["random"] = random.getstate() == before
    first = pipe(x)
    said["helpers"] = [" ".join(process.cmdline()).split()[0:3] for process in ray_processes()]
    said["listening"] = listening()
    said["folder"] = [str(p) for p in pipe._assembly._runtime._connection._folder.path.parent.iterdir()]
    stage = psutil.Process(pipe.snapshot().stages[0].pid)
    said["niceness"] = sorted({os.getpriority(os.PRIO_PROCESS, thread.id) for thread in stage.threads()})
    stage.suspend()  # so that a request is under way
    future = pipe.submit(x)
    [process] = [process for process in ray_processes() if process.name() == victim]
    process.kill()
    process.wait()  # a stage whose raylet is gone ends within a second, unless Ray is told otherwise
    time.sleep(0.1)  # a stopped process whose parent has ended gets SIGHUP from the kernel
    stage.resume()
    while victim == "raylet" and ray.nodes()[0]["Alive"]:
        time.sleep(0.1)  # when Ray says so, it recovers objects, and ends a program that has some
    time.sleep(2)
    said["served"] = [torch.equal(future.result(600), first), torch.equal(pipe(x), first)]
    while not said.setdefault("told", ""):
        said["told"] = next((line.text for line in pipe.view().events if line.kind == "fault"), "")
    try:
        pipeline()
    except Exception as error:
        said["second"] = [type(error).__name__, str(error)]
    stage.kill()
    try:
        pipe(x)
    except Exception as error:
        said["all lost"] = [type(error).__name__, str(error)]
    said["pid"] = process.pid
said["connected"] = ray.is_initialized()
said["processes"] = [process.name() for process in ray_processes()]
with pipeline() as pipe:
    pipe(x)
said["left"] = [str(p) for p in pipe._assembly._runtime._connection._folder.path.parent.iterdir()]
said["threads"] = [thread.name for thread in threading.enumerate() if thread.name.startswith("odin")]
print("SAID" + json.dumps(said), flush=True)
"""


def run(tmp_path: Path, victim: str, **environment: str) -> dict[str, Any]:
    folder = Path(f"/tmp/o{os.getpid()}{victim[:3]}")  # short: a socket's path ends at 107
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, victim],
        env={
            **os.environ,
            "ODIN_LEASE_DIR": str(tmp_path / "leases"),
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
            "RAY_TMPDIR": str(folder),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=4 * PROMPT_S,
        check=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert "SAID" in done.stdout, done.stdout + done.stderr
    return json.loads(done.stdout.partition("SAID")[2])


@pytest.mark.ray
@pytest.mark.parametrize(("victim", "name"), [("raylet", "node process (raylet)"), ("gcs_server", "control process")])
def test_what_serves_goes_on_without_ray_and_the_program_too(tmp_path: Path, victim: str, name: str):
    # Ray's own answer, a minute later, was exit status 1 without an exception; then ours was to fail everything.
    soon = {"RAY_health_check_period_ms": "100", "RAY_health_check_timeout_ms": "2000"}
    said = run(tmp_path, victim, RAY_worker_niceness="15", **soon)
    assert said["served"] == [True, True]
    why = f"Ray's {name}"
    assert why in said["told"]
    assert f"process {said['pid']}, has ended" in said["told"]
    for asked, kind in (("second", "ConnectionError"), ("all lost", "StageLostError")):
        assert said[asked][0] == kind
        assert why in said[asked][1]
    assert "close the pipelines of this process that still serve" in said["second"][1]
    assert "start a new pipeline" in said["all lost"][1]
    assert not said["connected"]
    assert said["processes"] == []
    assert said["left"] == said["threads"] == []
    # and while it ran:
    assert said["random"]
    started = " ".join(word for words in said["helpers"] for word in words)
    assert "gcs_server" in started
    assert "raylet" in started
    for helper in ("monitor.py", "dashboard.py", "log_monitor.py", "IDLE"):
        assert helper not in started
    assert {ip.removeprefix("::ffff:") for ip in said["listening"]} == {"127.0.0.1"}
    assert len(said["folder"]) == 1
    assert said["niceness"] == ([0] if os.geteuid() == 0 else [15])
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_an_answer_that_comes_after_ray_was_lost_is_dropped():
    with gateway_and_stage() as stage:
        late = stage.gateway.submit((numbers(0),))
        stage.gateway.fail(StageLostError("Ray's raylet has ended"))
        with pytest.raises(StageLostError, match="raylet has ended"):
            late.result(PROMPT_S)
        stage.answer(stage.take())
        with pytest.raises(StageLostError, match="raylet has ended"):
            stage.gateway.submit((numbers(1),))
