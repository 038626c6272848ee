"""Stages of several cores whose layers ONNX Runtime or OpenVINO computes."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from patience import PROMPT_S
from torch import nn

from odin.partitioner.chain import build_chain
from odin.partitioner.engines import names
from odin.partitioner.engines.build import build_form
from odin.stages.compute.sessions import SessionExecutor

ENGINES = [engine for engine in names.available_engines() if engine != "torch"]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.MaxPool2d(2), nn.Conv2d(48, 16, 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_two_threads_give_the_bits_of_one(engine: str):
    form = build_form(build_chain(convolutions(), (torch.zeros(1, 3, 64, 64),), keep=False), engine=engine)
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    found = []
    for threads in (1, 2):
        executor = SessionExecutor(form.model, form.weights, threads=threads)
        found.append(executor.finish(executor.launch(0, len(form.model.layers), (image,))).values[0])
    assert np.array_equal(*found)


PROGRAM = """
import os, pickle, sys, time
from pathlib import Path
import numpy as np
from odin.stages.compute.sessions import SessionExecutor
from odin.stages.device import pin_process, usable_cores

cores = set(usable_cores()[-2:])
model, weights = pickle.load(sys.stdin.buffer)
pin_process(cores)
before = set(os.listdir("/proc/self/task"))
executor = SessionExecutor(model, weights, threads=2)
pool = sorted(set(os.listdir("/proc/self/task")) - before)
assert pool
assert all(os.sched_getaffinity(int(thread)) == cores for thread in os.listdir("/proc/self/task"))

def cpu_s():
    return sum(int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) * 1e-9 for thread in pool)

def asleep():
    states = [Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] for thread in pool]
    return set(states) == {"S"}

image = np.ones((1, 3, 64, 64), np.float32)
worked_s = cpu_s()
while cpu_s() < worked_s + 0.01:  # until the pool has taken part
    executor.launch(0, len(model.layers), (image,))
idle_s = cpu_s()
while not asleep():
    time.sleep(0.001)
print(cpu_s() - idle_s)
"""


@pytest.mark.slow
@pytest.mark.skipif("onnxruntime" not in ENGINES, reason="onnxruntime is not installed")
def test_threads_of_onnxruntime_are_bound_to_the_stages_cores_and_sleep_without_work():
    """Left to itself each of them waits busily for 0.04 s of CPU time, on a core that others may want."""
    form = build_form(build_chain(convolutions(), (torch.zeros(1, 3, 64, 64),), keep=False), engine="onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=pickle.dumps((form.model, form.weights)),
        capture_output=True,
        timeout=PROMPT_S,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert float(done.stdout) < 0.01
