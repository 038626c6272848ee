"""``odin.Fleet``: many packed models on a few executors, within a memory budget and deadlines."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from odin.cluster.actors import starting
from odin.cluster.placement import place
from odin.cluster.ray_runtime import RayRuntime
from odin.control.supervision import EventRecorder
from odin.errors import ForkedProcessError, StageLostError
from odin.fleet.dispatcher import Counts, Dispatcher
from odin.fleet.on_demand import OnDemand
from odin.fleet.opened import check_processor
from odin.fleet.packed import Head, PackedFile, PackedFolder, PackedModelError
from odin.fleet.processes import ExecutorProcesses
from odin.fleet.replacement import Replacement
from odin.fleet.scheduler import LOAD, MOST_SENT, RUN, Measured, Scheduler
from odin.fleet.structure import ModelCall
from odin.fleet.view import FleetView, predictions_of, state_of
from odin.monitor.eventlog import EventLog
from odin.monitor.events import (
    Event,
    ModelEvicted,
    ModelLoaded,
    RunEnded,
    RunStarted,
    StageBack,
    StageDescription,
    StageLost,
)
from odin.monitor.view.fleet_view import ExecutorState, FleetState
from odin.options import check_count, check_on_this_machine, check_timeout, refuse_twice
from odin.process.at_exit import close_at_exit
from odin.process.forks import check_ray_is_ours, keep_from_children
from odin.process.phases import phase
from odin.requests.admission import PREDICT, check_admission
from odin.requests.replies import Reply, outcome_of
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.slots import slot_nbytes_for
from odin.stages.device import Device, DeviceError, parse_devices
from odin.stages.lease import refuse_taken_devices
from odin.status.server import StatusServer

__all__ = ["SCHEDULERS", "Fleet"]

_log = logging.getLogger(__name__)
_MOST_WARM = 32
"""Architectures of which a model is run once when an executor starts; of others, when the first is loaded."""
_HANGS_S = 30.0
"""What takes so much longer than predicted hangs."""
_MEASURED = 4096
SCHEDULERS = ("predictive", "on-demand")


class Fleet:
    """Models of a folder, any of which each executor can run; loaded and evicted by demand.

    Use it as a context manager; leaving it ends every executor. All methods may be called from any thread.

    Parameters
    ----------
    folder
        With packed models, ``NAME.packed``, as ``odin pack`` or :func:`odin.fleet.packing.pack_source` makes them.
    stages
        CPU cores of this machine, one executor on each: ``["cpu:0", "cpu:1"]``, ``"cpu:0,cpu:1"``; or ``"auto"``: every
        free core, or as many as the CPU quota allows.
    memory_mib
        What the models in memory may take together, in MiB. Those that were used least recently are evicted.
    admission
        ``"predict"``: a request with a deadline that would be late, loading its model included, is refused at once;
        so is one that would make an accepted one late. ``"none"``: all are taken, and those that cannot be in time any
        more are dropped before they are computed. Without ``timeout_s`` nothing is refused or dropped.
    batch
        Most samples of one request.
    scheduler
        ``"predictive"``; or ``"on-demand"``, to compare with: requests in the order of coming, models loaded when it is
        their turn, nothing predicted, refused or dropped.
    share_devices
        Allow cores that other pipelines use, if these allow it, too.
    log
        File to which loads, evictions, lost and replaced executors are appended, one JSON line each, for
        ``odin replay``; see :class:`odin.Pipeline`.
    on_event
        Called with each of these events, from a thread of its own; see :mod:`odin.monitor.events`.
    on_measured
        Called with each action that has ended, predicted and actual seconds, from a thread that must not wait.

    Attributes
    ----------
    devices
        Of the executors.
    unusable
        Packed models of the folder that cannot be served, and why.

    Raises
    ------
    ValueError
        If the folder has no packed models that can be served, or an option is not valid.
    DeviceError, TimeoutError
        If a device is taken, or an executor does not start in time.

    Examples
    --------
    >>> import odin
    >>> with odin.Fleet("models/", stages=["cpu:0", "cpu:1"], memory_mib=2048) as fleet:  # doctest: +SKIP
    ...     y = fleet("resnet18-cats", x, timeout_s=0.1)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        stages: str | Sequence[str | Device] = "auto",
        memory_mib: float = 2048,
        admission: str = PREDICT,
        batch: int = 8,
        scheduler: str = "predictive",
        share_devices: bool = False,
        log: str | Path | EventLog | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_measured: Callable[[str, Measured], None] | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._runtime: RayRuntime | None = None
        self._processes: ExecutorProcesses | None = None
        self._dispatcher: Dispatcher | None = None
        self._replacement: Replacement | None = None
        self._recorder: EventRecorder | None = None
        self._status: StatusServer | None = None
        self._lost_s: dict[int, float] = {}
        check_ray_is_ours()
        keep_from_children(self)
        devices = "auto" if isinstance(stages, str) and stages == "auto" else parse_devices(stages)
        check_admission(admission)
        if scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={scheduler!r}; choose one of {', '.join(map(repr, SCHEDULERS))}")
        check_count("batch", batch)
        if isinstance(memory_mib, bool) or not isinstance(memory_mib, Real) or not 0 < memory_mib < math.inf:
            raise ValueError(f"memory_mib={memory_mib!r}; give the MiB that models may take, such as 2048")
        for option, told in (("on_event", on_event), ("on_measured", on_measured)):
            if told is not None and not callable(told):
                raise ValueError(f"{option}={told!r} cannot be called; give a function")
        if not isinstance(devices, str):
            _check_devices(devices, share=share_devices)
        self.batch: int = int(batch)
        self._memory_nbytes: int = int(memory_mib * 2**20)
        self._on_measured: Callable[[str, Measured], None] | None = on_measured
        self._measured: deque[Measured] = deque(maxlen=_MEASURED)
        try:
            self._folder: PackedFolder = PackedFolder(folder)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be opened ({error.strerror}): give the folder of odin pack MODEL --into FOLDER"
            ) from error
        self._input_nbytes: int = sys.maxsize  # of slots, which are made for what is there
        self._output_nbytes: int = sys.maxsize
        self._heads: list[Head] = []
        self._calls: list[ModelCall] = []
        self._numbers: dict[str, int] = {}  # of files that were packed anew the last
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self.unusable: dict[str, str] = {}
        with phase("packed models read"):
            self._read(self._folder.names())
        if not self._heads and self.unusable:
            why = "; ".join(dict.fromkeys(self.unusable.values()))
            raise ValueError(f"no packed model in {folder} can be served: {why}")
        if not self._heads:
            raise ValueError(f"there is no packed model in {folder}: make one with odin pack MODEL --into {folder}")
        self._numbers = self._by_name()
        self._at_exit: Callable[[], None] = close_at_exit(self)
        try:
            self._recorder = EventRecorder(log, on_event)
            self._start(devices, admission=admission, scheduler=scheduler, share_devices=share_devices)
        except BaseException:
            self.close(drain=False)
            raise

    def _read(self, names: Sequence[str]) -> None:
        """Read what files say, of those that are new, others than before, or could not be served."""
        for name in names:
            try:
                stamp = self._folder.stamp(name)
                if self._stamps.get(name) == stamp and name not in self.unusable:
                    continue
                head, call = self._look_at(name)
            except (ValueError, OSError) as error:
                _log.warning("model %s cannot be served: %s", name, error)
                self.unusable[name] = str(error)
                continue
            self._stamps[name] = stamp
            self.unusable.pop(name, None)
            before = self._numbers.get(name)
            if before is None or self._heads[before].digest != head.digest:
                self._calls.append(call)
                self._heads.append(head)

    def _by_name(self) -> dict[str, int]:
        return {head.name: number for number, head in enumerate(self._heads)}

    def _files(self) -> list[PackedFile]:
        return [PackedFile(head.name, head.code) for head in self._heads]

    def _look_at(self, name: str) -> tuple[Head, ModelCall]:
        """Read what a file says, and raise if its model cannot be served here."""
        head = self._folder.head(name)
        self._folder.drop(name)  # what the kernel has read ahead, which is not asked for yet
        check_processor(head, self._folder.path / name)
        if head.nbytes > self._memory_nbytes:
            raise PackedModelError(
                f"model {head.name!r} takes {head.nbytes / 2**20:.1f} MiB, more than memory_mib="
                f"{self._memory_nbytes / 2**20:.4g}: allow more (memory_mib=, --memory-mib)"
            )
        call = ModelCall(head)
        inputs, outputs = call.nbytes(self.batch)
        if slot_nbytes_for(inputs) > self._input_nbytes or slot_nbytes_for(outputs) > self._output_nbytes:
            raise PackedModelError(
                f"the inputs or outputs of {name!r} are larger than those of all models that the fleet was started "
                "with: start it anew"
            )
        return head, call

    def _start(self, devices: str | Sequence[Device], *, admission: str, scheduler: str, share_devices: bool) -> None:
        with phase("Ray started"):
            self._runtime = RayRuntime()
        placed = place(devices, share=share_devices, embedded=self._runtime.embedded)
        self.devices = tuple(device for device, _ in placed)
        label = f"fleet {self._folder.path.name} of process {os.getpid()}"
        with phase("executors started"), starting():
            self._processes = ExecutorProcesses(
                placed, folder=str(self._folder.path.resolve()), label=label, share=share_devices
            )
            warm: dict[str, int] = {}
            for number, head in enumerate(self._heads):
                warm.setdefault(head.code, number)
            self._warm = list(warm.items())[:_MOST_WARM]
            self._processes.open(self._files(), [number for _, number in self._warm])
        with phase("channels opened"), starting():
            nbytes = [call.nbytes(self.batch) for call in self._calls]
            # Models that are found later may be larger, within what slots have.
            self._input_nbytes = max(slot_nbytes_for(inputs) for inputs, _ in nbytes)
            self._output_nbytes = max(slot_nbytes_for(outputs) for _, outputs in nbytes)
            self._pool = SlotPool(MOST_SENT * len(placed), self._input_nbytes)
            senders, inbox = self._processes.connect(self._pool, answer_nbytes=self._output_nbytes)
        self._policy = scheduler
        self._tell_start(scheduler)
        make = Scheduler if scheduler == "predictive" else OnDemand
        decides = make(
            [head.facts for head in self._heads],
            executors=len(placed),
            memory_nbytes=self._memory_nbytes,
            refuses=admission == PREDICT,
        )
        for executor in range(len(placed)):
            decides.regain(executor, [code for code, _ in self._warm])
        self._replacement = Replacement(replace=self._replace, watch=self._watch, give_up=self._give_up)
        self._dispatcher = Dispatcher(
            decides,
            [head.name for head in self._heads],
            pool=self._pool,
            senders=senders,
            inbox=inbox,
            on_measured=self._note,
            on_gone=self._gone,
            on_deadly=self._not_served,
        )
        self._replacement.start()
        self._status = StatusServer(self._answer)

    def _answer(self) -> str:
        """The state for ``odin top``."""
        assert self._recorder is not None
        return self._recorder.answer(self.state)

    def _emit(self, event: Event) -> None:
        if self._recorder is not None:
            self._recorder.emit(event)

    def _tell_start(self, scheduler: str) -> None:
        """Record the start: as of a pipeline of one layer, any of the models."""
        assert self._processes is not None
        stages = tuple(
            StageDescription(str(device), info.node_id, info.pid, (self._heads[0].baseline_s[0][1],))
            for device, info in zip(self.devices, self._processes.infos, strict=True)
        )
        self._emit(
            RunStarted(
                at_s=time.perf_counter(),
                unix_s=time.time(),
                model=f"fleet of {len(self._heads)} models",
                layers=("a whole model",),
                stages=stages,
                plan=(1, *(0 for _ in stages[1:])),
                policy=scheduler,
                max_in_flight=MOST_SENT * len(stages),
                batch=self.batch,
            )
        )

    # -- requests ------------------------------------------------------------------------------------------------------

    def __call__(self, name: str, *inputs: Any, timeout_s: float | None = None) -> Any:
        """Serve one request, wait, and return its result in the model's own output structure."""
        future = self.submit(name, *inputs, timeout_s=timeout_s)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, name: str, *inputs: Any, timeout_s: float | None = None) -> Future[Any]:
        """Send one request; never waits.

        Parameters
        ----------
        name
            The model's.
        inputs
            Its arguments: tensors, of at most ``batch`` samples. The caller may change them afterwards.
        timeout_s
            Deadline in seconds from now; infinity or None: no deadline. With ``admission="predict"`` the future has
            failed when this returns if the request is not taken (:class:`~odin.DeadlineExceededError`, ``refused``).

        Raises
        ------
        ValueError
            If there is no such model, or an input does not fit it.
        PipelineClosedError, StageLostError
            If the fleet is closed, or all executors are lost and cannot be replaced.
        """
        return self._submit(name, inputs, timeout_s, copy=True)

    async def asubmit(self, name: str, *inputs: Any, timeout_s: float | None = None) -> Any:
        """As :meth:`submit`, for ``async`` code: returns the result; do not change the inputs until then."""
        return await outcome_of(self._submit(name, inputs, timeout_s, copy=False))

    def _submit(self, name: str, inputs: tuple[Any, ...], timeout_s: float | None, *, copy: bool) -> Reply[Any]:
        if os.getpid() != self._pid:
            raise ForkedProcessError(self._pid)
        timeout_s = check_timeout(timeout_s)
        deadline_s = timeout_s if math.isinf(timeout_s) else time.perf_counter() + timeout_s
        number = self._number(name)
        call = self._calls[number]
        given = call.flatten(inputs)
        samples = call.samples(given)
        if samples > max(self.batch, call.example_samples):
            raise ValueError(f"{samples} samples in one request, at most {self.batch} may be: allow more (batch=)")
        values = call.layout(given)
        if copy:
            values = tuple(
                tensor.clone() if tensor is own else tensor for tensor, own in zip(values, given, strict=True)
            )
        assert self._dispatcher is not None
        return self._dispatcher.submit(number, values, samples, deadline_s=deadline_s, finish=call.unpack)

    def _number(self, name: str) -> int:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no packed model's name; give one of odin.Fleet.models")
        if (why := self.unusable.get(name)) is not None:
            raise PackedModelError(why)
        number = self._numbers.get(name)
        if number is None:
            some = ", ".join(map(repr, sorted(self._numbers)[:8])) + (", ..." if len(self._numbers) > 8 else "")
            raise ValueError(f"there is no packed model {name!r} in {self._folder.path}; there are {some}")
        return number

    # -- models --------------------------------------------------------------------------------------------------------

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models."""
        return tuple(self._numbers)

    def refresh(self, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """Look for models that were packed into the folder, or packed anew; returns their names.

        From then on requests go to the new file; those that came before to the one that is in memory still. Without
        this, a file that is packed anew with other weights counts from the next time that an executor loads it, and one
        with other code is not loaded. Those that cannot be served are in ``unusable`` then, with the reason.

        Parameters
        ----------
        names
            Look at these alone.
        """
        assert self._dispatcher is not None
        assert self._processes is not None
        with self._lock:
            before = len(self._heads)
            self._read(self._folder.names() if names is None else names)
            found = self._heads[before:]
            if found:
                self._processes.know(self._files(), self._dispatcher.look(_live))
                self._dispatcher.know([head.name for head in self._heads], [head.facts for head in found])
                self._numbers = self._by_name()  # from now on they are asked for
            return tuple(head.name for head in found)

    def head(self, name: str) -> Head:
        """What a model's file says of it."""
        return self._heads[self._number(name)]

    def model_call(self, name: str) -> ModelCall:
        """What a model takes and returns."""
        return self._calls[self._number(name)]

    # -- state ---------------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Requests and actions so far."""
        assert self._dispatcher is not None
        return self._dispatcher.counts()

    def measured(self) -> tuple[Measured, ...]:
        """The last 4096 actions: what they were predicted to take, and took."""
        return tuple(self._measured)

    def view(self) -> FleetView:
        """The state at this moment."""
        assert self._dispatcher is not None
        assert self._processes is not None
        infos = self._processes.infos

        def read(scheduler: Scheduler, now_s: float) -> FleetView:
            residency = scheduler.residency
            executors = tuple(
                ExecutorState(
                    str(device),
                    info.pid,
                    "serving" if scheduler.is_live(number) else "lost",
                    scheduler.estimates.slowdown(number, now_s),
                    sum(residency.is_open(model, number) for model in residency),
                )
                for number, (device, info) in enumerate(zip(self.devices, infos, strict=True))
            )
            return FleetView(
                len(self._numbers),
                tuple(self._heads[model].name for model in residency),
                residency.used_nbytes / 2**20,
                residency.memory_nbytes / 2**20,
                scheduler.waiting,
                Counts(),
                executors,
                (),
            )

        view: FleetView = self._dispatcher.look(read)
        return view._replace(counts=self.counts(), predictions=predictions_of(self.measured()))

    def state(self) -> FleetState:
        """What ``odin top`` shows at this moment."""
        assert self._recorder is not None
        told = self._recorder.view(time.perf_counter())
        return state_of(self.view(), name=self._folder.path.name, policy=self._policy, told=told)

    def _note(self, measured: Measured, resident: int, resident_nbytes: int) -> None:
        self._measured.append(measured)
        if measured.kind != RUN:
            kind = ModelLoaded if measured.kind == LOAD else ModelEvicted
            self._emit(
                kind(
                    measured.at_s,
                    self._heads[measured.model].name,
                    measured.executor,
                    measured.expected_s,
                    measured.took_s,
                    resident,
                    resident_nbytes,
                )
            )
        if self._on_measured is not None:
            try:
                self._on_measured(self._heads[measured.model].name, measured)
            except Exception as error:
                assert self._recorder is not None
                self._recorder.faults.tell("on_measured", error, "it goes on being told")

    # -- executors that are lost ---------------------------------------------------------------------------------------

    def _gone(self, executor: int, models: Sequence[int], requests: int) -> None:
        _log.warning("executor %d on %s is lost; what it had goes to others", executor, self.devices[executor])
        for model in models:
            self._folder.drop(self._heads[model].name)
        self._lost_s[executor] = time.perf_counter()
        self._emit(StageLost(self._lost_s[executor], executor, "its process has ended", False, requests))
        if self._replacement is not None:
            self._replacement.lost(executor)

    def _not_served(self, model: int, error: PackedModelError) -> None:
        name = self._heads[model].name
        self.unusable[name] = str(error)
        assert self._recorder is not None
        self._recorder.faults.tell(f"model {name}", str(error), "other models are served")

    def _replace(self, executor: int) -> None:
        assert self._processes is not None
        assert self._dispatcher is not None
        self._processes.start_again(executor)
        sender, receiver = self._processes.join(executor, self._pool)
        with self._lock:
            self._processes.know(self._files(), [executor])  # what was found while it started
            self._dispatcher.regain(executor, sender, receiver, [code for code, _ in self._warm])
        now_s = time.perf_counter()
        away_s = now_s - self._lost_s.get(executor, now_s)
        self._emit(StageBack(now_s, executor, self._processes.infos[executor].pid, away_s, True))

    def _watch(self) -> None:
        assert self._processes is not None
        assert self._dispatcher is not None
        for executor in range(len(self.devices)):

            def overdue_s(scheduler: Scheduler, now_s: float, executor: int = executor) -> float:
                return scheduler.overdue_s(executor, now_s)

            if self._dispatcher.look(overdue_s) > _HANGS_S:
                _log.warning("executor %d hangs, and is ended", executor)
                self._processes.end(executor)

    def _give_up(self, executor: int, error: Exception) -> None:
        assert self._dispatcher is not None

        if not self._dispatcher.look(_live):
            self._dispatcher.fail(StageLostError(f"all executors are lost and cannot be replaced: {error}"))

    # -- end -----------------------------------------------------------------------------------------------------------

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Finish the requests under way (if ``drain``), and end every executor's process. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closed = not self._closed, True
        if not first:
            return
        atexit.unregister(self._at_exit)
        with contextlib.ExitStack() as last:
            if self._status is not None:
                last.callback(self._status.close)
            if self._recorder is not None:
                last.callback(self._end_record)
            if self._runtime is not None:
                last.callback(self._runtime.close)
            if self._processes is not None:
                last.callback(self._processes.close)
            if self._replacement is not None:
                last.callback(self._replacement.close)
            if self._dispatcher is not None:
                self._dispatcher.close(drain=drain, timeout_s=timeout_s)
        for name in self._numbers:  # what an executor that was killed has left in memory
            self._folder.drop(name)
        self._folder.close()

    def _end_record(self) -> None:
        assert self._recorder is not None
        counts = Counts() if self._dispatcher is None else self._dispatcher.counts()
        self._recorder.sum_up()
        self._recorder.emit(RunEnded(time.perf_counter(), "closed", counts.completed, counts.failed))
        self._recorder.close()

    def abandon(self) -> None:
        """In a forked child: close what keeps the parent's resources alive; for :mod:`odin.process.forks`."""
        if self._status is not None:
            self._status.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)


def _live(scheduler: Scheduler, now_s: float) -> list[int]:
    """Executors that are there."""
    return scheduler.live


def _check_devices(devices: Sequence[Device], *, share: bool) -> None:
    """Raise :class:`DeviceError` for what no executor can have, before anything is started."""
    refuse_twice(((device, device.node) for device in devices), share=share)
    for device in devices:
        if device.kind != "cpu":
            raise DeviceError(f"a fleet's executors are CPU cores of this machine, which {device} is not: name cores")
        if not device.node:
            check_on_this_machine(device)
    refuse_taken_devices([device for device in devices if not device.node], share=share)
