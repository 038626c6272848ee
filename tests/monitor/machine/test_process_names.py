"""Names of processes for people."""

from __future__ import annotations

import pytest

from odin.monitor.machine.process_names import is_ray_daemon, process_name


@pytest.mark.parametrize(
    ("kernel_name", "command", "name"),
    [
        ("stress-ng-cpu", ["stress-ng-cpu [run]"], "stress-ng-cpu"),
        ("stress-ng-strea", ["stress-ng-stream [run]"], "stress-ng-stream"),
        ("[kworker/0:1]", [], "[kworker/0:1]"),
        ("python", ["python"], "python"),
        ("python3", ["/usr/bin/python3", "-u", "-X", "dev", "train.py", "--fast"], "python3 train.py"),
        ("python", ["python", "-m", "odin_lab.inject", "cpu"], "python odin_lab.inject"),
        ("python", ["python", "-m"], "python"),
        ("python3.12", ["python3.12", "-c", "while True: pass"], "python3.12 -c"),
        ("bash", ["bash", "/home/me/build.sh"], "bash build.sh"),
        ("a-name-of-the-fi", ["/bin/a-name-of-the-fifteen"], "a-name-of-the-fifteen"),
        ("renamed-itself-t", ["/bin/other"], "renamed-itself-t"),
        ("ffmpeg", ["/usr/bin/ffmpeg", "-i", "film.mkv"], "ffmpeg"),
        ("x" * 15, ["/opt/" + "x" * 90], "x" * 37 + "..."),
    ],
)
def test_names(kernel_name, command, name):
    assert process_name(kernel_name, command) == name


def test_names_cannot_write_to_the_terminal():
    assert process_name("\x1b[31mred\n\x07", []) == "?[31mred??"
    assert process_name("python", ["python", "\x1b]0;title.py"]) == "python ?]0;title.py"


@pytest.mark.parametrize(
    ("kernel_name", "command"),
    [
        ("gcs_server", ["/site-packages/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"]),
        ("raylet", ["/site-packages/ray/core/src/ray/raylet/raylet"]),
        ("raylet", []),
        ("python", ["/usr/bin/python", "-u", "/site-packages/ray/autoscaler/_private/monitor.py", "--logs-dir=/tmp"]),
        ("python", ["/usr/bin/python", "/site-packages/ray/dashboard/dashboard.py", "--host=127.0.0.1"]),
        ("python", ["/usr/bin/python", "-u", "/site-packages/ray/_private/log_monitor.py"]),
        ("python3.11", ["python3.11", "-u", "/site-packages/ray/_private/runtime_env/agent/main.py"]),
        ("ray::DashboardA", ["ray::DashboardAgent" + " " * 90]),
        ("ray::RuntimeEnv", ["ray::RuntimeEnvAgent"]),
        ("ray::IDLE", ["ray::IDLE"]),
    ],
)
def test_rays_own(kernel_name, command):
    assert is_ray_daemon(kernel_name, command)


@pytest.mark.parametrize(
    ("kernel_name", "command"),
    [
        ("ray::Stage", ["ray::Stage"]),  # another pipeline's
        ("python", ["python", "/home/me/ray/train.py"]),
        ("python", ["python", "-c", "import ray"]),
        ("python", ["python"]),
        ("stress-ng-cpu", []),
        ("vim", ["vim", "/site-packages/ray/_private/log_monitor.py"]),
    ],
)
def test_not_rays_own(kernel_name, command):
    assert not is_ray_daemon(kernel_name, command)
