"""Devices as text, cores that exist, and binding every thread of a process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PROMPT_S

from odin.stages.device import (
    Device,
    DeviceError,
    check_cores,
    cpu_model,
    describe_cores,
    parse_devices,
    pin_process,
    usable_cores,
)

NODES = st.just("") | st.from_regex(r"[a-z0-9_.:-]{1,20}", fullmatch=True)
CPUS = st.builds(
    lambda first, count, node: Device("cpu", tuple(range(first, first + count)), node),
    st.integers(0, 1000),
    st.integers(1, 64),
    NODES,
)
GPUS = st.builds(lambda index, node: Device("gpu", (index,), node), st.integers(0, 1000), NODES)


@given(CPUS | GPUS)
def test_text_parses_back(device: Device):
    assert Device.parse(str(device)) == device
    assert Device.parse(f"  {device} ") == device


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu:3", Device("cpu", (3,))),
        ("cpu:0-3", Device("cpu", (0, 1, 2, 3))),
        ("cpu:2-2", Device("cpu", (2,))),
        ("gpu:0", Device("gpu", (0,))),
        ("10.0.0.7/cpu:1", Device("cpu", (1,), "10.0.0.7")),
    ],
)
def test_parse(text: str, device: Device):
    assert Device.parse(text) == device
    assert device.threads == len(device.indices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu", "'cpu' is not a device: write cpu:3, cpu:0-3, gpu:0, or NODE/cpu:3"),
        ("", "'' is not a device"),
        ("cpu:-1", "'cpu:-1' is not a device"),
        ("tpu:0", "'tpu:0' is not a device"),
        ("a/b/cpu:0", "'a/b/cpu:0' is not a device"),
        ("cpu:0,1", "'cpu:0,1' is not a device"),
        ("cpu:3-1", "'cpu:3-1' counts backwards: write cpu:1-3"),
        ("gpu:0-1", "'gpu:0-1' names 2 GPUs; a stage runs on one"),
        ("cpu:0-99999999999", "'cpu:0-99999999999' names cpu 99999999999; numbers go up to 65535"),
    ],
)
def test_errors_name_the_text_and_the_remedy(text: str, message: str):
    with pytest.raises(DeviceError) as caught:
        Device.parse(text)
    assert str(caught.value).startswith(message)


@given(st.text(max_size=20))
def test_any_text_is_a_device_or_a_device_error(text: str):
    try:
        device = Device.parse(text)
    except DeviceError:
        return
    assert Device.parse(str(device)) == device


def test_parse_devices():
    expected = (Device("cpu", (0,)), Device("gpu", (1,), "edge7"))
    assert parse_devices("cpu:0, edge7/gpu:1") == expected
    assert parse_devices(["cpu:0", expected[1]]) == expected
    with pytest.raises(DeviceError, match=r"at least one stage: stages=\['cpu:0', 'cpu:1'\]"):
        parse_devices([])


@pytest.mark.parametrize(("cores", "text"), [((), ""), ((3,), "3"), ((2, 1, 0), "0-2"), ((0, 1, 3, 5, 6), "0-1,3,5-6")])
def test_describe_cores(cores: tuple[int, ...], text: str):
    assert describe_cores(cores) == text


def test_a_core_that_does_not_exist_is_named_with_those_that_do():
    usable = usable_cores()
    assert usable == tuple(sorted(os.sched_getaffinity(0)))
    check_cores(usable)
    for refuse in (check_cores, pin_process):
        with pytest.raises(DeviceError) as caught:
            refuse({usable[0], 40_000, 40_001})
        assert str(caught.value) == (
            f"there is no usable core 40000-40001 on {platform.node()}; usable cores: {describe_cores(usable)}"
        )
    assert usable_cores() == usable


def test_the_processor_has_a_name():
    assert cpu_model().strip() == cpu_model() != ""


PIN = """
import json, os, threading, torch
from odin.stages.device import pin_process, usable_cores

gate, stop = threading.Event(), threading.Event()

def start_another():
    gate.wait()
    threading.Thread(target=stop.wait, daemon=True).start()
    stop.wait()

torch.set_num_threads(3)
torch.randn(300, 300) @ torch.randn(300, 300)   # OpenMP's threads exist before
torch.randn(1000000).exp()
threads = [threading.Thread(target=start_another, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
before = len(os.listdir("/proc/self/task"))
core = usable_cores()[-1]
pin_process([core])
gate.set()
later = threading.Thread(target=stop.wait, daemon=True)
later.start()
torch.set_num_threads(5)                        # and some after
torch.randn(1000000).exp()
tasks = [int(task) for task in os.listdir("/proc/self/task")]
print(json.dumps([core, before, len(tasks), sorted({core for task in tasks for core in os.sched_getaffinity(task)})]))
"""


@pytest.mark.slow
def test_every_thread_is_pinned_those_of_openmp_and_later_ones_too():
    done = subprocess.run([sys.executable, "-c", PIN], capture_output=True, text=True, check=True, timeout=PROMPT_S)
    core, before, after, cores = json.loads(done.stdout)
    assert before >= 6  # main, three of ours, two of OpenMP's
    assert after > before
    assert cores == [core]
