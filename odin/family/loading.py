"""Opens and closes the pipelines of a family's variants, one after the other, in a thread of its own."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from odin.errors import OdinError
from odin.family.facts import Facts, VariantPolicy
from odin.family.profile import VariantProfile, VariantProfiles
from odin.family.profiling import profile_variant
from odin.family.variant import Variant
from odin.models.labelled import Labelled
from odin.models.sources import Source
from odin.monitor.events import Event, Fault, ModelEvicted, ModelLoaded
from odin.pipeline import Pipeline
from odin.requests.admission import NONE

__all__ = ["Loading"]

_WEIGHT = 0.5
"""Of the last load in the time that the next one is expected to take."""
_AGAIN_S = 60.0
"""A variant that could not be loaded is not tried again before."""


class Loading:
    """The variants that are loaded.

    Parameters
    ----------
    variants, stages
        See :class:`odin.Family`.
    family
        Its name.
    policy
        Says whether all stages of a pipeline serve from the beginning.
    emit
        Takes events.
    on_variant_event
        See :class:`odin.Family`.

    Attributes
    ----------
    loaded
        Indices; a new set with every change.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        stages: str | Sequence[str],
        *,
        family: str,
        policy: VariantPolicy,
        emit: Callable[[Event], object],
        on_variant_event: Callable[[str, Event], None] | None = None,
    ) -> None:
        self._variants, self._stages, self._emit = variants, stages, emit
        self._family, self._on_variant_event = family, on_variant_event
        self._starts_with_one = policy.starts_with_one
        self._lock = threading.Lock()
        self._pipelines: list[Pipeline | None] = [None] * len(variants)
        self._loads: dict[int, tuple[Future[Pipeline], float]] = {}
        self._expected_s: dict[int, float] = {}
        self._failed_s: dict[int, float] = {}
        self._memory_mib = [0.0] * len(variants)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="odin-variants")
        self._closed = False
        self.loaded: frozenset[int] = frozenset()

    # -- at the start --------------------------------------------------------------------------------------------------

    def profiles(
        self,
        kept: VariantProfiles,
        labelled: Labelled | None,
        *,
        refresh: bool,
        memory_mib: float,
        on_progress: Callable[[str, str, float], None],
    ) -> list[VariantProfile]:
        """Profiles of all variants, those that are not kept measured; what is open then, and fits, stays open."""
        found: list[VariantProfile] = []
        used_mib = 0.0
        for number, variant in enumerate(self._variants):
            data = labelled if variant.accuracy is None else None
            key = variant.key(self._stages)
            profile = None if refresh else kept.load(key)
            if profile is None or (data is not None and profile.data != data.digest):
                profile = self._measure(number, data, on_progress, room_mib=memory_mib - used_mib)
                kept.store(key, profile)
            used_mib += profile.memory_mib if self._pipelines[number] is not None else 0.0
            found.append(profile)
        return found

    def _measure(
        self, number: int, labelled: Labelled | None, on_progress: Callable[[str, str, float], None], *, room_mib: float
    ) -> VariantProfile:
        variant = self._variants[number]
        source = variant.load()
        profile, pipeline = profile_variant(
            lambda: self._open(number),
            labelled,
            example=source.example_args if isinstance(source, Source) else None,
            on_progress=lambda what, part: on_progress(variant.name, what, part),
        )
        if profile.memory_mib <= room_mib:
            self._take(number, pipeline)
        else:
            pipeline.close()
        return profile

    def begin(self, facts: Sequence[Facts], *, memory_mib: float) -> None:
        """Load the variants that fit, in their order.

        Raises
        ------
        ValueError
            If none fits.
        """
        self._memory_mib = [one.memory_mib for one in facts]
        free_mib = memory_mib - sum(facts[one].memory_mib for one in self.loaded)
        for number, one in enumerate(facts):
            if number not in self.loaded and one.memory_mib <= free_mib:
                free_mib -= one.memory_mib
                self._take(number, self._open(number))
        if not self.loaded:
            least = min(one.memory_mib for one in facts)
            raise ValueError(f"memory_mib={memory_mib:g} holds no variant; the smallest takes {least:.0f} MiB")
        for number, one in enumerate(facts):
            self._expected_s[number] = one.load_s

    def started(self) -> None:
        """Tell of what was loaded at the start, once there is somebody to tell."""
        for number in sorted(self.loaded):
            self._tell(ModelLoaded, number, self._expected_s[number], self._expected_s[number])

    # -- later ---------------------------------------------------------------------------------------------------------

    def load(self, number: int) -> Future[Pipeline]:
        """Load a variant, unless it is; the future is done when it serves."""
        with self._lock:
            pipeline = self._pipelines[number]
            if pipeline is not None:
                done: Future[Pipeline] = Future()
                done.set_result(pipeline)
                return done
            under_way = self._loads.get(number)
            if under_way is not None:
                return under_way[0]
            future = self._worker.submit(self._load, number)
            self._loads[number] = future, time.perf_counter()
            return future

    def _load(self, number: int) -> Pipeline:
        begin_s = time.perf_counter()
        try:
            pipeline = self._open(number)
            took_s = time.perf_counter() - begin_s
            self._take(number, pipeline)
            self._failed_s.pop(number, None)
        except Exception as error:
            self._failed_s[number] = time.perf_counter()
            told = f"{type(error).__name__}: {error}"
            self._emit(Fault(time.perf_counter(), f"loading variant {self._variants[number].name}", told))
            raise
        finally:
            with self._lock:
                self._loads.pop(number, None)
        expected_s = self._expected_s.get(number, took_s)
        self._expected_s[number] = expected_s + _WEIGHT * (took_s - expected_s)
        self._tell(ModelLoaded, number, expected_s, took_s)
        return pipeline

    def unload(self, number: int) -> Future[None]:
        """Take no more requests with a variant, let it finish, and end it."""
        with self._lock:
            pipeline, self._pipelines[number] = self._pipelines[number], None
            self._set_loaded()
        if pipeline is None or self._closed:
            done: Future[None] = Future()
            done.set_result(None)
            return done
        return self._worker.submit(self._unload, number, pipeline)

    def _unload(self, number: int, pipeline: Pipeline) -> None:
        begin_s = time.perf_counter()
        pipeline.close()
        self._tell(ModelEvicted, number, 0.0, time.perf_counter() - begin_s)

    def pipeline(self, number: int) -> Pipeline | None:
        """A variant's pipeline; None while it is not loaded."""
        return self._pipelines[number]

    def is_loading(self, number: int) -> bool:
        """Whether it is being loaded."""
        return number in self._loads

    def state(self, number: int) -> str:
        """``loaded``, ``loading`` or ``unloaded``."""
        if self._pipelines[number] is not None:
            return "loaded"
        return "loading" if number in self._loads else "unloaded"

    def has_failed(self, number: int) -> bool:
        """Whether it could not be loaded, not long ago."""
        failed_s = self._failed_s.get(number)
        return failed_s is not None and time.perf_counter() - failed_s < _AGAIN_S

    def drop_broken(self) -> None:
        """Unload the variants whose stages are all lost; they are loaded again by demand."""
        for number in self.loaded:
            pipeline = self._pipelines[number]
            try:
                if pipeline is not None:
                    pipeline.forecast()
            except OdinError as error:
                told = f"{type(error).__name__}: {error}"
                self._emit(Fault(time.perf_counter(), f"variant {self._variants[number].name}", told))
                self.unload(number)

    def left_s(self, number: int, load_s: float, now_s: float) -> float:
        """Seconds until a variant that is not loaded would serve, if it were asked for now; loads go one by one."""
        if self.has_failed(number):
            return math.inf
        ahead = list(self._loads.items())
        left_s = 0.0
        for other, (_, since_s) in ahead:
            own_s = max(0.0, self._expected_s.get(other, load_s) - (now_s - since_s))
            left_s += own_s
            if other == number:
                return left_s
        return left_s + self._expected_s.get(number, load_s)

    def close(self, *, drain: bool, timeout_s: float) -> None:
        """End all."""
        self._closed = True
        end_s = time.monotonic() + timeout_s
        self._worker.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            pipelines, self._pipelines = self._pipelines, [None] * len(self._pipelines)
            self._set_loaded()
        with contextlib.ExitStack() as last:
            for pipeline in pipelines:
                if pipeline is not None:
                    last.callback(_close, pipeline, drain, end_s)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _open(self, number: int) -> Pipeline:
        variant = self._variants[number]
        source = variant.load()
        stages = self._stages
        if self._starts_with_one and not isinstance(stages, str):  # the first ones of all are not on one device
            shift = number % len(stages)
            stages = [*stages[shift:], *stages[:shift]]
        options: dict[str, Any] = variant.options(source, stages)
        told = self._on_variant_event
        pipeline = Pipeline(
            source,
            name=f"{self._family}/{variant.name}",
            admission=NONE,  # the family itself refuses: odin.family.devices
            on_event=None if told is None else partial(told, variant.name),
            **options,
        )
        if self._starts_with_one and len(pipeline.devices) > 1:
            with contextlib.suppress(ValueError):  # its layers are where a plan has them
                pipeline.instances = 1
        return pipeline

    def _take(self, number: int, pipeline: Pipeline) -> None:
        with self._lock:
            self._pipelines[number] = pipeline
            self._set_loaded()

    def _set_loaded(self) -> None:
        self.loaded = frozenset(number for number, one in enumerate(self._pipelines) if one is not None)

    def _tell(self, kind: type[ModelLoaded | ModelEvicted], number: int, expected_s: float, took_s: float) -> None:
        loaded = self.loaded
        nbytes = int(sum(self._memory_mib[one] for one in loaded) * 2**20)
        name = self._variants[number].name
        self._emit(kind(time.perf_counter(), name, 0, expected_s, took_s, len(loaded), nbytes))


def _close(pipeline: Pipeline, drain: bool, end_s: float) -> None:
    pipeline.close(drain=drain, timeout_s=max(0.0, end_s - time.monotonic()))
