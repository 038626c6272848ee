"""Everything outside a serving pipeline's data path: controller, recorder, investigator and status server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from odin.control.controller import Controller, Doubt, Migrate
from odin.control.detectors import make_detector
from odin.control.faults import Faults
from odin.control.investigator import Investigator, Look
from odin.control.users_code import describe, where_raised
from odin.errors import OdinError
from odin.monitor.detectors import Detector
from odin.monitor.eventlog import EventLog
from odin.monitor.events import (
    Event,
    EventsMissing,
    KnobTurned,
    LoadChanged,
    RequestDone,
    RunEnded,
    RunStarted,
    StageDescription,
    from_json,
    to_json,
)
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.builder import PipelineView, Serving, ViewBuilder
from odin.monitor.view.fleet_view import View
from odin.monitor.watch import StageWatch
from odin.options import refuse_simulation_only
from odin.partitioner.plan import Plan
from odin.partitioner.policies import OraclePolicy, Policy, Setting, windows_of
from odin.partitioner.relay import Windows
from odin.process.worker_thread import Worker
from odin.stages.device import Device
from odin.status.server import RemoteStatus, StatusServer

__all__ = ["EventRecorder", "Supervision"]

_LINGER_S = 0.05
"""Seconds for which finished requests are gathered for ``on_event``: waking its thread up for each is dear."""


class EventRecorder:
    """Receives every event, for the view of the present state, the log and ``on_event``.

    Parameters
    ----------
    log
        File to append events to, or the log itself; closed with this. ``None`` keeps none.
    on_event
        Told every event as well, in a thread of its own: however slow it is and whatever it raises or calls, nothing
        else waits for it. If it cannot keep up, finished requests are left out.
    clock
        Seconds, the clock of the events.
    """

    def __init__(
        self,
        log: str | Path | EventLog | None,
        on_event: Callable[[Event], None] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._in_order = threading.RLock()  # a fault that an event meets is an event, too
        self.faults = Faults(self.emit, clock=clock)
        self._log = log if log is None or isinstance(log, EventLog) else EventLog(log, clock=clock)
        if self._log is not None:
            self._log.on_trouble = self._log_trouble
        self._builder = ViewBuilder()
        self._started = False
        self._teller: Worker[Event] | None = None
        if on_event is not None:
            self._teller = self._make_teller(on_event)
            self._teller.start()

    def emit(self, event: Event) -> None:
        """Take one event; from any thread, in one order for all who receive it. Never raises."""
        with self._in_order:
            if isinstance(event, RunStarted):
                self._started = True
            if not self._started:
                return  # of a pipeline that did not start; its constructor says why
            try:
                self._builder.apply(event)
            except Exception as error:
                self.faults.tell("the view", error, f"it leaves out this {event.kind!r} event")
            if self._log is not None:
                self._log.append(event)
            if self._teller is not None:
                self._teller.put(event, at_once=not isinstance(event, RequestDone))

    def _log_trouble(self, kind: str, text: str) -> None:
        self.faults.tell("event log", text, "serving goes on", kind=kind, repeat="" if kind == "event" else "event")

    def _make_teller(self, on_event: Callable[[Event], None]) -> Worker[Event]:
        def left_out(count: int) -> None:
            why = "on_event takes longer than requests do"
            self.faults.tell("on_event", "it takes longer than requests do", "not all are told", kind="left out")
            on_event(EventsMissing(self._clock(), count, 0, why))

        return Worker(
            on_event,
            name="odin-on-event",
            on_error=lambda error: self.faults.tell("on_event", error, "it goes on being told"),
            expendable=lambda event: isinstance(event, RequestDone),
            on_left_out=left_out,
            linger_s=_LINGER_S,
        )

    def answer(self, view: Callable[[], View]) -> str:
        """What a status client is told; if the view cannot be computed, the client's connection is closed."""
        try:
            return view().to_json()
        except Exception as error:
            self.faults.tell("the status for odin top", error, "who asks is hung up on")
            raise ConnectionError("there is no view at this moment") from error

    def view(self, now_s: float, serving: Serving | None = None) -> PipelineView:
        """Return the state as of ``now_s`` on the events' clock."""
        return self._builder.view(now_s, serving)

    def settle(self, timeout_s: float) -> None:
        """Wait, for so many seconds at most, until ``on_event`` was called with all events so far."""
        if self._teller is not None:
            self._teller.settle(timeout_s)

    def sum_up(self) -> None:
        """Before the end: wait a few seconds for ``on_event``, and report the number of each fault."""
        self.settle(10.0)
        self.faults.tell_again()

    def close(self) -> None:
        """Deliver and write the remaining events, for a few seconds at most. Idempotent."""
        if self._teller is not None:
            self._teller.close()
        if self._log is not None:
            self._log.close()


class Supervision:
    """Starts and stops everything outside the data path.

    Parameters
    ----------
    model, layers, stages, max_in_flight, batch, engine
        What the log's first record says; see :class:`odin.monitor.events.RunStarted`.
    setting, policy, migrate
        For the controller.
    detector
        For its watch: the object, or its text form.
    look
        For the investigator: who shares a stage's device.
    recorder
        Where events go; closed with this.
    serving
        Tells what the gateway knows at this moment; ``None`` from it while there is none.
    host
        Address on which to answer other members of a cluster; empty for none.
    doubt
        Told of baselines that turn out too long.
    share
        As ``engine``.
    """

    def __init__(
        self,
        *,
        model: str,
        layers: Sequence[str],
        stages: Sequence[StageDescription],
        max_in_flight: int,
        batch: int,
        engine: str,
        setting: Setting,
        policy: Policy,
        migrate: Migrate,
        look: Look,
        recorder: EventRecorder,
        detector: Detector | str = "cusum",
        serving: Callable[[], Serving | None] = lambda: None,
        host: str = "",
        doubt: Doubt | None = None,
        share: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_live(policy, setting)
        watch = make_watch(detector, setting)
        self._setting = setting
        self._clock = clock
        self._serving = serving
        self._closed = False
        self._recorder = recorder
        devices = [Device.parse(stage.device) for stage in stages]
        self._investigator = Investigator(
            setting, devices, look=look, emit=recorder.emit, faults=recorder.faults, clock=clock
        )
        self._controller = Controller(
            setting,
            policy=policy,
            migrate=migrate,
            emit=self._recorder.emit,
            investigate=self._investigator.investigate,
            doubt=doubt,
            watch=watch,
            faults=recorder.faults,
            clock=clock,
        )
        self._recorder.emit(
            RunStarted(
                at_s=clock(),
                unix_s=time.time(),
                model=model,
                layers=tuple(layers),
                stages=tuple(stages),
                plan=tuple(setting.plan),
                policy=policy.name,
                max_in_flight=max_in_flight,
                batch=batch,
                engine=engine,
                windows=str(windows_of(policy, setting) or ""),
                share=share,
            )
        )
        self._recorder.settle(1.0)  # who is told of the start usually knows of it once the pipeline is there
        self.on_result: Callable[[RequestTimeline], None] = self._controller.on_result
        self.on_failure: Callable[[int, OdinError], None] = self._controller.on_failure
        self.on_refusal: Callable[[int], None] = self._controller.on_refusal
        self._status = StatusServer(self._answer, host=host)
        self._controller.start()

    @property
    def remote_status(self) -> RemoteStatus | None:
        """Address of the status server for other members of the cluster."""
        return self._status.remote

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._controller.policy

    def set_policy(self, policy: Policy) -> None:
        """Replace the policy from the next request on.

        Raises
        ------
        ValueError
            If it cannot decide for a live pipeline.
        """
        check_live(policy, self._setting)
        self._controller.set_policy(policy)

    def on_migration(self, epoch: int, plan: Plan, windows: Windows | None, why: str, prepare_s: float) -> None:
        """Record a migration that the controller did not decide."""
        self._controller.on_migration(epoch, plan, windows, why, prepare_s)

    def pause(self, paused: bool) -> None:
        """Let the policy decide nothing for a while; afterwards it starts anew with the plan in force."""
        self._controller.pause(paused)

    def note_load(self, event: LoadChanged) -> None:
        """Record a load that this process injects.

        Raises
        ------
        ValueError
            If a value of it cannot be written down.
        """
        try:
            if not isinstance(event, LoadChanged):
                raise TypeError(f"it is a {type(event).__name__}")
            from_json(to_json(event))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{event!r} is no load that can be recorded ({error}); give a LoadChanged") from error
        self._recorder.emit(event)

    def note_turn(self, event: KnobTurned) -> None:
        """Record that a tuner has turned a knob."""
        self._recorder.emit(event)

    def view(self) -> PipelineView:
        """Return the state at this moment."""
        return self._recorder.view(self._clock(), self._serving())

    def _answer(self) -> str:
        """The state for a status client."""
        return self._recorder.answer(self.view)

    def abandon(self) -> None:
        """In a forked child: close what keeps the parent's resources alive."""
        self._status.abandon()

    def stop_deciding(self) -> None:
        """Make no more moves; called before the gateway closes. Idempotent."""
        self._controller.close()

    def close(self, *, reason: str, completed: int, failed: int) -> None:
        """Record the end and stop everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._controller.close()
        self._investigator.close()
        self._recorder.sum_up()
        self._recorder.emit(RunEnded(self._clock(), reason, completed, failed))
        self._recorder.close()
        self._status.close()


def check_live(policy: Policy, setting: Setting) -> None:
    """Raise ``ValueError`` if a policy needs what only a simulation knows, would try too many plans, or has no name."""
    if not isinstance(policy.name, str):
        raise ValueError(f"the name of policy {type(policy).__name__} is {policy.name!r}; give its text form")
    refuse_simulation_only(policy)
    if isinstance(policy, OraclePolicy):
        policy.check_sweep(setting)


def make_watch(detector: Detector | str, setting: Setting) -> StageWatch:
    """Make the stages' watch; ``ValueError`` if the detector is invalid or made for another number of stages."""
    stages = setting.stage_count
    if isinstance(detector, str):
        detector = make_detector(detector, stages)
    try:
        streams = len(detector.changed)
    except Exception as error:
        place = where_raised(error, detector, "update")
        raise ValueError(f"detector {type(detector).__name__} raised {describe(error)}{place}") from error
    if streams != stages:
        raise ValueError(
            f"the detector has {streams} streams, the pipeline {stages} stages; make it for {stages}, or "
            "give its text, such as 'cusum' or 'module:Class'"
        )
    return StageWatch(setting.baseline_s, detector)
