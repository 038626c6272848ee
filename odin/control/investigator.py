"""Finds the kind of interference and the culprits, in a thread of its own, once per change of a stage's slowdown."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from odin.control.faults import Faults
from odin.control.users_code import describe
from odin.monitor.attribution.culprits import CulpritReport
from odin.monitor.attribution.kind import UNKNOWN, classify
from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.events import Attributed, Event
from odin.monitor.timing import StageTiming
from odin.partitioner.policies import Setting
from odin.process.worker_thread import Worker
from odin.stages.device import Device

__all__ = ["Investigator", "Look", "Ration"]

Look = Callable[[int], Neighbours]
"""Finds other programs on a stage's device; takes part of a second."""

_ENOUGH_REQUESTS = 8
_PATIENCE_S = 2.0
_POLL_S = 0.1
_SHARE = 0.02
"""Of a core, that looking around takes in the mean, for all pipelines of a process together: a look reads ``/proc`` of
every process of the machine, and pipelines on the same cores see each other come and go all the time.
"""


class Ration:
    """Processor time, of which no more than a share of a core is used in the mean."""

    def __init__(self, share: float = _SHARE) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._free_s, self._cost_s = -math.inf, 0.0

    def reserve(self, now_s: float) -> float:
        """When the next one may begin; it will use as much as the last one did."""
        with self._lock:
            begin_s = max(now_s, self._free_s)
            self._free_s = begin_s + self._cost_s / self._share
            return begin_s

    def used(self, cost_s: float, now_s: float) -> None:
        """One has used so many seconds of a processor."""
        with self._lock:
            self._free_s = max(self._free_s, now_s + cost_s / self._share)
            self._cost_s = cost_s


_EVERYBODY = Ration()


class _Case(NamedTuple):
    stage: int
    before: Sequence[StageTiming]
    now: Callable[[], Sequence[StageTiming]]


class Investigator:
    """Combines the stage's timings with what its machine knows about other programs.

    Parameters
    ----------
    setting
        For the layers' baselines and arithmetic intensities.
    devices
        The stages' devices.
    look
        Looks around where a stage runs.
    emit
        Told the answer, as :class:`odin.monitor.events.Attributed`.
    faults
        Told of what goes wrong; default: tells it by warnings and ``emit``.
    ration
        Of looking around; default: one for all of this process.
    clock, sleep
        Monotonic seconds; waiting.
    """

    def __init__(
        self,
        setting: Setting,
        devices: Sequence[Device],
        *,
        look: Look,
        emit: Callable[[Event], None],
        faults: Faults | None = None,
        ration: Ration = _EVERYBODY,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._setting = setting
        self._devices = tuple(devices)
        self._look = look
        self._emit = emit
        self._faults = faults or Faults(emit, clock=clock)
        self._ration = ration
        self._clock, self._sleep = clock, sleep
        self._closed = False
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._worker: Worker[_Case] = Worker(self._take, name="odin-investigator", on_error=self._failed)
        self._worker.start()

    def investigate(self, stage: int, before: Sequence[StageTiming], now: Callable[[], Sequence[StageTiming]]) -> None:
        """Queue an investigation and return at once; one at a time for each stage.

        Parameters
        ----------
        before
            Timings of the stage while nothing disturbed it.
        now
            Gives its timings since.
        """
        with self._lock:
            if self._closed or stage in self._busy:
                return
            self._busy.add(stage)
        self._worker.put(_Case(stage, before, now))

    def close(self) -> None:
        """Drop queued investigations. Idempotent."""
        with self._lock:
            self._closed = True
        self._worker.close(timeout_s=0.0)

    def _take(self, case: _Case) -> None:
        if self._closed:
            return
        try:
            answer = self.solve(case.stage, case.before, case.now)
        except BaseException as error:
            self._failed(error)
            answer = Attributed(self._clock(), case.stage, UNKNOWN, note=f"could not be found out: {describe(error)}")
        finally:
            with self._lock:
                self._busy.discard(case.stage)
        if not self._closed:
            self._emit(answer)

    def _failed(self, error: BaseException) -> None:
        self._faults.tell("finding out who disturbs a stage", error, "the cause is told as unknown")

    def solve(self, stage: int, before: Sequence[StageTiming], now: Callable[[], Sequence[StageTiming]]) -> Attributed:
        """Carry out one investigation."""
        look_s = self._ration.reserve(self._clock())
        while (wait_s := look_s - self._clock()) > 0 and not self._closed:
            self._sleep(min(wait_s, _POLL_S))
        begin_s, used_s = self._clock(), time.thread_time()
        try:
            seen = self._look(stage)
        except BaseException as error:  # its node is gone, or does not let us look
            seen = Neighbours(CulpritReport((), f"unknown: could not look around: {error}"))
        self._ration.used(time.thread_time() - used_s, self._clock())
        while len(now()) < _ENOUGH_REQUESTS and self._clock() - begin_s < _PATIENCE_S and not self._closed:
            self._sleep(_POLL_S)
        device = self._devices[stage]
        timings = now()
        if len(before) < _ENOUGH_REQUESTS and timings:
            before = [self._as_profiled(stage, timings[-1])]
        throttled_share = None
        if seen.stopped_cores is not None:  # a quota is for the group, in which all stages of the machine are
            cores = sum(each.threads for each in self._devices if (each.kind, each.node) == (device.kind, device.node))
            throttled_share = seen.stopped_cores / cores
        found = classify(
            before,
            timings,
            threads=device.threads,
            baseline_s=self._setting.baseline_s[stage].tolist(),
            intensity=self._setting.intensity.tolist(),
            throttled_share=throttled_share,
            others_share=seen.report.others_share,
            on_gpu=device.kind == "gpu",
            gpu_share=seen.gpu_share,
        )
        culprits, note = seen.report.blame(found.kind)
        return Attributed(self._clock(), stage, found.kind, culprits, "; ".join(filter(None, (found.note, note))))

    def _as_profiled(self, stage: int, now: StageTiming) -> StageTiming:
        """Reference timings from the profile, for a load that began with the first requests."""
        layer_s = tuple(self._setting.baseline_s[stage][now.first : now.last].tolist())
        wall_s = sum(layer_s)
        cpu_s = wall_s * self._devices[stage].threads
        return now._replace(queue_s=0.0, wall_s=wall_s, cpu_s=cpu_s, run_delay_s=0.0, transfer_s=0.0, layer_s=layer_s)
