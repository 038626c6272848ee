"""What runs apart leaves nothing in this process, and its result and its errors arrive as they are."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest
from loads import wait_for

from odin.cluster.apart import run_apart
from odin.stages.device import Device, DeviceError

pytestmark = pytest.mark.ray


def test_it_is_another_process_which_ends(ray_session: None):
    def double(array: np.ndarray, *, times: int) -> tuple[int, np.ndarray]:
        return os.getpid(), array * times

    pid, array = run_apart(double, np.arange(100_000.0), times=2)
    assert pid != os.getpid()
    assert np.array_equal(array, 2 * np.arange(100_000.0))
    wait_for(lambda: not psutil.pid_exists(pid), what="the process ends")


def test_an_error_keeps_its_type_and_its_text(ray_session: None):
    def parse(text: str) -> Device:
        return Device.parse(text)

    with pytest.raises(DeviceError, match=r"^'cpu:x' is not a device") as raised:
        run_apart(parse, "cpu:x")
    assert type(raised.value) is DeviceError
