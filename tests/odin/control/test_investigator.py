"""Who disturbs a stage, put together from its timings and a look around."""

from __future__ import annotations

import threading

import numpy as np
from patience import PROMPT_S

from odin.control.investigator import Investigator, Ration
from odin.monitor.attribution.culprits import CulpritReport
from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.events import Culprit
from odin.monitor.timing import StageTiming
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Setting
from odin.stages.device import Device

SETTING = Setting(Plan((2, 2)), np.full((2, 4), 0.05), np.zeros(5), np.zeros(5), np.array([10.0, 50.0, 10.0, 50.0]))
STRESS = Culprit(4242, "stress-ng", 0.5)
DEVICES = (Device.parse("cpu:0"), Device.parse("cpu:1"))
QUIET = [StageTiming(1, 2, 4, 0.0, 0.1, 0.1, 0.0, 0.0, (0.05, 0.05))] * 10
PREEMPTED = [StageTiming(1, 2, 4, 0.0, 0.2, 0.1, 0.1, 0.0, (0.1, 0.1))] * 10


class Bench:
    def __init__(self, look, *, ration=None):
        self.events, self.now_s, self.slept = [], 0.0, 0
        self.told = threading.Event()
        self.investigator = Investigator(
            SETTING,
            DEVICES,
            look=look,
            emit=self.emit,
            ration=ration or Ration(),
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def emit(self, event):
        self.events.append(event)
        self.told.set()

    def sleep(self, seconds):
        self.now_s += seconds
        self.slept += 1


def test_a_stressor_is_named_with_what_it_does():
    asked = []

    def look(stage):
        asked.append(stage)
        return Neighbours(CulpritReport((STRESS,)))

    bench = Bench(look)
    bench.investigator.investigate(1, QUIET, lambda: PREEMPTED)
    assert bench.told.wait(PROMPT_S)
    (found,) = bench.events
    assert (found.stage, found.interference, found.culprits, found.note) == (1, "CPU share", (STRESS,), "")
    assert asked == [1]
    assert bench.slept == 0
    bench.investigator.close()


def test_it_waits_for_a_few_requests_but_not_for_ever():
    bench = Bench(lambda stage: Neighbours(CulpritReport((STRESS,))))
    found = bench.investigator.solve(1, QUIET, lambda: PREEMPTED[:1])
    assert 1.9 < bench.now_s < 2.2
    assert (found.interference, found.culprits) == ("CPU share", (STRESS,))
    bench.investigator.close()


def test_a_load_from_the_start_is_compared_with_the_profile():
    bench = Bench(lambda stage: Neighbours(CulpritReport((STRESS,))))
    found = bench.investigator.solve(1, [], lambda: PREEMPTED)
    assert (found.interference, found.culprits, found.note) == ("CPU share", (STRESS,), "")
    bench.investigator.close()


def test_without_timings_the_culprit_is_still_named_and_the_kind_unknown():
    bench = Bench(lambda stage: Neighbours(CulpritReport((STRESS,))))
    found = bench.investigator.solve(1, QUIET, list)
    assert (found.interference, found.culprits) == ("unknown", (STRESS,))
    assert found.note
    bench.investigator.close()


def test_where_one_cannot_look_it_says_so():
    def look(stage):
        raise PermissionError("not allowed")

    bench = Bench(look)
    found = bench.investigator.solve(1, QUIET, lambda: PREEMPTED)
    assert (found.interference, found.culprits) == ("CPU share", ())
    assert "could not look around: not allowed" in found.note
    bench.investigator.close()


def test_a_quota_stops_all_stages_of_the_machine():
    # One core in the mean, and so half of the time of each of the two: all of what is added to these requests.
    bench = Bench(lambda stage: Neighbours(CulpritReport(()), stopped_cores=1.0))
    found = bench.investigator.solve(1, QUIET, lambda: PREEMPTED)
    assert found.interference == "throttling"
    bench.investigator.close()


def test_one_case_at_a_time_for_each_stage():
    gate, asked = threading.Event(), []

    def look(stage):
        asked.append(stage)
        gate.wait(PROMPT_S)
        return Neighbours(CulpritReport(()))

    bench = Bench(look)
    for _ in range(5):
        bench.investigator.investigate(1, QUIET, lambda: PREEMPTED)
    gate.set()
    assert bench.told.wait(PROMPT_S)
    assert asked == [1]
    bench.investigator.close()
    bench.investigator.investigate(0, QUIET, lambda: PREEMPTED)  # after the end: nothing
    assert asked == [1]


def test_looking_around_uses_no_more_than_its_ration():
    """Ten pipelines on the same cores see each other come and go: together they look no more often than one."""
    ration = Ration(0.02)
    began_s = []
    for _ in range(10):  # each look takes 20 ms of a processor
        began_s.append(ration.reserve(3.0))
        ration.used(0.02, began_s[-1] + 0.4)
    assert began_s[0] == 3.0
    between_s = np.diff(began_s)
    assert (between_s >= 1.0 - 1e-9).all()
    assert (between_s <= 1.5).all()
    assert ration.reserve(100.0) == 100.0


def test_those_that_reserve_at_once_come_one_after_the_other():
    ration = Ration(0.02)
    ration.used(0.02, 0.0)
    assert [ration.reserve(0.0) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_look_waits_for_its_ration_but_not_once_closed():
    ration = Ration(0.02)
    ration.used(0.1, 0.0)
    looked_s = []

    def look(stage):
        looked_s.append(bench.now_s)
        return Neighbours(CulpritReport((STRESS,)))

    bench = Bench(look, ration=ration)
    bench.investigator.solve(1, QUIET, lambda: PREEMPTED)
    assert 5.0 <= looked_s[0] < 5.2
    ration.used(0.1, bench.now_s)
    bench.investigator.close()
    bench.investigator.solve(1, QUIET, lambda: PREEMPTED)
    assert looked_s[1] < 5.3
