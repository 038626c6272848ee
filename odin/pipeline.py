"""``odin.Pipeline``: a CNN served by stages, each pinned to its own cores or GPU."""

from __future__ import annotations

import atexit
import gc
import math
import operator
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from odin.cluster.actors import starting
from odin.cluster.placement import check_stage_count
from odin.control.arrangement import reach
from odin.control.assembly import Assembly
from odin.control.default_policy import AUTO
from odin.errors import ForkedProcessError
from odin.models.chains import engine_for, to_chain, to_source
from odin.models.sources import Source
from odin.monitor.detectors import Detector
from odin.monitor.eventlog import EventLog
from odin.monitor.events import Event, KnobTurned, LoadChanged
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.builder import PipelineView
from odin.options import check_batch, check_joins, check_options, check_policy, check_precision_fits, check_timeout
from odin.partitioner.chain import Chain
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Policy, StaticPolicy, windows_of
from odin.partitioner.profile import Profile
from odin.partitioner.relay import Windows
from odin.process.at_exit import close_at_exit
from odin.process.forks import check_ray_is_ours, keep_from_children
from odin.process.phases import phase
from odin.requests.admission import PREDICT, Forecast
from odin.requests.joining import Joining
from odin.requests.microbatch import join_outputs, split_inputs
from odin.requests.replies import Reply, outcome_of
from odin.requests.request import samples_of
from odin.stages.device import Device, parse_devices

__all__ = ["Pipeline"]

_OUR_THREADS = frozenset(f"odin-{name}" for name in ("callbacks", "controller", "investigator", "status", "timers"))
"""Threads that call the caller's code and that closing joins: ``close`` from such a thread must not wait for itself."""


class Pipeline:
    """A model cut into stages, each pinned to its device, through which requests stream.

    Use it as a context manager; leaving it ends every stage. All methods may be called from any thread, also from
    callbacks of its futures, but not in a process that was forked later: there they raise
    :class:`~odin.ForkedProcessError`, and leaving the context manager does nothing.

    A stage that dies or hangs is left out, and replaced, while requests flow: see ``docs/failures.md``.

    The duration of each phase of starting is logged by ``logging.getLogger("odin.startup")`` at level INFO.

    Parameters
    ----------
    model
        Name of a model or of its file (see :func:`odin.load_source`), an ``nn.Module``, a
        ``torch.export.ExportedProgram``, a :class:`odin.Source`, or a :class:`odin.Chain` made before with
        :func:`odin.build_chain`. A given chain keeps its weights in this process; otherwise this process frees them
        once the stages have them. Giving a chain makes starting take longer, since otherwise Ray and the stages start
        while the chain is built.
    name
        What ``odin top``, events and other pipelines call it; default: the model's name.
    stages
        One device per stage, in pipeline order: ``["cpu:0", "cpu:1"]``, ``"cpu:0-3,gpu:0"``, ``"NODE/cpu:0"``; or
        ``"auto"``: every free GPU of the cluster; if there is none, every free core, or as many cores as the CPU quota
        allows.
    example_input
        Tensor, or tuple of tensors for several inputs, with a leading batch dimension. Named models have their own.
    plan
        Layers per stage, ``Plan`` or text such as ``"7|11"``. By default the layers are timed on the devices (once,
        then kept on disk), and the plan with the least bottleneck is found exactly.
    policy
        Who runs which layers of a request. ``"relay"``: a free stage takes the next request, and hands it on where that
        helps. By a plan, which a policy changes:
        ``"filter"`` (ODIN's own), ``"together"`` (planned with all pipelines of this process that have this policy and
        share a device), ``"odin:alpha=10"``, ``"lls"``, ``"oracle"``, any
        :class:`~odin.partitioner.policies.Policy` or ``"module:Class"`` of one; or ``"static"``: nothing moves, except
        by :meth:`migrate`. ``"auto"``: ``relay`` if all stages are on CPUs of one node, otherwise ``filter``.
    detector
        What detects that a stage's slowdown has changed: ``"cusum"``, ``"threshold:ratio=0.2"``, ``"page-hinkley"``,
        ``"adwin"``, ``"module:Class"``, or a :class:`~odin.monitor.detectors.Detector` with one stream per stage.
    log
        File to which every event of the run is appended, one JSON line each, for ``odin replay``. At 256 MiB it is
        renamed to ``FILE.1`` and a new one begun; four older files are kept, then the oldest is deleted. While it
        cannot be written, as on a full disk, serving continues, and the number of missing events is recorded when
        writing succeeds again. For other limits give an :class:`~odin.monitor.eventlog.EventLog`.
    on_event
        Called with every event as it happens, one after the other, from a thread of its own; with finished requests up
        to a tenth of a second later, some at a time. See :mod:`odin.monitor.events`. It may be slow, raise and use the
        pipeline: nothing waits for it. Each type of exception that it raises is reported once. If it cannot keep up,
        the oldest finished requests are skipped, and a :class:`~odin.monitor.events.EventsMissing` says how many.
    weights
        File of weights, ``.safetensors`` or ``.pth``.
    batch
        Largest micro-batch: a request with a larger leading size is split into parts of this size. Default: the
        example input's leading size, which is the only one allowed for models whose samples depend on each other
        (such as frames of a film).
    dynamic_batching
        Join requests that wait for a place, up to ``batch`` samples, into one micro-batch: for models that take less
        time for several samples together than one by one, and callers that send few at a time. Each caller gets its own
        rows. Off by default, since outputs may differ by rounding from those of a micro-batch of another size, and
        with whom a request is joined depends on who waits. See :attr:`largest_batch` and ``docs/serving.md``.
    batch_wait_ms
        How long a request that could be joined is held back although there is a place, for others to come; never so
        long that it would be late. Default: 0, nothing is held back.
    max_in_flight
        Most micro-batches in flight; beyond that ``submit`` waits. Default: two per stage, one being computed and one
        waiting; with the relay, where less waits, one and a half per stage; and one on each way between nodes.
    max_waiting
        Most micro-batches that may wait for a place when :meth:`asubmit` adds one; beyond that it raises
        :class:`~odin.QueueFullError`. Default: any number. (:meth:`submit` waits itself.)
    admission
        ``"predict"``: a request with a deadline that would not be done in time, as predicted from what is ahead of it
        and how slow the stages are now, is refused at once; so is one that would make an accepted one late.
        ``"none"``: all are taken, and fail when their time has passed. Without ``timeout_s`` nothing is ever refused.
    address
        Address of a Ray cluster. Without it an embedded local Ray is started and stopped, unless this process is
        connected to one already.
    share_devices
        Allow several stages on one core or GPU, and devices that other pipelines use, if these allow it, too.
    share
        Largest part of its device's time that each stage uses, such as ``0.5``: beyond it the stage pauses between
        requests, and what else is on the device has the rest. Default: all.
    precision
        Number format in which stages compute: ``"float32"``; on GPUs ``"tf32"``, ``"float16"`` or ``"bfloat16"``, CPU
        stages beside them compute in float32; on CPU cores alone ``"bfloat16"`` (engine ``"openvino"``, processors that
        have it) or ``"int8"`` (engines ``"onnxruntime"`` and ``"openvino"``, with ``calibration``).
    calibration
        Examples by which the model is quantised to int8, some hundred: a tensor of images, or an iterable of example
        inputs. How far the outputs are from float32 on them is logged with the phases of starting.
    engine
        What computes the layers on CPU cores: ``"torch"``, ``"onnxruntime"`` or ``"openvino"`` (extras of this
        package), or ``"auto"``: whichever is fastest, measured once for a model and a type of device and kept on disk
        with the profile. Outputs are the same under every plan; those of two engines differ by rounding, and where NaN
        or infinity goes in: OpenVINO may give numbers then. Default: ``"torch"``; for an ONNX file, which PyTorch does
        not run, ``"auto"``.
    transport
        ``"auto"``: shared memory within a node and TCP between nodes; ``"shm"`` or ``"tcp"`` forces one.
    refresh_profile
        Time the layers again even if their times are on disk, for example because another program ran meanwhile.

    Raises
    ------
    ValueError
        If the model, a device, the plan or an option is not valid; the message names the value and the remedy.
    ConnectionError, TimeoutError
        If the cluster cannot be reached, or does not start the stages in time.

    Examples
    --------
    >>> import odin, torch
    >>> x = torch.randn(1, 3, 224, 224)
    >>> with odin.Pipeline("resnet50", stages=["cpu:0", "cpu:1"]) as pipe:  # doctest: +SKIP
    ...     y = pipe(x)
    """

    def __init__(
        self,
        model: str | torch.nn.Module | torch.export.ExportedProgram | Source | Chain,
        *,
        name: str | None = None,
        stages: str | Sequence[str | Device] = "auto",
        example_input: Any = None,
        plan: Plan | str | None = None,
        policy: Policy | str = AUTO,
        detector: Detector | str = "cusum",
        log: str | Path | EventLog | None = None,
        on_event: Callable[[Event], None] | None = None,
        weights: str | Path | None = None,
        batch: int | None = None,
        max_in_flight: int | None = None,
        max_waiting: int | None = None,
        admission: str = PREDICT,
        address: str | None = None,
        share_devices: bool = False,
        precision: str = "float32",
        engine: str | None = None,
        calibration: Any = None,
        transport: str = "auto",
        refresh_profile: bool = False,
        dynamic_batching: bool = False,
        batch_wait_ms: float = 0.0,
        share: float = 1.0,
    ) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing: threading.Thread | None = None
        self._closed = threading.Event()
        self._assembly: Assembly | None = None
        self._followers: tuple[Callable[[RequestTimeline], None], ...] = ()
        self._at_exit = close_at_exit(self)
        keep_from_children(self)
        check_ray_is_ours()  # first: in a forked child all else would be refused for a wrong reason
        devices = None if isinstance(stages, str) and stages == "auto" else parse_devices(stages)
        check_options(
            stages="auto" if devices is None else devices,  # what can be read only once was read
            plan=plan,
            policy=policy,
            detector=detector,
            log=log,
            on_event=on_event,
            batch=batch,
            max_in_flight=max_in_flight,
            max_waiting=max_waiting,
            admission=admission,
            address=address,
            share_devices=share_devices,
            precision=precision,
            engine=engine,
            calibration=calibration,
            transport=transport,
            dynamic_batching=dynamic_batching,
            batch_wait_ms=batch_wait_ms,
            share=share,
        )
        self.share, self.dynamic_batching = float(share), bool(dynamic_batching)
        plan = Plan.parse(plan) if isinstance(plan, str) else plan
        with phase("model loaded"):
            source = to_source(model, weights=weights, example_input=example_input)
        engine = engine_for(source, engine)
        if devices is not None:
            check_precision_fits(precision, engine, devices, on_this_machine=False)
        self._assembly = assembly = Assembly(log, on_event, share=self.share, on_result=self._on_result)
        try:
            assembly.begin(
                devices, source, address=address, share_devices=share_devices, precision=precision, engine=engine
            )
            self.chain = to_chain(source, engine=engine, stage_count=len(devices or ()))
            self.name = name or self.chain.name
            del source  # or its weights would stay, which the stages will have
            gc.collect()  # traced graphs are cycles that hold them, too; meanwhile Ray and the stages start
            self.batch = check_batch(self.chain, batch)
            if dynamic_batching:
                check_joins(self.chain, self.batch)
            if devices is not None:
                check_stage_count(len(devices), layer_count=len(self.chain.layers))
            if plan is not None:
                plan.check_fits(layer_count=len(self.chain.layers), stage_count=len(devices or plan))
            with starting():
                self._gateway, self._supervision, self._arrangement = assembly.finish(
                    self.chain,
                    name=self.name,
                    batch=self.batch,
                    plan=plan,
                    policy=policy,
                    detector=detector,
                    engine=engine,
                    precision=precision,
                    calibration=calibration,
                    keep_weights=self.chain is model,
                    transport=transport,
                    refresh_profile=refresh_profile,
                    max_in_flight=operator.index(max_in_flight or 0),
                    max_waiting=max_waiting,
                    admission=admission,
                    joining=Joining(self.batch, joins=dynamic_batching, wait_s=batch_wait_ms / 1e3),
                    in_cluster=address is not None,
                )
            self.devices, self.engine, self.max_in_flight = assembly.devices, assembly.engine, assembly.max_in_flight
            self.profiles: tuple[Profile, ...] = assembly.profiles
            self._form, self._setting = assembly.form, assembly.setting
        except BaseException:
            self.close(drain=False)
            raise

    # -- requests ---------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any, timeout_s: float | None = None) -> Any:
        """Serve one request, wait, and return its result in the model's own output structure."""
        future = self.submit(*inputs, timeout_s=timeout_s)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # interrupted while waiting: the result is not needed any more
            raise

    def submit(self, *inputs: Any, timeout_s: float | None = None, wait: bool = True) -> Future[Any]:
        """Send one request; waits while ``max_in_flight`` micro-batches are under way.

        Who waits is let in by the earliest deadline first, and in the order of coming without deadlines. A request that
        is held back to be joined although there is a place (``batch_wait_ms``) does not make the caller wait.

        Parameters
        ----------
        inputs
            The model's arguments: tensors like the example's, of any batch size. The caller may change them afterwards.
        timeout_s
            Deadline in seconds from now: the future fails then with :class:`~odin.DeadlineExceededError`, wherever the
            request is, also while it waits in this call. Zero or less: already passed; infinity or None: no deadline.
            With ``admission="predict"`` it has failed when this returns if the request is not taken (``refused``).
        wait
            Whether to wait for a place.

        Returns
        -------
        Future
            All callbacks are called one after the other in a thread of their own; they may block, submit and wait.
            Cancelling the future takes the request back if the first stage has not begun with it and is on this
            machine (this holds for each micro-batch); otherwise the request is computed and its result dropped.

        Raises
        ------
        ValueError
            If an input's shape, dtype or device does not fit, or ``timeout_s`` is no number.
        PipelineClosedError, StageLostError
            If the pipeline is closed, or all its stages are lost and none can be replaced.
        QueueFullError
            If there is no place at once for all its micro-batches, with ``wait=False``.
        """
        return self._submit(inputs, timeout_s, wait=wait)

    def _submit(
        self, inputs: tuple[Any, ...], timeout_s: float | None, *, wait: bool = True, many: bool = False
    ) -> Future[Any]:
        deadline_s = self._deadline_s(timeout_s)
        values = self.chain.pack(inputs)
        if (refused := self._refuse_if_late(values, deadline_s)) is not None:
            return refused
        return self._whole(self._gateway.submit_all(self._parts(values), deadline_s=deadline_s, wait=wait, many=many))

    async def asubmit(
        self,
        *inputs: Any,
        timeout_s: float | None = None,
        wait: bool = True,
        timelines: list[RequestTimeline] | None = None,
    ) -> Any:
        """As :meth:`submit`, for ``async`` code: the event loop is not blocked while the request waits or is computed.

        Returns the result itself; do not change the inputs until then. Cancelling the task cancels the request. Raises
        :class:`~odin.QueueFullError` as well if ``max_waiting`` is reached.

        To ``timelines`` are added the timings of the request's micro-batches, of those that stages have answered.
        """
        deadline_s = self._deadline_s(timeout_s)
        values = self.chain.pack(inputs)
        if (refused := self._refuse_if_late(values, deadline_s)) is not None:
            return refused.result()
        replies = self._gateway.enqueue_all(self._parts(values), deadline_s=deadline_s, wait=wait)
        whole = self._whole(replies)
        if timelines is None:
            del replies  # a part's answer is not needed once it is in the whole
            return await outcome_of(whole)
        try:
            return await outcome_of(whole)
        finally:
            timelines += [reply.timeline for reply in replies if reply.timeline is not None]
            del replies  # an exception holds this frame, and they the exception

    def map(self, inputs: Iterable[Any], *, timeout_s: float | None = None) -> Iterator[Any]:
        """Serve many requests; results in the order of the inputs.

        Lazy: an input is read from the iterable when the pipeline has room for it, so that streams of any length need
        bounded memory. With ``dynamic_batching`` inputs are read ahead, copied and joined. An item is one tensor, or a
        tuple of tensors for several inputs. The first failure is raised where its result would be, and ends the
        iteration; results of requests still in flight are dropped.
        ``timeout_s`` counts for each request from the moment it is submitted.
        """
        self._deadline_s(timeout_s)  # now, and not with the first result
        return self._map(inputs, timeout_s)

    def _map(self, inputs: Iterable[Any], timeout_s: float | None) -> Iterator[Any]:
        under_way: deque[Future[Any]] = deque()
        for item in inputs:
            arguments = item if isinstance(item, tuple) else (item,)
            most = 2 * self.max_in_flight  # those that wait for one that they have overtaken must not hold others up
            if self.dynamic_batching:
                most *= self.largest_batch  # and so many are joined
            while len(under_way) >= most or (under_way and under_way[0].done()):
                yield under_way.popleft().result()
            under_way.append(self._submit(arguments, timeout_s, many=self.dynamic_batching))
        while under_way:
            yield under_way.popleft().result()

    def _deadline_s(self, timeout_s: float | None) -> float:
        """When a request that is submitted now has to be done, on ``time.perf_counter``."""
        self._check_process()
        timeout_s = check_timeout(timeout_s)
        return timeout_s if math.isinf(timeout_s) else time.perf_counter() + timeout_s

    def _check_process(self) -> None:
        """Called before any lock is taken: in a forked child a lock may never be released."""
        if os.getpid() != self._pid:
            raise ForkedProcessError(self._pid)

    def _whole(self, parts: list[Reply[Any]]) -> Reply[Any]:
        """The future of the whole request."""
        if len(parts) == 1 and parts[0].finish_with(self.chain.unpack):
            return parts[0]
        return join_outputs(parts, self.chain.unpack, callbacks=self._gateway.callbacks)

    def _refuse_if_late(self, values: tuple[torch.Tensor, ...], deadline_s: float) -> Reply[Any] | None:
        """The failed future of a request that would be late, before its input is copied."""
        if math.isinf(deadline_s):
            return None
        parts = split_inputs(values, batch=self.batch)
        return self._gateway.refuse_if_late(len(parts), deadline_s, samples=samples_of(parts[0]))

    def forecast(self, samples: int = 1, *, timeout_s: float | None = None) -> Forecast:
        """When a request of so many samples would be done if it were submitted now; changes nothing.

        Its moments are on ``time.perf_counter``: ``expected_s``, and ``latest_s``, which :meth:`submit` holds against
        the deadline with ``admission="predict"``. (Requests that it would delay may still keep it out.)
        """
        deadline_s = self._deadline_s(timeout_s)
        forecast = self._gateway.ask(-(-samples // self.batch), deadline_s, samples=min(samples, self.batch))
        assert forecast is not None
        return forecast

    def _parts(self, values: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
        return split_inputs(self._form.layout(values), batch=self.batch)

    @property
    def largest_batch(self) -> int:
        """Most samples that are joined from now on with ``dynamic_batching``, from 1 to ``batch``.

        Requests that are larger by themselves stay as they are. Setting it raises ``ValueError`` for any other value,
        and without ``dynamic_batching``; :class:`~odin.PipelineClosedError` once the pipeline is closed.
        """
        self._check_process()
        return self._gateway.joining.largest

    @largest_batch.setter
    def largest_batch(self, samples: int) -> None:
        self._check_process()
        joining = self._gateway.joining
        if not joining.joins:
            raise ValueError(f"largest_batch={samples}, but no requests are joined: start with dynamic_batching=True")
        self._gateway.check_open()
        joining.largest = samples

    # -- plans ------------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Layers per stage for the next request; where :attr:`windows` are wider, only what to return to from them."""
        self._check_process()
        return self._gateway.plan

    @property
    def windows(self) -> Windows:
        """Where the next request may change hands; one cut for each boundary where the plan alone says it."""
        self._check_process()
        return self._gateway.in_force.windows

    def migrate(self, plan: Plan | Windows | str) -> int:
        """Move to another plan, or to other windows such as ``"@0-18|@18"``, while requests flow; returns its epoch.

        Every stage is prepared first, then requests are tagged with the new epoch from the next one on: nothing is
        drained, paused or lost. A policy that moves layers may do so again at once; ``static`` and ``relay`` keep what
        was asked for. A plan ends the relay: :attr:`policy` is ``static`` then.

        Raises
        ------
        ValueError
            If it is no plan and no windows, or does not fit; nothing has changed then.
        StageLostError
            If a stage is gone.
        PipelineClosedError
            If the pipeline is closed, before or meanwhile.
        """
        self._check_process()
        if isinstance(plan, str):
            plan = Windows.parse(plan) if "@" in plan else Plan.parse(plan)
        fits = {"layer_count": len(self.chain.layers), "stage_count": len(self.devices)}
        if isinstance(plan, Windows):
            plan.check_fits(**fits)
            return self._arrangement.switch(plan.nearest(self.plan), plan, why="asked for")
        try:
            plan = Plan(plan)
        except TypeError:
            raise ValueError(f"{plan!r} is no plan and no windows; give text such as '7|11' or '@0-9|@18'") from None
        plan.check_fits(**fits)
        if windows_of(self._supervision.policy, self._setting) is not None:
            self._supervision.set_policy(StaticPolicy())
        return self._arrangement.switch(plan, why="asked for")

    @property
    def policy(self) -> str:
        """The policy's name. Set it to a name or a policy; in force from the next request on.

        Setting one that moves layers by plans, after the relay, fixes the boundaries where :attr:`plan` has them.
        """
        self._check_process()
        return self._supervision.policy.name

    @policy.setter
    def policy(self, policy: Policy | str) -> None:
        self._check_process()
        check_policy(policy)
        assert self._assembly is not None
        policy = self._assembly.policy_for(policy)
        self._supervision.set_policy(policy)
        setting = self._setting._replace(plan=self.plan, reach=reach(self.plan, self.devices))
        windows = windows_of(policy, setting)
        if (windows or Windows.of_plan(setting.plan)) != self.windows:
            self._arrangement.switch(setting.plan, windows, why=f"policy {policy.name}")

    @property
    def instances(self) -> int:
        """How many stages take new requests, while the relay is in force on CPU cores of one node: all, by default.

        Set it to 1 or more: so many run whole requests beside each other from the next request on. The others stay, use
        no CPU, and take part again when they are asked for; a stage that is lost is made up for by one of them. Another
        :attr:`policy`, :meth:`migrate` and windows count for all stages, and end it.
        """
        self._check_process()
        return self._arrangement.instances

    @instances.setter
    def instances(self, instances: int) -> None:
        self._check_process()
        self._arrangement.set_instances(instances)

    # -- state ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> PipelineView:
        """Return :meth:`view`."""
        return self.view()

    def view(self) -> PipelineView:
        """Return what ``odin top`` shows at this moment: stages, slowdowns and their causes, rates, recent events.

        Counts, plan and epoch are those of this moment; figures and events follow within a tenth of a second.
        """
        self._check_process()
        return self._supervision.view()

    def note_load(self, event: LoadChanged) -> None:
        """Record a load that this program injects beside the pipeline in the view and the log."""
        self._check_process()
        self._supervision.note_load(event)

    def timelines(self) -> tuple[RequestTimeline, ...]:
        """Timings of the last 512 finished micro-batches, oldest first, every stage's own measurements included."""
        self._check_process()
        return self._gateway.window.timelines()

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        """Call a function with the timings of every micro-batch that finishes from now on; returns what ends that.

        It is called in the thread that resolves futures, so it must be quick, and not raise.
        """
        self._check_process()
        with self._lock:
            self._followers = (*self._followers, on_result)

        def leave() -> None:
            with self._lock:
                self._followers = tuple(other for other in self._followers if other is not on_result)

        return leave

    def _on_result(self, timeline: RequestTimeline) -> None:
        self._supervision.on_result(timeline)
        for follower in self._followers:
            follower(timeline)

    def note_turn(self, event: KnobTurned) -> None:
        """Record that a knob of this pipeline was turned in the view and the log; :class:`odin.Tuner` does so."""
        self._check_process()
        self._supervision.note_turn(event)

    def stage_names(self) -> dict[tuple[str, int], str]:
        """What other pipelines of this process call its stages, by node id and process."""
        return {} if self._assembly is None else self._assembly.stage_names()

    # -- end --------------------------------------------------------------------------------------------------------

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Finish the requests under way (if ``drain``) and end every stage's process. Idempotent.

        Returns once the pipeline is closed, also if another thread is closing it; in a callback of a future it
        returns at once in that case. In a forked child it does nothing.

        Parameters
        ----------
        drain
            Wait for the requests in flight, and call the callbacks of their futures. Requests that wait for a free slot
            fail with :class:`~odin.PipelineClosedError` in any case, and so does a migration in progress.
        timeout_s
            Longest wait: a request that is not done by then, for example on a stage that hangs, fails with
            :class:`~odin.PipelineClosedError`. Ending the stages takes at most some seconds after that.
        """
        if os.getpid() != self._pid:
            return
        check_timeout(timeout_s)
        with self._lock:
            first = self._closing is None
            self._closing = self._closing or threading.current_thread()
        if first:
            try:
                atexit.unregister(self._at_exit)
                if self._assembly is not None:
                    self._assembly.close(drain=drain, timeout_s=timeout_s)
            finally:
                self._closed.set()
        else:
            if not drain and self._assembly is not None and not self._closed.is_set():
                self._assembly.stop_waiting()
            if self._closing is not threading.current_thread() and threading.current_thread().name not in _OUR_THREADS:
                self._closed.wait()

    def abandon(self) -> None:
        """Close, in a forked child, what keeps the parent's resources alive; for :mod:`odin.process.forks`."""
        if self._assembly is not None:
            self._assembly.abandon()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pipeline cannot be sent to another process: start one there, or serve this one's to it over a connection"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)
