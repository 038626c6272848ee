"""Counts and times of a model's requests, for Triton's statistics and for the metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from odin.monitor.timing import RequestTimeline
from odin.server.failures import FailureKind

__all__ = ["OfSize", "Statistics", "Totals"]


class OfSize(NamedTuple):
    """Micro-batches of some number of samples: how many, and their seconds in layers."""

    executions: int = 0
    compute_s: float = 0.0


class Totals(NamedTuple):
    """Sums since a model was loaded.

    Attributes
    ----------
    succeeded, samples, failed_by_kind
        Requests that were answered; samples in them; requests that were not, by kind.
    request_s, input_s, compute_s, output_s
        Seconds of answered requests: in all; until they were in the pipeline's hands; in it, waiting included; after.
    failed_s
        Seconds of requests that failed.
    last_unix_s
        When the last one was answered, in seconds since 1970; 0: none was.
    batches
        Micro-batches that answered requests, by their samples; one that answered several counts once.
    """

    succeeded: int = 0
    samples: int = 0
    failed_by_kind: dict[FailureKind, int] = {}  # noqa: RUF012 - never changed: replaced
    request_s: float = 0.0
    input_s: float = 0.0
    compute_s: float = 0.0
    output_s: float = 0.0
    failed_s: float = 0.0
    last_unix_s: float = 0.0
    batches: Mapping[int, OfSize] = {}

    @property
    def failed(self) -> int:
        """Requests that were not answered."""
        return sum(self.failed_by_kind.values())

    @property
    def executed(self) -> int:
        """Micro-batches that answered requests; one for each request where that is not known."""
        return sum(of_size.executions for of_size in self.batches.values()) or self.succeeded


class Statistics:
    """Adds up what becomes of a model's requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def add(
        self,
        *,
        samples: int,
        input_s: float,
        compute_s: float,
        output_s: float,
        timelines: Sequence[RequestTimeline] = (),
    ) -> None:
        """Count a request that was answered, by these micro-batches."""
        with self._lock:
            now = self._totals
            batches = dict(now.batches)
            for timeline in timelines:
                if timeline.requests:  # else it is counted with another request
                    size = max(1, timeline.samples)
                    known = batches.get(size, OfSize())
                    layers_s = sum(timing.wall_s for timing in timeline.stages)
                    batches[size] = OfSize(known.executions + 1, known.compute_s + layers_s)
            self._totals = now._replace(
                succeeded=now.succeeded + 1,
                samples=now.samples + samples,
                request_s=now.request_s + input_s + compute_s + output_s,
                input_s=now.input_s + input_s,
                compute_s=now.compute_s + compute_s,
                output_s=now.output_s + output_s,
                last_unix_s=time.time(),
                batches=batches,
            )

    def add_failure(self, kind: FailureKind, *, request_s: float) -> None:
        """Count a request that was not."""
        with self._lock:
            now = self._totals
            by_kind = {**now.failed_by_kind, kind: now.failed_by_kind.get(kind, 0) + 1}
            self._totals = now._replace(failed_by_kind=by_kind, failed_s=now.failed_s + request_s)

    def totals(self) -> Totals:
        """Return the sums of this moment."""
        return self._totals
