"""A stage runs at normal priority, with all its threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from patience import PROMPT_S

from odin.cluster.deployment import _warn_of_niceness
from odin.stages.actor import StageInfo
from odin.stages.host import run_at_normal_priority

THREADS = """
import os, threading
from odin.stages.host import run_at_normal_priority

leave = threading.Event()
def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
def started_before():
    leave.wait()
    seen.append(niceness())
seen = []
early = threading.Thread(target=started_before)
early.start()
before = niceness()
left = run_at_normal_priority()
leave.set()
early.join()
late = threading.Thread(target=lambda: seen.append(niceness()))
late.start()
late.join()
print(before, left, niceness(), *seen)
"""


@pytest.mark.slow
def test_threads_that_were_there_before_are_raised_as_well_and_later_ones_inherit_it():
    # setpriority acts on one thread: a stage's data thread kept the niceness of 15 that Ray gives its workers.
    if os.geteuid() != 0:
        pytest.skip("lowering niceness needs root here")
    command = ["nice", "-n", "15", sys.executable, "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROMPT_S, check=True)
    lowered = min(os.nice(0) + 15, 19)  # the tests themselves may run under nice(1)
    assert done.stdout.split() == [str(lowered), "0", "0", "0", "0"]


def test_who_may_not_is_told_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    def refuse(which: int, who: int, niceness: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.getpriority", lambda which, who: 15)
    monkeypatch.setattr("os.setpriority", refuse)
    assert run_at_normal_priority() == 15


def test_a_higher_priority_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.getpriority", lambda which, who: -5)
    monkeypatch.setattr("os.setpriority", lambda *_: pytest.fail("nothing is to be changed"))
    assert run_at_normal_priority() == -5


def test_stages_that_stay_nice_are_named_once_with_the_remedy():
    infos = [
        StageInfo(stage, "cpu:0", "cpu", 1, "node", "10.0.0.5", niceness) for stage, niceness in enumerate((0, 15))
    ]
    with pytest.warns(
        UserWarning, match=r"stage 1 .cpu:0, 10\.0\.0\.5. runs at niceness 15.*RAY_worker_niceness=0"
    ) as told:
        _warn_of_niceness(infos)
    assert len(told) == 1
