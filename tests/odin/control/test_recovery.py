"""Recovery with a gateway and stages that only write down what is asked of them, step by step on a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from odin.control.faults import Faults
from odin.control.recovery import Recovery
from odin.errors import OdinError, StageLostError
from odin.monitor.events import Event, Fault, StageBack, StageLost
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, WORKING, Readiness
from odin.stages.channel.way import Way


class Told:
    """The gateway and the stages."""

    def __init__(self, count: int) -> None:
        self.live = tuple(range(count))
        self.calls: list[Any] = []
        self.pids = list(range(100, 100 + count))
        self.readiness = [Readiness() for _ in range(count)]
        self.ways: list[Way | None] = [None] * count
        self.replace_fails: list[Exception] = []
        self.cannot_replace: str | None = None
        self.regroup_fails: list[Exception] = []
        self.failed: OdinError | None = None
        self.runnable: set[int] = set()
        self.answered: set[int] = set()

    def lose(self, stage: int, name: str, *, dead: bool) -> tuple[int, int]:
        self.calls.append(("lose", stage, dead))
        return 2, 0

    def regain(self, stage: int, *, replaced: bool) -> None:
        self.calls.append(("regain", stage, replaced))

    def fail(self, error: OdinError) -> None:
        self.failed = error

    def wake_when_busy(self, wake: Callable[[], None]) -> bool:
        return False

    def sender(self, stage: int) -> Any:
        return SimpleNamespace(readiness=self.readiness[stage], way=self.ways[stage])

    def name(self, stage: int) -> str:
        return f"stage {stage} (cpu:{stage}, process {self.pids[stage]})"

    def pid(self, stage: int) -> int:
        return self.pids[stage]

    def wants_core(self, stage: int) -> bool:
        return stage in self.runnable

    def has_answered(self, stage: int) -> bool:
        return stage in self.answered

    def regroup(self, stages: tuple[int, ...]) -> None:
        if self.regroup_fails:
            raise self.regroup_fails.pop()
        self.calls.append(("regroup", stages))

    def end(self, stage: int) -> None:
        self.calls.append(("end", stage))

    def replace(self, stage: int) -> None:
        if self.replace_fails:
            raise self.replace_fails.pop()
        self.pids[stage] += 100
        self.readiness[stage] = Readiness()


class ActorFailedError(Exception):
    """As Ray has them: the text begins with where it was, and what it was is the cause."""

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        self.cause = cause


class Line:
    def __init__(self, count: int = 3) -> None:
        self.now_s = 0.0
        self.told = Told(count)
        self.events: list[Event] = []
        self.recovery = Recovery(
            [0.1] * count,
            gateway=self.told,
            stages=self.told,
            emit=self.events.append,
            faults=Faults(self.events.append, clock=lambda: self.now_s),
            clock=lambda: self.now_s,
        )
        self.recovery._rest = lambda: None  # type: ignore[method-assign]  # the clock is the test's

    def step(self, by_s: float = 0.1, times: int = 1) -> None:
        for _ in range(times):
            self.now_s = round(self.now_s + by_s, 6)
            self.recovery._step()
            for thread in self.recovery._replacing:
                thread.join()

    def busy(self, stage: int, *, request: int = 0) -> None:
        words = self.told.readiness[stage].words
        words[IDLE_SINCE_S], words[WORKING] = math.inf, request

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


pytestmark = pytest.mark.filterwarnings("ignore:replacing stage")


@pytest.fixture
def line() -> Line:
    return Line()


def test_a_stage_that_died_is_replaced_and_the_others_do_its_work_meanwhile(line: Line):
    line.recovery.stage_gone(1)
    assert line.told.calls == [("lose", 1, True)]  # before anything else
    line.step()
    assert line.told.calls[1:] == [("regroup", (0, 2))]
    assert line.told.live == (0, 2)
    line.step(times=3)
    assert line.told.calls[2:] == [("regain", 1, True), ("regroup", (0, 1, 2))]
    assert line.of(StageLost) == [StageLost(0.1, 1, "process 101 is gone", False, 2)]
    (back,) = line.of(StageBack)
    assert (back.at_s, back.stage, back.pid, round(back.away_s, 6), back.replaced) == (0.3, 1, 201, 0.2, True)


def test_one_that_hangs_is_left_out_and_is_back_when_it_says_something(line: Line):
    line.busy(2)
    line.step(times=16)  # 10 x 0.1 + 0.5
    assert line.told.calls == [("lose", 2, False), ("regroup", (0, 1))]
    line.step(times=5)
    assert line.told.calls[2:] == []
    line.told.readiness[2].words[FREE_S] = 7.0
    line.step()
    assert line.told.calls[2:] == [("regain", 2, False), ("regroup", (0, 1, 2))]
    (lost,) = line.of(StageLost)
    assert (lost.stage, lost.hangs) == (2, True)
    assert "process 102 has said nothing for 1.5 s" in lost.why
    assert [(event.stage, event.pid, event.replaced) for event in line.of(StageBack)] == [(2, 102, False)]


def test_one_that_waits_for_its_core_is_given_longer(line: Line):
    line.busy(2)
    line.told.runnable = {2}
    line.step(times=60)
    assert line.told.calls == []
    line.step()
    assert line.told.calls == [("lose", 2, False), ("regroup", (0, 1))]


def test_one_that_hangs_for_long_is_ended_and_replaced(line: Line):
    line.busy(0)
    line.step(times=330)
    assert ("end", 0) in line.told.calls
    line.recovery.stage_gone(0)  # which its end causes
    line.step(times=4)
    assert line.told.calls[-2:] == [("regain", 0, True), ("regroup", (0, 1, 2))]


def test_a_replacement_that_fails_is_tried_again_later_and_later_and_given_up_at_last(line: Line):
    line.told.replace_fails = [RuntimeError("no place")] * 100
    line.recovery.stage_gone(1)
    line.step(times=3000)
    assert len(line.told.replace_fails) == 92
    (given_up,) = [fault for fault in line.of(Fault) if "8 processes" in fault.error]
    assert given_up.part == "replacing stage 1"
    assert line.told.failed is None  # two others serve
    assert line.told.live == (0, 2)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no place\nin this node"), "no place"),
        (RuntimeError(""), "RuntimeError"),
        (ActorFailedError("ray::StageActor.start() (pid=7)\n  File ...", ValueError("no memory")), "no memory"),
    ],
)
def test_why_a_replacement_failed_is_told_in_one_line(line: Line, error: Exception, told: str):
    line.told.replace_fails = [error]
    line.recovery.stage_gone(1)
    line.step(times=4)
    assert [fault.error for fault in line.of(Fault)] == [f"{told}; it is tried again"]


def test_with_none_left_and_none_to_come_all_fails():
    line = Line(2)
    line.told.cannot_replace = "Ray's control process (GCS), process 7, has ended"
    for stage in (0, 1):
        line.recovery.stage_gone(stage)
        line.step(times=3)
    assert "all stages are lost (stage 0 (cpu:0, process 100), stage 1 (cpu:1, process 101))" in str(line.told.failed)
    assert "(GCS), process 7, has ended" in str(line.told.failed)


def test_preparing_that_fails_is_tried_again(line: Line):
    line.told.regroup_fails = [RuntimeError("another stage has died")]
    line.told.replace_fails = [RuntimeError("no place")] * 100
    line.recovery.stage_gone(1)
    with pytest.raises(RuntimeError, match="another stage"):  # which its thread tells, and goes on
        line.step()
    line.recovery.stage_gone(2)
    line.step(times=8)
    assert ("regroup", (0,)) in line.told.calls


def test_one_that_does_not_answer_is_left_out_until_it_does(line: Line):
    # Stages 1 and 2 were stopped at once; nothing waited for stage 2, but preparing waited for it for two minutes.
    line.told.regroup_fails = [StageLostError("stage 2 does not answer", 2)]
    line.busy(1)
    line.step(times=17)
    assert line.told.calls == [("lose", 1, False), ("lose", 2, False), ("regroup", (0,))]
    assert [lost.why for lost in line.of(StageLost)][1] == "process 102 does not answer"
    line.step(times=5)
    assert line.told.calls[3:] == []
    line.told.answered = {2}
    line.step()
    assert line.told.calls[3:] == [("regain", 2, False), ("regroup", (0, 2))]


def test_one_that_hangs_is_not_ended_ten_times_a_second(line: Line):
    line.busy(0)
    line.step(times=330)  # ended after 30 s, and its channels, on another machine, do not end
    assert line.told.calls.count(("end", 0)) == 1


def test_a_replacement_that_fails_because_another_stage_hangs_is_not_counted(line: Line):
    line.told.replace_fails = [StageLostError("stage 0 does not answer", 0)]
    line.recovery.stage_gone(1)
    line.step(times=5)
    assert ("lose", 0, False) in line.told.calls
    assert ("regain", 1, True) in line.told.calls
    assert line.recovery._state[1].attempts == 1
    assert line.of(Fault) == []


def test_one_that_waits_for_a_later_one_to_take_a_request_is_not_what_hangs(line: Line):
    # Stage 0 could not hand over to stage 2, which was stopped; both were held to hang, and ended and replaced.
    line.busy(0, request=-1)
    line.busy(2)
    line.step(times=17)
    assert line.told.calls == [("lose", 2, False), ("regroup", (0, 1))]  # stage 0 gives the request back then
    line.told.readiness[0].words[FREE_S] = 1.0
    line.step(times=20)
    assert [lost.stage for lost in line.of(StageLost)] == [2]


def test_one_on_another_machine_hangs_when_it_says_nothing_although_nothing_is_known_to_be_there(line: Line):
    # The wire was cut while the gateway's own requests were handed on to it by others: nobody noticed for a minute.
    way = line.told.ways[2] = Way()
    for _ in range(100):
        way.note_heard(begun=0, since_s=0.0, others=0, turn_s=0.0, now_s=line.now_s)
        line.step(times=2)
    assert line.told.calls == []
    line.step(times=30)
    assert line.told.calls == [("lose", 2, False), ("regroup", (0, 1))]
    way.note_heard(begun=0, since_s=0.0, others=0, turn_s=0.0, now_s=line.now_s)
    line.step()
    assert line.told.calls[2:] == [("regain", 2, False), ("regroup", (0, 1, 2))]


def test_one_that_lived_for_long_is_replaced_at_once_again(line: Line):
    for death in range(20):
        line.recovery.stage_gone(1)
        line.step(times=4)
        assert line.told.pids[1] == 201 + 100 * death
        line.step(by_s=40.0)
    assert line.of(Fault) == []


def test_one_that_dies_soon_again_and_again_is_given_up(line: Line):
    for _ in range(20):
        line.recovery.stage_gone(1)
        line.step(times=200)
    assert line.told.pids[1] == 101 + 800
    (given_up,) = line.of(Fault)
    assert "8 processes one after the other did not start, or died soon; it is given up" in given_up.error


def test_one_that_has_served_is_replaced_as_often_as_it_dies(line: Line):
    for death in range(20):
        for said in range(17):
            line.told.readiness[1].words[FREE_S] = float(said)
            line.step()
        line.recovery.stage_gone(1)
        line.step(times=4)
        assert line.told.pids[1] == 201 + 100 * death
