"""Closing and moving at the same time as others do: what waited for minutes, and what ended on a plan not in force."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from loads import living
from patience import PROMPT_S
from small_pipelines import all_plans, images, small_chain
from test_controller import Bench, Scripted

import odin
from odin.control.arrangement import Arrangement
from odin.monitor.eventlog import EventLog, read_log
from odin.monitor.events import PlanChanged, RunStarted, StageDescription
from odin.monitor.view.builder import ViewBuilder
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision
from odin.partitioner.relay import Windows


def test_a_migration_that_overtakes_a_policys_leaves_everyone_on_the_plan_in_force(tmp_path):
    # The user's came into force, then the policy's; the controller heard of the policy's first and of the user's last.
    bench = Bench(Scripted(r2=Decision(Plan((3, 1)), "move", "because")))
    controller = bench.controller

    def migrate(plan: Plan, windows: Windows | None) -> int:
        controller.on_migration(1, Plan((1, 3)), None, "asked for", 0.25)  # the user was there first
        bench.now_s += 0.5
        return 2

    controller._migrate = migrate
    bench.run(2)
    while controller._worker._items:
        controller._worker._items.popleft()()
    moves = bench.of(PlanChanged)
    assert [(move.epoch, move.before, move.after) for move in moves] == [(1, (2, 2), (1, 3)), (2, (1, 3), (3, 1))]
    assert controller._core.plan == Plan((3, 1))
    assert moves[0].at_s <= moves[1].at_s  # a log is read in the order of time
    # the view, and the log that is read back, end on the same plan
    stages = tuple(StageDescription(f"cpu:{i}", "n", 1, (1.0,) * 4) for i in range(2))
    start = RunStarted(0.0, 0.0, "m", ("a", "b", "c", "d"), stages, (2, 2), "scripted", 4, 1)
    view = ViewBuilder()
    with EventLog(tmp_path / "log") as log:
        for event in (start, *moves):
            view.apply(event)
            log.append(event)
    assert view.view(bench.now_s).epoch == 2
    assert [event.epoch for event in read_log(tmp_path / "log") if isinstance(event, PlanChanged)] == [1, 2]


def test_a_migration_after_a_policys_comes_after_it():
    bench = Bench(Scripted(r2=Decision(Plan((3, 1)), "move", "because")))
    controller = bench.controller

    def migrate(plan: Plan, windows: Windows | None) -> int:
        controller.on_migration(2, Plan((1, 3)), None, "asked for", 0.25)
        return 1

    controller._migrate = migrate
    bench.run(2)
    while controller._worker._items:
        controller._worker._items.popleft()()
    assert [move.epoch for move in bench.of(PlanChanged)] == [1, 2]
    assert controller._core.plan == Plan((1, 3))


class Faked:
    """Deployment, gateway and supervision of a pipeline, which let the test see the order of what happens."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.preparing = {1: threading.Event(), 2: threading.Event()}
        self.go_on = {1: threading.Event(), 2: threading.Event()}

    def check_open(self) -> None:
        pass

    def check_serving(self) -> None:
        pass

    def prepare(
        self, epoch: int, windows: Windows, stages: tuple[int, ...], *, live: list[int], others: list[int]
    ) -> None:
        self.preparing[epoch].set()
        assert self.go_on[epoch].wait(PROMPT_S)

    def switch(self, epoch: int, plan: Plan, windows: Windows, *, stages: tuple[int, ...], max_in_flight: int) -> None:
        self.order.append(("in force", epoch))

    def on_migration(self, epoch: int, plan: Plan, windows: Windows | None, why: str, prepare_s: float) -> None:
        self.order.append(("told", epoch))


def test_a_move_that_was_asked_for_is_told_before_the_next_can_begin():
    fake = Faked()
    arrangement = Arrangement(
        None,
        ["cpu:0", "cpu:1"],
        gateway=fake,
        inlet=None,
        inbox=None,
        deployment=fake,
        supervision=fake,
        in_flight_under=lambda windows: 4,
        why_no_ray=lambda: None,
        on_replaced=lambda stage: None,
    )
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(arrangement.switch, Plan((1, 3)), why="asked for")
        assert fake.preparing[1].wait(PROMPT_S)
        decided = pool.submit(arrangement.switch, Plan((3, 1)))
        fake.go_on[2].set()
        fake.go_on[1].set()
        assert (asked.result(PROMPT_S), decided.result(PROMPT_S)) == (1, 2)
    assert fake.order == [("in force", 1), ("told", 1), ("in force", 2)]


@pytest.mark.ray
def test_close_waits_neither_for_a_migration_nor_for_a_stage_that_hangs(two_cores):
    # It stood behind the lock that a migration held while it waited two minutes for a stage.
    chain = small_chain()
    pipe = odin.Pipeline(chain, stages=two_cores, policy="static", max_in_flight=1)
    (x,) = images(1)
    pids = [stage.pid for stage in pipe.snapshot().stages]
    os.kill(pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        under_way = pipe.submit(x)
        waiting = [pool.submit(pipe.submit, x) for _ in range(2)]
        moving = pool.submit(pipe.migrate, all_plans(len(chain.layers))[1])
        while len(pipe._gateway._waiting.line) < 2 or not pipe._arrangement._switching.locked():
            assert not moving.done()
        draining = pool.submit(pipe.close)
        for future in waiting:
            assert isinstance(future.exception(PROMPT_S), odin.PipelineClosedError)
        assert isinstance(moving.exception(PROMPT_S), odin.PipelineClosedError)
        assert not draining.done()  # it waits for the request under way, a minute at most ...
        closing = [pool.submit(pipe.close, drain=False) for _ in range(3)]  # ... unless somebody has no time
        for future in (draining, *closing):
            assert future.result(PROMPT_S) is None
    assert isinstance(under_way.exception(0), odin.PipelineClosedError)
    with pytest.raises(odin.PipelineClosedError):
        pipe.migrate(all_plans(len(chain.layers))[1])
    pipe.close()
    _, alive = psutil.wait_procs(living(pids), PROMPT_S)
    for process in alive:
        process.kill()
    assert alive == []


@pytest.mark.ray
def test_callbacks_may_use_the_pipeline_in_every_way_and_close_it(two_cores):
    chain = small_chain()
    (x,) = images(1)
    expected = chain(x)
    told = []
    pipe = odin.Pipeline(chain, stages=two_cores, policy="static", max_in_flight=1, on_event=told.append)
    outcome: list[object] = []
    closed = threading.Event()

    def callback(_: object) -> None:
        try:
            outcome.append((pipe(x) == expected).all())
            outcome.append([(y == expected).all() for y in pipe.map([x, x])])
            outcome.append(pipe.migrate(pipe.plan))
            outcome.append(pipe.snapshot().failed)
            pipe.close()
        except BaseException as error:
            outcome.append(error)
        closed.set()

    under_way = pipe.submit(x)
    other = threading.Thread(target=lambda: pipe(x))
    other.start()
    under_way.add_done_callback(callback)
    assert closed.wait(2 * PROMPT_S)
    other.join(PROMPT_S)
    assert outcome == [True, [True, True], 1, 0]
    pipe.close()
    assert told[-1].kind == "end"
    assert told[-1].reason == "closed"


@pytest.mark.ray
@pytest.mark.parametrize("policy", ["static", "relay"])
def test_a_stage_that_dies_while_the_pipeline_is_closed_loses_nothing(two_cores, policy):
    # Nobody looked at stages any more once closing had begun: what a dead one had failed after a minute.
    chain = small_chain()
    xs = images(3)
    pipe = odin.Pipeline(chain, stages=two_cores, policy=policy)
    pids = [stage.pid for stage in pipe.snapshot().stages]
    os.kill(pids[1], signal.SIGSTOP)
    under_way = [pipe.submit(x) for x in xs]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(pipe.close, timeout_s=PROMPT_S)
        while pipe._gateway._error is None:
            assert not closing.done()
        os.kill(pids[1], signal.SIGKILL)
        assert closing.result(PROMPT_S) is None
    for x, future in zip(xs, under_way, strict=True):
        assert (future.result(0) == chain(x)).all()
