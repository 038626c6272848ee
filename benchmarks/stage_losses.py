"""Takes stages away from a pipeline, and finds out when it is at full strength again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import psutil

import odin
from benchmarks.checked_load import SeenEvents

__all__ = ["Loss", "StageLike", "StageTaker", "stages_at_work"]

_LOOK_S = 0.05


class StageLike(Protocol):
    """What is read of a stage's view."""

    @property
    def stage(self) -> int:
        """Index."""

    @property
    def pid(self) -> int:
        """Process; of a replacement after it has taken over."""

    @property
    def state(self) -> str:
        """``"lost"`` or ``"hung"`` while it takes no part."""


class Loss(NamedTuple):
    """A stage that was killed or stopped."""

    stage: int
    pid: int
    at_s: float


def runs(pid: int) -> bool:
    """Whether a process is there and neither ended nor stopped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def stages_at_work(stages: tuple[StageLike, ...], *, alive: Callable[[int], bool] = runs) -> list[StageLike]:
    """Stages that take part, as the pipeline says, and whose process runs, as the kernel says."""
    return [stage for stage in stages if stage.state not in ("lost", "hung") and alive(stage.pid)]


class StageTaker:
    """Kills or stops random stages, never the last one at work.

    Parameters
    ----------
    pipe
        The pipeline.
    seen
        Its events.
    draw
        Of the stages.
    """

    def __init__(self, pipe: odin.Pipeline, seen: SeenEvents, draw: random.Random) -> None:
        self._pipe, self._seen, self._draw = pipe, seen, draw
        self._gone: set[int] = set()
        self.pids: set[int] = {stage.pid for stage in pipe.view().stages}
        """All stages' processes that were ever seen."""

    def at_work(self) -> list[StageLike]:
        """Stages that take part now."""
        stages = tuple(self._pipe.view().stages)
        self.pids.update(stage.pid for stage in stages)
        return [stage for stage in stages_at_work(stages) if stage.pid not in self._gone]

    def take(self, sign: signal.Signals) -> Loss | None:
        """Send a signal to a random stage; None if fewer than two are at work."""
        stages = self.at_work()
        if len(stages) < 2:
            return None
        stage = self._draw.choice(stages)
        at_s = time.perf_counter()
        try:
            os.kill(stage.pid, sign)
        except ProcessLookupError:
            return None
        if sign == signal.SIGKILL:
            self._gone.add(stage.pid)
        return Loss(stage.stage, stage.pid, at_s)

    @staticmethod
    def go_on(loss: Loss) -> None:
        """Let a stopped stage go on, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(loss.pid, signal.SIGCONT)

    def wait_full(self, loss: Loss, *, timeout_s: float, alive: Callable[[], bool]) -> float | None:
        """Seconds from a loss until all stages take part; None if that does not come, or the load has ended.

        By the event ``StageBack`` of that stage where there is one, otherwise by looking.
        """
        end_s = time.perf_counter() + timeout_s
        count = len(self._pipe.view().stages)
        while alive() and time.perf_counter() < end_s:
            if len(self.at_work()) == count:
                now_s = time.perf_counter()
                back = [event for event in self._seen.of("StageBack", since_s=loss.at_s) if event.stage == loss.stage]
                return (back[0].at_s if back else now_s) - loss.at_s
            time.sleep(_LOOK_S)
        return None
