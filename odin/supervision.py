"""What watches over a serving pipeline: controller, recorder, investigator and status server, as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from monitor.detectors import Detector
from monitor.eventlog import EventLog
from monitor.events import Event, LoadChanged, RunEnded, RunStarted, StageDescription
from monitor.timing import RequestTimeline
from monitor.view import PipelineView, ViewBuilder
from monitor.watch import StageWatch
from odin.controller import Controller, Doubt, Migrate
from odin.detectors import make_detector
from odin.errors import OdinError
from odin.investigator import Investigator, Look
from odin.status import RemoteStatus, StatusServer
from partitioner.plan import Plan
from partitioner.policies import DelayedOraclePolicy, OraclePolicy, Policy, Setting
from stages.device import Device

__all__ = ["Recorder", "Supervision"]


class Recorder:
    """Where every event goes: into the view of the present state, and into the log if there is one.

    Parameters
    ----------
    log
        File to append events to; ``None`` keeps none.
    on_event
        Told every event as well.
    """

    def __init__(self, log: str | Path | None, on_event: Callable[[Event], None] | None = None) -> None:
        self._on_event = on_event
        self._log = None if log is None else EventLog(log)
        self._builder = ViewBuilder()

    def emit(self, event: Event) -> None:
        """Take one event; from any thread."""
        self._builder.apply(event)
        if self._log is not None:
            self._log.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def view(self, now_s: float) -> PipelineView:
        """Return the state as of ``now_s`` on the events' clock."""
        return self._builder.view(now_s)

    def close(self) -> None:
        """Write what is left to write. Idempotent."""
        if self._log is not None:
            self._log.close()


class Supervision:
    """Everything beside the data path.

    Parameters
    ----------
    model, layers, stages, max_in_flight, batch
        What the log's first record says; see :class:`monitor.events.RunStarted`.
    setting, policy, migrate
        For the controller.
    detector
        For its watch: the object, or its text form.
    look
        For the investigator: who shares a stage's device.
    recorder
        Where events go; closed with this.
    host
        Address on which to answer other members of a cluster; empty for none.
    doubt
        Told of baselines that turn out too long.
    """

    def __init__(
        self,
        *,
        model: str,
        layers: Sequence[str],
        stages: Sequence[StageDescription],
        max_in_flight: int,
        batch: int,
        setting: Setting,
        policy: Policy,
        migrate: Migrate,
        look: Look,
        recorder: Recorder,
        detector: Detector | str = "cusum",
        host: str = "",
        doubt: Doubt | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_live(policy, setting)
        watch = make_watch(detector, setting)
        self._setting = setting
        self._clock = clock
        self._closed = False
        self._recorder = recorder
        devices = [Device.parse(stage.device) for stage in stages]
        self._investigator = Investigator(setting, devices, look=look, emit=recorder.emit, clock=clock)
        self._controller = Controller(
            setting,
            policy=policy,
            migrate=migrate,
            emit=self._recorder.emit,
            investigate=self._investigator.investigate,
            doubt=doubt,
            watch=watch,
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
            )
        )
        self.on_result: Callable[[RequestTimeline], None] = self._controller.on_result
        self.on_failure: Callable[[int, OdinError], None] = self._controller.on_failure
        self._status = StatusServer(lambda: self.view().to_json(), host=host)
        self._controller.start()

    @property
    def remote_status(self) -> RemoteStatus | None:
        """Where other members of the cluster may ask."""
        return self._status.remote

    @property
    def policy(self) -> Policy:
        """Who decides."""
        return self._controller.policy

    def set_policy(self, policy: Policy) -> None:
        """Let another policy decide from the next request on.

        Raises
        ------
        ValueError
            If it cannot decide for a live pipeline.
        """
        check_live(policy, self._setting)
        self._controller.set_policy(policy)

    def on_migration(self, epoch: int, plan: Plan, prepare_s: float) -> None:
        """Take note of a migration that the user asked for."""
        self._controller.on_migration(epoch, plan, prepare_s)

    def note_load(self, event: LoadChanged) -> None:
        """Take note of a load that this process injects."""
        self._recorder.emit(event)

    def view(self) -> PipelineView:
        """Return the state at this moment."""
        return self._recorder.view(self._clock())

    def abandon(self) -> None:
        """In a forked child: let go of what keeps something alive elsewhere."""
        self._status.abandon()

    def stop_deciding(self) -> None:
        """Move no more layers; before the gateway closes. Idempotent."""
        self._controller.close()

    def close(self, *, reason: str, completed: int, failed: int) -> None:
        """Record the end and stop everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._controller.close()
        self._investigator.close()
        self._recorder.emit(RunEnded(self._clock(), reason, completed, failed))
        self._recorder.close()
        self._status.close()


def check_live(policy: Policy, setting: Setting) -> None:
    """Raise ``ValueError`` if a policy needs what only a simulation knows, or would try too many plans."""
    if isinstance(policy, DelayedOraclePolicy):
        raise ValueError(
            f"policy {policy.name} needs the true times of all layers, which only a simulation knows; live, "
            "'oracle' tries all plans"
        )
    if isinstance(policy, OraclePolicy):
        policy.check_sweep(setting)


def make_watch(detector: Detector | str, setting: Setting) -> StageWatch:
    """Make what watches the stages; ``ValueError`` if the detector is none, or is one for other than their number."""
    stages = setting.stage_count
    if isinstance(detector, str):
        detector = make_detector(detector, stages)
    if len(detector.changed) != stages:
        raise ValueError(
            f"the detector has {len(detector.changed)} streams, the pipeline {stages} stages; make it for {stages}, or "
            "give its text, such as 'cusum' or 'module:Class'"
        )
    return StageWatch(setting.baseline_s, detector)
