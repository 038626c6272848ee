"""Bugs of what watches over a pipeline, each with its story: threads that ended unseen, and what they poisoned."""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings

import msgspec
import numpy as np
import pytest
import ray
from patience import PROMPT_S
from small_pipelines import images, small_chain
from synthetic_run import START_S, request, run_started
from test_controller import SETTING, Bench, Scripted

import odin
from odin.control.faults import Faults
from odin.control.investigator import Investigator
from odin.control.supervision import EventRecorder, Supervision
from odin.monitor.attribution.culprits import CulpritReport
from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.detectors import CusumDetector
from odin.monitor.eventlog import read_log
from odin.monitor.events import (
    Attributed,
    EventsMissing,
    Fault,
    LoadChanged,
    MoveFailed,
    PlanChanged,
    PolicyChanged,
    RequestDone,
    RequestFailed,
    RunEnded,
    RunStarted,
    from_json,
)
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.monitor.watch import StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Decision, StaticPolicy, checked_decision
from odin.stages.device import Device


class Told:
    """The warnings of a block, those of other threads included."""

    def __enter__(self):
        self._context = warnings.catch_warnings(record=True)
        self._caught = self._context.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *exception):
        self._context.__exit__(*exception)

    @property
    def texts(self):
        return [str(warning.message) for warning in self._caught]


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


# -- on_event ------------------------------------------------------------------------------------------------------
class NotAnError(BaseException):
    def __repr__(self):
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mine"), SystemExit(3), KeyboardInterrupt(), NotAnError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_an_on_event_that_raised_once_ended_the_controller(error, always, tmp_path):
    """It was called in the controller's thread, whose loop it ended: no event, no move, no log any more, no word."""
    told = []

    def on_event(event):
        told.append(event)
        if always or len(told) == 5:
            raise error

    log = tmp_path / "run.jsonl"
    events = [run_started(), *(request(n, START_S + n, (0.1, 0.1)) for n in range(40))]
    with Told() as warned:
        recorder = EventRecorder(log, on_event, clock=lambda: START_S + 50)
        for event in events:
            recorder.emit(event)
        recorder.sum_up()
        recorder.close()
    assert [event for event in told if not isinstance(event, Fault)] == events
    assert len(warned.texts) == 1  # not one for each request
    assert warned.texts[0].startswith(f"on_event raised {type(error).__name__}(")
    assert f"{__file__}, line " in warned.texts[0]
    (first, *more) = of(read_log(log), Fault)
    assert first.part == "on_event"
    assert [fault.times for fault in more] == ([len(events) + 1] if always else [])  # it is told of the fault, too


def test_events_of_several_threads_came_in_another_order_to_the_log_than_to_on_event(tmp_path):
    log, told = tmp_path / "run.jsonl", []
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        recorder = EventRecorder(log, told.append, clock=lambda: START_S)
        recorder.emit(run_started())

        def emit(thread: int) -> None:
            for number in range(300):
                recorder.emit(RequestFailed(START_S + number, 1000 * thread + number, "StageLostError: gone"))

        threads = [threading.Thread(target=emit, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PROMPT_S)
        recorder.close()
    finally:
        sys.setswitchinterval(before_s)
    assert len(told) == 1 + 4 * 300
    assert [from_json(line) for line in log.read_text().splitlines()] == told  # read_log puts them in the order of time


def test_an_on_event_that_is_slow_let_everything_wait_without_bound():
    """Its caller was the controller: timelines piled up behind it, and decisions came as late as they were many."""
    entered, go_on, told = threading.Event(), threading.Event(), []

    def on_event(event):
        entered.set()
        assert go_on.wait(PROMPT_S)
        told.append(event)

    with Told() as warned:
        recorder = EventRecorder(None, on_event, clock=lambda: START_S)
        recorder.emit(run_started())
        assert entered.wait(PROMPT_S)
        for number in range(10_000):
            recorder.emit(request(number, START_S + number / 1000, (0.001, 0.001)))
            if number % 1000 == 0:
                recorder.emit(RequestFailed(START_S + number / 1000, number, "StageLostError: gone"))
            assert len(recorder._teller._items) <= 4096
        assert recorder.view(START_S + 10).completed == 10_000  # nothing waits for it
        go_on.set()
        recorder.close()
    assert len(of(told, RequestFailed)) == 10
    done, missing = of(told, RequestDone), of(told, EventsMissing)
    assert done[-1].timeline.request == 9_999
    assert len(done) + sum(event.requests for event in missing) == 10_000
    assert [text for text in warned.texts if "on_event" in text] == warned.texts
    assert len(warned.texts) == 1


def test_warnings_that_are_errors_ended_a_thread(capsys):
    faults = Faults(lambda event: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults.tell("on_event", RuntimeError("mine"), "serving goes on")
    assert "on_event raised RuntimeError('mine'); serving goes on" in capsys.readouterr().err


def test_faults_of_ever_new_classes_do_not_pile_up():
    events = []
    faults = Faults(events.append)
    with Told() as warned:
        for number in range(1000):
            faults.tell("on_event", type(f"Error{number}", (Exception,), {})(), "serving goes on")
    assert len(faults.counts) <= 201
    assert len(events) == len(warned.texts) == len(faults.counts)


@pytest.mark.ray
def test_on_event_may_raise_and_use_its_pipeline(two_cores, tmp_path):
    """``serving_faults.py``: told of 5 events, of some 60 and more that there were."""
    told, seen, ready, pipe = [], [], threading.Event(), None

    def on_event(event):
        assert ready.wait(PROMPT_S)
        told.append(event)
        if len(told) == 5:
            raise RuntimeError("mine")
        if len(told) == 10:
            seen.append(pipe.view().epoch)
            pipe.policy = "lls"
            pipe.policy = "static"
            seen.append(pipe.migrate(Plan((1, len(pipe.chain.layers) - 1))))
        if isinstance(event, PlanChanged):
            seen.append("moved")
        if len(of(told, RequestDone)) == 60 and "closed" not in seen:
            seen.append("closed")
            pipe.close()
        if isinstance(event, RunEnded):
            pipe.close()  # once more

    with Told() as warned:
        pipe = odin.Pipeline(small_chain(), stages=two_cores, policy="static", on_event=on_event, log=tmp_path / "log")
        closed = threading.Event()
        teller = pipe._assembly._recorder._teller._thread
        ready.set()
        for x in images(60):
            pipe(x)
        teller.join(PROMPT_S)
        closed.set()
        pipe.close()
    assert seen == [0, 1, "moved", "closed"]
    assert [event.policy for event in of(told, PolicyChanged)] == ["lls", "static"]
    assert len(of(told, RequestDone)) == 60
    assert isinstance(told[-1], RunEnded)
    assert len([text for text in warned.texts if "on_event raised RuntimeError('mine')" in text]) == 1
    assert len(of(read_log(tmp_path / "log"), RequestDone)) == 60


# -- moves that fail -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.GetTimeoutError("prepare"),
        ray.exceptions.OutOfMemoryError("the node"),
        ray.exceptions.RayTaskError("prepare", "Traceback\nmany lines", ValueError("no layer 7")),
        MemoryError(),
        odin.OdinError("something new"),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_move_that_failed_ended_the_controller(error):
    """Anything but a dead actor ended its thread; the policy would have asked for the same at each request."""
    attempts, plan = [], Plan((3, 1))

    class Stubborn(Scripted):
        def decide(self, observation):
            super().decide(observation)
            return Decision(plan, "move", "now")

    policy = Stubborn()
    bench = Bench(policy)

    def migrate(to, windows):
        attempts.append(bench.now_s)
        if len(attempts) < 4:
            raise error
        return 1

    bench.controller._migrate = migrate
    with Told() as warned:
        bench.run(30, interval_s=0.5)
    assert np.diff(attempts) == pytest.approx([1.0, 2.0, 4.0])  # rarer and rarer
    failed = bench.of(MoveFailed)
    assert [(event.plan, event.wanted, event.retry_s) for event in failed] == [
        ((2, 2), (3, 1), 1.0), ((2, 2), (3, 1), 2.0), ((2, 2), (3, 1), 4.0)
    ]  # fmt: skip
    assert all(type(error).__name__.split("(")[0] in event.error and "\n" not in event.error for event in failed)
    assert len(warned.texts) == 1
    assert "moving layers raised" in warned.texts[0]
    assert bench.controller.policy is policy
    # It begins anew with the plan in force each time that it is asked again.
    assert [setting.plan for setting in policy.started] == [Plan((2, 2))] * 4
    assert len(bench.of(PlanChanged)) == 1
    assert len(bench.of(RequestDone)) == 30


def test_after_a_move_that_went_well_the_next_failure_is_tried_again_soon():
    bench = Bench(Scripted(**{f"r{number}": Decision(Plan((3, 1)), "move", "") for number in (1, 3, 9)}))
    fails = [True, True, False]

    def migrate(plan, windows):
        if fails.pop(0):
            raise MemoryError
        return 1

    bench.controller._migrate = migrate
    with pytest.warns(UserWarning, match="moving layers raised MemoryError"):
        bench.run(20, interval_s=1.0)
    assert [event.retry_s for event in bench.of(MoveFailed)] == [1.0, 2.0]
    assert bench.controller._retry_s == 1.0


# -- policies and detectors ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("predicted_s", "expected_s"),
    [(np.float32(0.5), 0.5), (np.float64(0.25), 0.25), (np.int64(2), 2.0), (np.array(0.5), 0.5), (math.nan, math.nan),
     (math.inf, math.nan), (-1.0, math.nan), (0, math.nan), (None, math.nan), (np.float32("nan"), math.nan)],
)  # fmt: skip
@pytest.mark.parametrize(("why", "expected_why"), [(None, ""), (7, "7"), (np.str_("slow"), "slow"), (["a"], "['a']")])
def test_what_a_policy_answers_poisoned_the_log(predicted_s, expected_s, why, expected_why, tmp_path):
    """A numpy scalar is no JSON: the log raised before its buffer was empty, and so at each event from then on."""
    log = tmp_path / "run.jsonl"
    recorder = EventRecorder(log)
    recorder.emit(run_started((2, 2)))
    bench = Bench(Scripted(r2=Decision((np.int64(3), np.int64(1)), "move", why, predicted_s)))
    bench.controller._emit = recorder.emit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench.run(5)
        recorder.close()
    events = list(read_log(log, on_note=pytest.fail))
    assert len(of(events, RequestDone)) == 5
    (moved,) = of(events, PlanChanged)
    assert (moved.after, moved.why) == ((3, 1), expected_why)
    assert moved.predicted_hz == pytest.approx(1 / expected_s, nan_ok=True)
    assert bench.moved == [Plan((3, 1))]
    assert type(bench.moved[0]) is Plan


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Decision(Plan((2, 2)), "move", "", "soon"), "predicted_s is 'soon'; give seconds as a number"),
        (Decision(Plan((2, 2)), "move", "", 1j), "predicted_s is 1j"),
        (Decision("3|x", "move", ""), "'3|x' is not a plan"),
        (Decision((1.5, 2.5), "move", ""), "layers are not divided"),
        (Decision(None, "move", ""), "plan is None; give a Plan"),
        (Decision((5, -1), "move", ""), "negative"),
        (Decision(Plan((2, 2)), None, ""), "kind is None; give 'move'"),
        ((3, 1), r"answer is \(3, 1\), not a Decision"),
        ("3|1", "answer is '3|1', not a Decision"),
        (True, "answer is True, not a Decision"),
    ],
)
def test_a_policy_that_answers_nonsense_is_told_with_its_own_line(answer, message):
    bench = Bench(Scripted(r2=answer))
    with pytest.warns(UserWarning, match=message) as warned:
        bench.run(10)
    assert len(warned) == 1
    line = Scripted.decide.__code__.co_firstlineno
    assert str(warned[0].message).endswith(
        f"; layers stay where they are ({Scripted.decide.__code__.co_filename}, line {line})"
    )
    assert [event.policy for event in bench.of(PolicyChanged)] == ["static"]
    assert len(bench.of(RequestDone)) == 10


def test_plans_as_text_and_lists_are_taken():
    for plan in ("3|1", [3, 1], np.array([3, 1]), (3.0, 1.0)):
        decision = checked_decision(Decision(plan, "move", ""), SETTING)
        assert decision.plan == Plan((3, 1))
        assert type(decision.plan) is Plan


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), NotAnError()], ids=lambda e: type(e).__name__)
def test_a_policy_that_exits_ended_the_controller(error):
    class Exits(Scripted):
        def decide(self, observation):
            raise error

    bench = Bench(Exits())
    with pytest.warns(UserWarning, match=f"policy scripted raised {type(error).__name__}.*{__file__}, line ") as warned:
        bench.run(10)
    assert len(warned) == 1
    assert bench.controller.policy.name == "static"


def test_each_policy_that_raises_is_told_though_of_the_same_name():
    bench = Bench(Scripted(r2=ValueError("a"), r4=ValueError("b")))
    with Told() as warned:
        bench.run(3)
        bench.controller.set_policy(bench.policy)
        bench.controller.start()
        bench.controller.close()
        bench.run(3)
    assert len(warned.texts) == 2


def test_a_policy_without_a_name_is_refused_when_it_is_set():
    """Its name went into the log's first record as it was, and the log could not be read."""
    policy = Scripted()
    policy.name = 7
    with pytest.raises(ValueError, match="the name of policy Scripted is 7; give its text form"):
        supervision(policy=policy)


@pytest.mark.parametrize("name", ["changed", "age", "noise"])
def test_a_detector_of_the_wrong_shape_was_the_policys_fault(name):
    """The policy was shown what the detector told, raised, and was replaced."""

    class Short(CusumDetector):
        pass

    setattr(Short, name, property(lambda self: np.zeros(3)))
    policy = Scripted()
    bench = Bench(policy, watch=StageWatch(SETTING.baseline_s, Short(2)))
    with pytest.warns(
        UserWarning, match=rf"detector Short raised ValueError.*its {name} has shape \(3,\), not \(2,\)"
    ) as w:
        bench.run(40)
    assert len(w) == 1
    assert bench.controller.policy is policy
    assert [observation.request for observation in policy.seen] == list(range(1, 41))
    assert {observation.changed.shape for observation in policy.seen} == {(2,)}


def test_what_raises_while_it_looks_left_requests_to_be_looked_at_again_for_ever():
    """Those looked at together were forgotten only after the last one: each more request made the list longer."""
    bench = Bench(Scripted())
    bench.controller._emit = lambda event: None
    bench.controller._recent = []  # a defect of our own
    for _ in range(20):
        with pytest.raises(IndexError):
            bench.run(1)
    assert bench.controller._waiting == []


def test_a_defect_of_our_own_is_told_once_and_the_thread_goes_on():
    bench = Bench(Scripted())
    bench.controller._recent = []
    bench.controller.start()
    stages = tuple(StageTiming(i, 2 * i, 2 * i + 2, 0.0, 2.0, 2.0, 0.0, 0.0, (1.0, 1.0)) for i in range(2))
    with Told() as warned:
        for number in range(1, 50):
            bench.controller.on_result(RequestTimeline(number, 0, 0.0, float(number), stages))
        bench.controller.close()
    assert len(bench.of(RequestDone)) == 49
    assert len(warned.texts) == 1
    assert "the controller raised IndexError" in warned.texts[0]


def test_requests_that_came_faster_than_they_were_looked_at_piled_up():
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Scripted):
        def decide(self, observation):
            entered.set()
            assert go_on.wait(PROMPT_S)
            return super().decide(observation)

    policy = Slow()
    bench = Bench(policy)
    bench.controller.start()
    stages = tuple(StageTiming(i, 2 * i, 2 * i + 2, 0.0, 2.0, 2.0, 0.0, 0.0, (1.0, 1.0)) for i in range(2))
    with Told() as warned:
        bench.controller.on_result(RequestTimeline(1, 0, 0.0, 1.0, stages))
        assert entered.wait(PROMPT_S)
        bench.controller.on_failure(0, odin.StageLostError("gone"))
        bench.controller.on_migration(3, Plan((1, 3)), None, "asked for", 0.1)
        for number in range(2, 10_001):
            bench.controller.on_result(RequestTimeline(number, 0, 0.0, float(number), stages))
            assert len(bench.controller._worker._items) <= 4096
        go_on.set()
        bench.controller.close()
    missing = sum(event.requests for event in bench.of(EventsMissing))
    assert len(bench.of(RequestDone)) + missing == 10_000
    assert missing > 5000
    assert len(bench.of(RequestFailed)) == len(bench.of(PlanChanged)) == 1
    assert policy.seen[-1].request == 10_000  # counted
    assert len(warned.texts) == 1
    assert "left out the oldest of the requests" in warned.texts[0]


# -- the investigator ----------------------------------------------------------------------------------------------
DEVICES = (Device.parse("cpu:0"), Device.parse("cpu:1"))
TIMINGS = [StageTiming(1, 2, 4, 0.0, 0.2, 0.1, 0.1, 0.0, (0.1, 0.1))] * 10


def test_an_investigation_that_raised_was_the_last_one():
    """Its thread ended, and the stage counted as being investigated for ever."""
    events, told, broken = [], threading.Semaphore(0), [True, True, True]

    def look(stage):
        if broken:
            broken.pop()
            return Neighbours(None)  # a report that cannot be read
        return Neighbours(CulpritReport(()))

    def emit(event):
        events.append(event)
        told.release()

    with Told() as warned:
        investigator = Investigator(SETTING, DEVICES, look=look, emit=emit)
        for _ in range(4):
            found = len(of(events, Attributed))
            investigator.investigate(1, TIMINGS, lambda: TIMINGS)
            while len(of(events, Attributed)) == found:
                assert told.acquire(timeout=PROMPT_S)
            while investigator._busy:
                time.sleep(0.001)
        investigator.close()
    assert len(of(events, Attributed)) == 4
    assert [event.interference == "unknown" for event in of(events, Attributed)[:3]] == [True] * 3
    assert "could not be found out: AttributeError" in of(events, Attributed)[0].note
    assert len(warned.texts) == 1
    assert "finding out who disturbs a stage raised AttributeError" in warned.texts[0]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ray.exceptions.GetTimeoutError("look")])
def test_a_look_around_that_exits_is_a_cause_that_is_not_known(error):
    told = threading.Event()
    events = []

    def look(stage):
        raise error

    investigator = Investigator(SETTING, DEVICES, look=look, emit=lambda event: (events.append(event), told.set()))
    investigator.investigate(1, TIMINGS, lambda: TIMINGS)
    assert told.wait(PROMPT_S)
    assert "could not look around" in events[0].note
    investigator.close()


# -- what answers, and what is noted -------------------------------------------------------------------------------
def supervision(*, policy=None, recorder=None):
    return Supervision(
        model="net", layers=["a", "b", "c", "d"], stages=run_started((2, 2)).stages, max_in_flight=4, batch=1,
        engine="torch",
        setting=SETTING, policy=policy or StaticPolicy(), migrate=lambda plan, windows: 1, look=lambda stage: None,
        recorder=recorder or EventRecorder(None),
    )  # fmt: skip


def test_a_view_that_raises_ended_the_thread_of_who_asked():
    recorder = EventRecorder(None)
    watching = supervision(recorder=recorder)

    def broken(now_s, serving=None):
        raise ZeroDivisionError("a defect of ours")

    recorder.view = broken
    with Told() as warned:
        for _ in range(3):
            with pytest.raises(ConnectionError):  # the server hangs up
                watching._answer()
        watching.close(reason="closed", completed=0, failed=0)
    assert len(warned.texts) == 1
    assert "the status for odin top raised ZeroDivisionError" in warned.texts[0]


@pytest.mark.parametrize(
    "change", [{"name": 7}, {"intensity": "much"}, {"at_s": "soon"}, {"pid": object()}, {"on": None}], ids=str
)
def test_a_load_that_cannot_be_written_down_is_refused_where_it_is_noted(change):
    watching = supervision()
    load = LoadChanged(1.0, "mine", "cpu", "cpu:1", 1.0, 7)
    with pytest.raises(ValueError, match="no load that can be recorded"):
        watching.note_load(msgspec.structs.replace(load, **change))
    with pytest.raises(ValueError, match="no load that can be recorded"):
        watching.note_load("stress-ng")
    watching.note_load(load)
    watching.close(reason="closed", completed=0, failed=0)


@pytest.mark.parametrize(
    "bad",
    [
        PlanChanged(START_S, 1, 1, (9, 9), (8, 10), "move", None, math.nan, 0.0),
        PolicyChanged(START_S, object()),
        PolicyChanged("now", "lls"),
        PolicyChanged(math.nan, "lls"),
        RequestFailed(START_S, 1, ["not", "text"]),
        Attributed(START_S, {1}, "memory"),
        RequestDone(START_S, object()),
    ],
    ids=lambda event: f"{event.kind}",
)
def test_one_event_that_cannot_be_written_ended_the_log(bad, tmp_path):
    """It raised before the buffer was emptied: every later write raised too, in whatever thread it was."""
    log, told = tmp_path / "run.jsonl", []
    with Told() as warned:
        recorder = EventRecorder(log, told.append, clock=lambda: START_S + 5)
        for number in range(6):
            recorder.emit(run_started() if number == 0 else request(number, START_S + number, (0.1, 0.1)))
            if number in (2, 3):
                recorder.emit(bad)
        recorder.emit(RunEnded(START_S + 9, "done", 5, 0))
        recorder.close()
    events = list(read_log(log, on_note=pytest.fail))
    assert isinstance(events[0], RunStarted)
    assert [event.timeline.request for event in of(events, RequestDone)] == [1, 2, 3, 4, 5]
    assert isinstance(events[-1], RunEnded)
    assert len([text for text in warned.texts if "could not be written and is left out" in text]) == 1
    assert len(of(told, Fault)) <= 2  # in the log, and in the view; not one for each
