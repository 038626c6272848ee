"""Processes of actors are ended also where Ray cannot do it any more."""

from __future__ import annotations

import subprocess

import psutil
import pytest

from odin.cluster import actors


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
