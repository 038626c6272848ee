"""``odin.Family``: a task that several variants of a model do; each request gets the one that does what it asks for."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map_only

from odin.control.supervision import EventRecorder
from odin.errors import (
    DeadlineExceededError,
    ForkedProcessError,
    OdinError,
    PipelineClosedError,
    QueueFullError,
    StageLostError,
)
from odin.family.counts import FamilyCounts
from odin.family.devices import Begun, SharedDevices
from odin.family.errors import refused
from odin.family.facts import Choice, Prediction, Refusal, Seen, VariantPolicy, Want
from odin.family.loading import Loading
from odin.family.policies import make_variant_policy
from odin.family.profile import VariantProfile, VariantProfiles
from odin.family.told import Told
from odin.family.variant import Variant
from odin.family.views import Answer, FamilyView, VariantView
from odin.models.labelled import Labelled
from odin.monitor.eventlog import EventLog
from odin.monitor.events import Event, FamilyCounted, RunEnded, RunStarted, StageDescription
from odin.monitor.timing import RequestTimeline
from odin.options import check_timeout
from odin.partitioner.code.single import copied
from odin.pipeline import Pipeline
from odin.process.at_exit import close_at_exit
from odin.process.forks import check_ray_is_ours, keep_from_children
from odin.reduction.budget import check_budget
from odin.requests.replies import Callbacks, Reply, when_done

__all__ = ["Family"]

_LOOK_S = 1.0
_COUNTED_S = 60.0


class Family:
    """Variants of a model behind one name; each request says how accurate and how soon, and gets one of them.

    Each variant that is loaded is an :class:`odin.Pipeline`, whose layers move as conditions change. Only where that
    does not keep the latency a request gets another variant, and only where no full one keeps it, and the request's
    accuracy budget allows that, a reduced form, which computes less.

    Use it as a context manager; leaving it ends all. All methods may be called from any thread.

    Parameters
    ----------
    variants
        At least one; each has a name of its own.
    name
        Of the family, for events.
    stages
        Devices of the variants that have none of their own, see :class:`odin.Pipeline`.
    memory_mib
        What the variants that are loaded may take together. Those of ``variants`` that fit are loaded at the start, in
        their order; others by demand.
    policy
        ``"odin"``: the least dear variant that is accurate enough and will be in time; ``"odin:prefer=accuracy"``: the
        most accurate one. To compare with: ``"infaas"``, ``"best"``, ``"cheapest"``.
    accuracy_budget
        Of requests that name none themselves, see :meth:`submit`; 0: nothing is reduced.
    labelled
        Inputs and the class of each, by which variants whose accuracy is not given are measured.
    refresh_profile
        Profile the variants again even if their profiles are on disk.
    log, on_event
        As of :class:`odin.Pipeline`: told are loads, unloads, changes of what requests get, and how many got what.
    on_variant_event
        Called with a variant's name and each event of its pipeline, as ``on_event`` of :class:`odin.Pipeline` is.
    on_progress
        Called with a variant's name, what is being done, and which part of it is, while profiles are made.

    Attributes
    ----------
    facts
        What is known of each variant.

    Raises
    ------
    ValueError
        If there is no variant, two have one name, none fits into the memory, or an option is not valid.

    Examples
    --------
    >>> import odin
    >>> with odin.Family(
    ...     [odin.Variant("small", "mobilenet_v2", accuracy=0.72), odin.Variant("large", "resnet50", accuracy=0.80)],
    ...     stages=["cpu:0", "cpu:1"],
    ... ) as family:  # doctest: +SKIP
    ...     answer = family(x, accuracy=0.7, latency_s=0.1)
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        *,
        name: str = "family",
        stages: str | Sequence[str] = "auto",
        memory_mib: float = math.inf,
        policy: str | VariantPolicy = "odin",
        accuracy_budget: float = 0.0,
        labelled: Labelled | tuple[Any, Any] | None = None,
        refresh_profile: bool = False,
        log: str | Path | EventLog | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_variant_event: Callable[[str, Event], None] | None = None,
        on_progress: Callable[[str, str, float], None] = lambda name, what, part: None,
    ) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a future may be cancelled by the garbage collector, anywhere
        self._closed = False
        self._recorder: EventRecorder | None = None
        self._loading: Loading | None = None
        self._ticker: threading.Thread | None = None
        self._ended = threading.Event()
        check_ray_is_ours()
        keep_from_children(self)
        self.name = name
        for variant in (variants := tuple(variants)):
            if not isinstance(variant, Variant):
                raise ValueError(f"a variant is of type {type(variant).__name__}; give odin.Variant(name, model)")
        self.variants = tuple(one for variant in variants for one in variant.with_forms())
        check_budget(accuracy_budget)
        self.accuracy_budget = accuracy_budget
        _check(self.variants, memory_mib)
        self.policy = make_variant_policy(policy) if isinstance(policy, str) else policy
        self.memory_mib = memory_mib
        stages = stages if isinstance(stages, str) else tuple(map(str, stages))
        if labelled is not None and not (isinstance(labelled, tuple | list) and len(labelled) == 2):
            raise ValueError(f"labelled is of type {type(labelled).__name__}; give a pair (inputs, classes)")
        known = None if labelled is None else Labelled.of(*labelled)
        self._counts = FamilyCounts(len(self.variants))
        self._counted = self._count()
        self._callbacks = Callbacks()
        self._at_exit = close_at_exit(self)
        try:
            self._recorder = EventRecorder(log, on_event)
            self._devices = SharedDevices(
                [variant.devices(stages) for variant in self.variants], refuses=self.policy.refuses
            )
            self._loading = Loading(
                self.variants,
                stages,
                family=name,
                policy=self.policy,
                emit=self._recorder.emit,
                on_variant_event=on_variant_event,
            )
            profiles = self._loading.profiles(
                VariantProfiles(), known, refresh=refresh_profile, memory_mib=memory_mib, on_progress=on_progress
            )
            self.profiles: tuple[VariantProfile, ...] = tuple(profiles)
            self.facts = tuple(profile.facts(variant) for variant, profile in zip(self.variants, profiles, strict=True))
            self._told = Told([facts.name for facts in self.facts], self._recorder.emit)
            self._loading.begin(self.facts, memory_mib=memory_mib)
            self._tell_start()
            self._ticker = threading.Thread(target=self._tick, name="odin-family", daemon=True)
            self._ticker.start()
        except BaseException:
            self.close(drain=False)
            raise

    # -- requests ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        *inputs: Any,
        accuracy: float = 0.0,
        latency_s: float | None = None,
        accuracy_budget: float | None = None,
        variant: str | None = None,
    ) -> Answer:
        """As :meth:`submit`, and wait for the answer."""
        future = self.submit(
            *inputs, accuracy=accuracy, latency_s=latency_s, accuracy_budget=accuracy_budget, variant=variant
        )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(
        self,
        *inputs: Any,
        accuracy: float = 0.0,
        latency_s: float | None = None,
        accuracy_budget: float | None = None,
        variant: str | None = None,
    ) -> Future[Answer]:
        """Send one request to the variant that does what it asks for.

        Parameters
        ----------
        inputs
            The model's arguments, as of :meth:`odin.Pipeline.submit`; the caller may change them afterwards.
        accuracy
            The least share of right answers that the variant has on labelled data, from 0 to 1.
        latency_s
            Seconds from now within which it is to be done; it fails then, and at once if no variant would be in time.
            None: any time.
        accuracy_budget
            Share of accuracy, in [0, 1), that may be lost against a full variant by computing less, if no full one is
            in time: 0.003 allows reduced forms that lose at most 0.3%, whose outputs are not those of the model. 0:
            none; None: the family's. ``accuracy`` holds for reduced forms too.
        variant
            The name of the one variant that is wanted, whatever its accuracy: the request gets it, and no other.

        Returns
        -------
        Future
            Of an :class:`Answer`; fails with :class:`~odin.DeadlineExceededError`, and with ``refused`` if it was not
            taken, whose message names the best that could be done.

        Raises
        ------
        ValueError
            If an input does not fit, or what is asked for is no accuracy or latency.
        PipelineClosedError
            If the family is closed.
        """
        request = self._request(inputs, accuracy, latency_s, accuracy_budget, variant)
        reply: Reply[Answer] = Reply(self._callbacks)
        self._go(request, reply)
        return reply

    async def asubmit(
        self,
        *inputs: Any,
        accuracy: float = 0.0,
        latency_s: float | None = None,
        accuracy_budget: float | None = None,
        variant: str | None = None,
        timelines: list[RequestTimeline] | None = None,
    ) -> Answer:
        """As :meth:`submit`, for ``async`` code; do not change the inputs until it is done."""
        request = self._request(inputs, accuracy, latency_s, accuracy_budget, variant)
        while True:
            choice = self._choose(request)
            if isinstance(choice, OdinError):
                raise choice
            pipeline = self._pipeline(choice.variant)
            if pipeline is None:
                request.loaded_for = choice
                pipeline = await asyncio.wrap_future(self._load(choice.variant))
            begun = self._begin(choice.variant, request)
            try:
                value = await pipeline.asubmit(*inputs, timeout_s=request.left_s(), timelines=timelines)
            except BaseException as error:
                if self._again(choice.variant, request, error):
                    self._end(begun, None)
                    continue
                self._end(begun, error)
                raise
            return self._answer(choice, request, begun, value)

    def ask(
        self,
        *,
        accuracy: float = 0.0,
        latency_s: float | None = None,
        accuracy_budget: float | None = None,
        samples: int = 1,
    ) -> Choice | Refusal:
        """What a request would get now; nothing is sent, counted or loaded."""
        want = self._want(accuracy, latency_s, accuracy_budget, samples)
        return self._decide(want, time.perf_counter(), frozenset())

    def _want(self, accuracy: float, latency_s: float | None, budget: float | None, samples: int) -> Want:
        if os.getpid() != self._pid:
            raise ForkedProcessError(self._pid)
        if self._closed:
            raise PipelineClosedError("the family is closed; start a new one to submit requests")
        try:
            seconds = check_timeout(latency_s)
        except ValueError:
            raise ValueError(f"latency_s={latency_s!r}; give seconds as a number, or None for any time") from None
        if not isinstance(accuracy, int | float) or isinstance(accuracy, bool) or not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy={accuracy!r}; it is a share of right answers, from 0 to 1")
        budget = self.accuracy_budget if budget is None else budget
        check_budget(budget)
        return Want(float(accuracy), seconds, float(budget), samples)

    def _request(
        self,
        inputs: tuple[Any, ...],
        accuracy: float,
        latency_s: float | None,
        budget: float | None,
        variant: str | None,
    ) -> _Asked:
        shape: Sequence[int] = getattr(inputs[0], "shape", ()) if len(inputs) else ()
        samples = max(1, int(shape[0])) if len(shape) else 1
        named = None if variant is None else self._number(variant)
        return _Asked(inputs, self._want(accuracy, latency_s, budget, samples), time.perf_counter(), named)

    def _go(self, request: _Asked, reply: Reply[Answer]) -> None:
        """Give a request to a variant, or to the next one if that turns it away."""
        while not reply.done():
            choice = self._choose(request)
            if isinstance(choice, OdinError):
                reply.settle(choice)
                return
            pipeline = self._pipeline(choice.variant)
            if pipeline is None:
                if request.loaded_for is None:  # the caller may change them, once this has returned
                    request.inputs = tree_map_only(torch.Tensor, copied, request.inputs)
                request.loaded_for = choice
                loaded = self._load(choice.variant)
                loaded.add_done_callback(lambda done: self._go_on(done, request, reply))
                return
            begun = self._begin(choice.variant, request)
            try:
                inner = pipeline.submit(*request.inputs, timeout_s=request.left_s())
            except BaseException as error:
                if self._again(choice.variant, request, error):
                    self._end(begun, None)
                    continue
                self._end(begun, error)
                raise
            request.inputs = ()
            reply.on_cancel = partial(_cancel, inner)
            when_done(inner, partial(self._settle, choice=choice, request=request, begun=begun, reply=reply))
            if reply.cancelled():
                inner.cancel()
            return

    def _go_on(self, loaded: Future[Pipeline], request: _Asked, reply: Reply[Answer]) -> None:
        """A variant has been loaded for a request, or could not be."""
        error = loaded.exception()
        if error is not None:
            reply.settle(error)
            return
        try:
            self._go(request, reply)
        except BaseException as defect:
            reply.settle(defect)

    def _settle(
        self, done: Future[Any], *, choice: Choice, request: _Asked, begun: Begun, reply: Reply[Answer]
    ) -> None:
        if done.cancelled():
            self._end(begun, None)
            return
        error = done.exception()
        if error is not None:
            self._end(begun, error)
            reply.settle(error)
        else:
            reply.settle(self._answer(choice, request, begun, done.result()))

    def _choose(self, request: _Asked) -> Choice | OdinError:
        """The variant for a request, or why there is none."""
        now_s = time.perf_counter()
        want = request.want._replace(latency_s=request.want.latency_s - (now_s - request.begin_s))
        if request.named is None:
            chosen = self._decide(want, now_s, request.tried)
        else:
            chosen = self._named(request.named, want, now_s)
        with self._lock:
            if chosen.missed >= 0 and not request.tried:
                self._counts.missed(chosen.missed)
            if isinstance(chosen, Refusal):
                self._counts.refused()
        if request.named is None:
            self._told.chosen(request.want, chosen, now_s)
        if isinstance(chosen, Refusal):
            return request.turned_away or refused(self.facts, request.want, chosen, named=request.named is not None)
        before = request.loaded_for  # what was promised counts, loading included
        return before if before is not None and before.variant == chosen.variant else chosen

    def _decide(self, want: Want, now_s: float, tried: Collection[int]) -> Choice | Refusal:
        """Ask the policy."""
        assert self._loading is not None

        def predict(variant: int, *, loaded: bool = False) -> Prediction:
            return self._predict(variant, want, now_s, loaded=loaded)

        return self.policy.choose(self.facts, self._loading.loaded, want, predict, tried)

    def _named(self, variant: int, want: Want, now_s: float) -> Choice | Refusal:
        """What a request gets that names a variant."""
        prediction = self._predict(variant, want, now_s, loaded=False)
        if self.policy.refuses and prediction.fair_s > want.latency_s:
            return Refusal(variant, prediction.fair_s, variant)
        return Choice(variant, *prediction, "first" if self._pipeline(variant) is not None else "load")

    def _predict(self, variant: int, want: Want, now_s: float, *, loaded: bool) -> Prediction:
        """See :class:`odin.family.facts.Predict`."""
        assert self._loading is not None
        facts = self.facts[variant]
        load_s = 0.0
        if not loaded and self._loading.pipeline(variant) is None:
            load_s = self._loading.left_s(variant, facts.load_s, now_s)
        with self._lock:
            forecast = self._devices.predict(variant, facts.latency_s(want.samples), now_s)
        return Prediction(load_s + forecast.expected_s - now_s, load_s + forecast.latest_s - now_s)

    def _begin(self, variant: int, request: _Asked) -> Begun:
        facts, samples = self.facts[variant], request.want.samples
        with self._lock:
            return self._devices.begun(
                variant,
                facts.latency_s(samples),
                facts.cost_s * samples,
                time.perf_counter(),
                deadline_s=request.begin_s + request.want.latency_s,
            )

    def _end(self, begun: Begun, error: BaseException | None) -> None:
        """A request that a variant has not answered is no longer with it."""
        late = isinstance(error, DeadlineExceededError)
        with self._lock:
            self._devices.ended(begun, time.perf_counter(), late=late)
            if error is not None:
                self._counts.failed(begun.variant, late=late)

    def _answer(self, choice: Choice, request: _Asked, begun: Begun, value: Any) -> Answer:
        facts, now_s = self.facts[choice.variant], time.perf_counter()
        actual_s = now_s - request.begin_s
        with self._lock:
            self._devices.answered(begun, now_s)
            self._counts.answered(choice, request.want.samples, actual_s=actual_s)
        return Answer(
            value, facts.name, facts.accuracy, facts.form, facts.lost, choice.expected_s, actual_s, choice.step
        )

    def _again(self, variant: int, request: _Asked, error: BaseException) -> bool:
        """Whether to try another variant after this one turned a request away."""
        gone = isinstance(error, PipelineClosedError | StageLostError) and not self._closed
        if request.named is not None:  # loaded anew, once
            gone = gone and not request.tried
        elif isinstance(error, QueueFullError):
            request.turned_away = error
            gone = True
        if gone:
            request.tried.add(variant)
        return gone

    # -- what is loaded ------------------------------------------------------------------------------------------------

    def _pipeline(self, variant: int) -> Pipeline | None:
        assert self._loading is not None
        return self._loading.pipeline(variant)

    def _load(self, variant: int) -> Future[Pipeline]:
        """Load a variant, and unload what has to go for it."""
        assert self._loading is not None
        loading = self._loading
        need_mib = self.facts[variant].memory_mib + sum(self.facts[one].memory_mib for one in loading.loaded)
        with self._lock:
            others = loading.loaded - {variant}
            idle = sorted(others, key=lambda one: (self._devices.under_way(one), self._counts.last_s(one)))
        for one in idle:
            if need_mib <= self.memory_mib:
                break
            need_mib -= self.facts[one].memory_mib
            loading.unload(one)
        return loading.load(variant)

    def load(self, name: str) -> None:
        """Load a variant now, and wait until it serves; unloads what has to go for it."""
        self._load(self._number(name)).result()

    def unload(self, name: str) -> None:
        """Take no more requests with a variant; those under way are finished. It is loaded again when it is needed."""
        assert self._loading is not None
        self._loading.unload(self._number(name)).result()

    def pipeline(self, name: str) -> Pipeline | None:
        """The pipeline of a variant, which is there for as long as it is loaded; None if it is not."""
        return self._pipeline(self._number(name))

    def _number(self, name: str) -> int:
        for number, variant in enumerate(self.variants):
            if variant.name == name:
                return number
        raise ValueError(f"there is no variant {name!r}; there are {', '.join(one.name for one in self.variants)}")

    def _tick(self) -> None:
        assert self._recorder is not None
        while not self._ended.wait(_LOOK_S):
            try:
                self._tell_counts(every_s=_COUNTED_S)
                self.look()
            except Exception as error:  # of a policy of the user's own, or of a load
                self._recorder.faults.tell("the choice of what is loaded", error, "what is loaded goes on serving")

    def look(self) -> None:
        """Let the policy decide what is to be loaded; called once a second."""
        assert self._loading is not None
        loading = self._loading
        loading.drop_broken()
        with self._lock:
            taken = self._counts.take()
            under_way = [self._devices.under_way(number) for number in range(len(self.facts))]
        seen = []
        for number, one in enumerate(taken):
            pipeline = loading.pipeline(number)
            seen.append(
                Seen(
                    pipeline is not None,
                    loading.is_loading(number),
                    one.answered,
                    one.missed,
                    one.latency_s,
                    one.samples,
                    under_way[number],
                    1 if pipeline is None else pipeline.instances,
                    1 if pipeline is None else len(pipeline.devices),
                )
            )
        for step in self.policy.look(self.facts, seen, memory_mib=self.memory_mib):
            if step.action == "load" and not loading.has_failed(step.variant):
                loading.load(step.variant)
            elif step.action == "unload":
                loading.unload(step.variant)
            elif step.action == "instances" and (pipeline := loading.pipeline(step.variant)) is not None:
                with contextlib.suppress(ValueError):  # its layers are where a plan has them
                    pipeline.instances = step.instances

    # -- state, and the end --------------------------------------------------------------------------------------------

    def view(self) -> FamilyView:
        """The state at this moment."""
        assert self._loading is not None
        loading = self._loading
        with self._lock:
            variants = tuple(
                VariantView(facts, loading.state(number), self._devices.under_way(number), self._counts.of(number))
                for number, facts in enumerate(self.facts)
            )
            refused_count = self._counts.refusals
        loaded_mib = sum(one.facts.memory_mib for one in variants if one.state == "loaded")
        return FamilyView(self.policy.name, self.memory_mib, loaded_mib, refused_count, variants)

    def _tell_counts(self, *, every_s: float = 0.0) -> None:
        """Tell what variants have done, if that has changed and was not told lately."""
        if time.perf_counter() < self._counted.at_s + every_s:
            return
        counted = self._count()
        if (counted.refused, counted.variants) != (self._counted.refused, self._counted.variants):
            self._counted = counted
            assert self._recorder is not None
            self._recorder.emit(counted)

    def _count(self) -> FamilyCounted:
        with self._lock:
            variants = tuple(self._counts.of(number).told(one.name) for number, one in enumerate(self.variants))
            return FamilyCounted(time.perf_counter(), self._counts.refusals, variants)

    def _tell_start(self) -> None:
        assert self._recorder is not None
        assert self._loading is not None
        first = self._loading.pipeline(min(self._loading.loaded))
        assert first is not None
        facts = self.facts[min(self._loading.loaded)]
        stages = tuple(StageDescription(str(device), "", 0, (max(facts.cost_s, 1e-9),)) for device in first.devices)
        self._recorder.emit(
            RunStarted(
                at_s=time.perf_counter(),
                unix_s=time.time(),
                model=f"{self.name}, a family of {len(self.facts)} variants",
                layers=("a whole model",),
                stages=stages,
                plan=(1, *(0 for _ in stages[1:])),
                policy=self.policy.name,
                max_in_flight=first.max_in_flight,
            )
        )
        self._loading.started()

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Finish the requests under way (if ``drain``), and end every variant's stages. Idempotent."""
        if os.getpid() != self._pid:
            return
        check_timeout(timeout_s)
        with self._lock:
            first, self._closed = not self._closed, True
        if not first:
            return
        atexit.unregister(self._at_exit)
        self._ended.set()
        if self._ticker is not None and self._ticker is not threading.current_thread():
            self._ticker.join()
        try:
            if self._loading is not None:
                self._loading.close(drain=drain, timeout_s=timeout_s)
        finally:
            self._callbacks.close(timeout_s if drain else 1.0)
            if self._recorder is not None:
                counts = self._counts
                self._tell_counts()
                self._recorder.sum_up()
                self._recorder.emit(RunEnded(time.perf_counter(), "closed", counts.completed, counts.failures))
                self._recorder.close()

    def abandon(self) -> None:
        """Nothing to close in a forked child; for :mod:`odin.process.forks`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)


class _Asked:
    """A request that is being placed."""

    def __init__(self, inputs: tuple[Any, ...], want: Want, begin_s: float, named: int | None = None) -> None:
        self.inputs, self.want, self.begin_s, self.named = inputs, want, begin_s, named
        self.tried: set[int] = set()
        self.loaded_for: Choice | None = None
        self.turned_away: QueueFullError | None = None

    def left_s(self) -> float | None:
        """Seconds that it may still take."""
        if math.isinf(self.want.latency_s):
            return None
        return self.want.latency_s - (time.perf_counter() - self.begin_s)


def _cancel(future: Future[Any]) -> None:
    future.cancel()


def _check(variants: Sequence[Variant], memory_mib: float) -> None:
    if not variants:
        raise ValueError("a family has no variants: give at least one odin.Variant")
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two variants are called {name!r}: give each a name of its own")
    if not memory_mib > 0:
        raise ValueError(f"memory_mib={memory_mib}; give the MiB that variants may take, such as 2048")
