"""Requests as OpenTelemetry's spans, made when they are over.

::

    infer MODEL          |---------------------------------------------|   from receipt to answer
      wait for a place     |--|
      stage 0 queue            |--|
      stage 0 compute             |------------|
      stage 1 queue                             |---|
      stage 1 compute                                |----------|

Stages measure durations on clocks of their own. Each one's queue and compute have exactly these lengths; what is left
of the time from sending to the answer, the hand-overs, is spread evenly between them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from odin.monitor.timing import RequestTimeline, StageTiming
from odin.server.answered import Answered
from odin.server.failures import FailureKind
from odin.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

__all__ = ["Part", "Traces", "parts_of", "wants_traces"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NS = 1e9
_CALLERS_FAULT = frozenset(
    kind for kind in FailureKind if kind.http_status < 500 and kind not in (FailureKind.BUSY, FailureKind.REFUSED)
)


def wants_traces() -> bool:
    """Whether OpenTelemetry's environment variables say where traces go, and do not turn them off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(os.environ.get(name) for name in _ENDPOINTS)


class Part(NamedTuple):
    """A stage's queue or compute in a request; seconds since the request was received."""

    kind: str
    timing: StageTiming
    begin_s: float
    end_s: float


def parts_of(timeline: RequestTimeline, sent_s: float) -> Iterator[Part]:
    """What each stage did of a micro-batch that was sent ``sent_s`` after its request had been received.

    Examples
    --------
    >>> from odin.testing import timeline
    >>> made = timeline(7, 1000.0, (0.3, 0.2), plan=(2, 1), latency_s=0.65, queue_s=0.03)
    >>> [(part.kind, part.timing.stage, round(part.begin_s, 3), round(part.end_s, 3)) for part in parts_of(made, 0.1)]
    [('queue', 0, 0.13, 0.16), ('compute', 0, 0.16, 0.46), ('queue', 1, 0.49, 0.52), ('compute', 1, 0.52, 0.72)]
    """
    ran = sorted((timing for timing in timeline.stages if timing.first < timing.last), key=lambda timing: timing.first)
    measured_s = sum(timing.queue_s + timing.wall_s for timing in ran)
    hop_s = max(0.0, timeline.latency_s - measured_s) / (len(ran) + 1)
    at_s = sent_s
    for timing in ran:
        at_s += hop_s
        yield Part("queue", timing, at_s, at_s + timing.queue_s)
        at_s += timing.queue_s
        yield Part("compute", timing, at_s, at_s + timing.wall_s)
        at_s += timing.wall_s


class Traces:
    """Makes spans of requests; to be called in a thread of its own.

    Imports OpenTelemetry's SDK, which reads its own environment variables: sampling, the service's name, headers.

    Parameters
    ----------
    endpoint
        Where traces go by OTLP over HTTP, such as ``http://localhost:4318/v1/traces``; None: as the environment says.
    exporter
        Where they go instead, for tests.

    Raises
    ------
    ValueError
        If what is needed is not installed.
    """

    def __init__(self, endpoint: str | None = None, *, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError as error:
            raise ValueError(
                f"traces need what is not installed ({error.name}): pip install 'odin-pipeline[serve]'"
            ) from None
        own_name = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "odin"}
        self._provider = TracerProvider(resource=Resource.create(own_name), shutdown_on_exit=False)
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        else:
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("odin.server", __version__)

    def __call__(self, answered: Answered) -> None:
        """Make a request's spans, if it is one of those that are sampled."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        request, failure = answered.request, answered.failure
        begin_unix_s = answered.ended_unix_s - answered.latency_s
        whole = self._tracer.start_span(
            f"infer {request.model}" if answered.devices else "infer",  # not by names that clients make up
            TraceContextTextMapPropagator().extract({"traceparent": request.traceparent}),
            kind=SpanKind.SERVER,
            start_time=_ns(begin_unix_s),
        )
        if whole.is_recording():
            caller = request.caller
            whole.set_attributes(
                {
                    "odin.model": request.model,
                    "odin.version": answered.version,
                    "odin.request_id": request.id,
                    "odin.outcome": answered.outcome,
                    "network.protocol.name": caller.protocol,
                    "client.address": caller.address,
                    "odin.request_nbytes": caller.request_nbytes,
                    "odin.response_nbytes": answered.response_nbytes,
                }
            )
            if failure is not None and failure not in _CALLERS_FAULT:
                whole.set_status(Status(StatusCode.ERROR, answered.message))
            self._add_children(whole, answered, begin_unix_s)
        whole.end(_ns(answered.ended_unix_s))

    def _add_children(self, whole: Span, answered: Answered, begin_unix_s: float) -> None:
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(whole)
        first_s = min((timeline.submitted_s for timeline in answered.timelines), default=0.0)
        if answered.timelines:
            wait = self._tracer.start_span("wait for a place", inside, start_time=_ns(begin_unix_s))
            wait.end(_ns(begin_unix_s + answered.waiting_s))
        for number, timeline in enumerate(answered.timelines):
            for part in parts_of(timeline, answered.waiting_s + timeline.submitted_s - first_s):
                timing = part.timing
                span = self._tracer.start_span(
                    f"stage {timing.stage} {part.kind}",
                    inside,
                    start_time=_ns(begin_unix_s + part.begin_s),
                    attributes={
                        "odin.stage": timing.stage,
                        "odin.device": _device(answered.devices, timing.stage),
                        "odin.micro_batch": number,
                        "odin.epoch": timeline.epoch,
                    },
                )
                if part.kind == "compute":
                    span.set_attributes(
                        {
                            "odin.layers": f"{timing.first}-{timing.last}",
                            "odin.cpu_s": timing.cpu_s,
                            "odin.run_queue_delay_s": timing.run_delay_s,
                        }
                    )
                span.end(_ns(begin_unix_s + part.end_s))

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is left, for so many seconds at most: a collector that does not answer is asked again and again."""
        ending = threading.Thread(target=self._provider.shutdown, name="odin-traces-end", daemon=True)
        ending.start()
        ending.join(timeout_s)


def _device(devices: Sequence[str], stage: int) -> str:
    return devices[stage] if stage < len(devices) else ""


def _ns(unix_s: float) -> int:
    return int(unix_s * _NS)
