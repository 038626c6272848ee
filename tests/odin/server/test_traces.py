"""Requests as OpenTelemetry's spans."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from odin.server.answered import Answered
from odin.server.failures import FailureKind
from odin.server.messages import Caller, InferRequest
from odin.server.traces import Traces, wants_traces
from odin.testing import timeline

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
LINE = timeline(5, 1000.0, (0.3, 0.2), plan=(2, 1), latency_s=0.65, queue_s=0.03)
DONE = Answered(
    InferRequest("m", "", "7", {}, (), traceparent=f"00-{TRACE}-{PARENT}-01", caller=Caller("grpc", "10.0.0.1:5", 600)),
    "3",
    None,
    "",
    1.7e9,
    0.8,
    0.1,
    (LINE,),
    ("cpu:0", "cpu:1"),
)


def spans_of(*answered):
    exporter = InMemorySpanExporter()
    traces = Traces(exporter=exporter)
    for one in answered:
        traces(one)
    traces.close()
    return exporter.get_finished_spans()


def test_a_request_is_a_span_with_its_stages_below_it():
    *parts, whole = spans_of(DONE)
    assert (whole.name, whole.kind.name, whole.context.trace_id) == ("infer m", "SERVER", int(TRACE, 16))
    assert whole.parent.span_id == int(PARENT, 16)
    begin_ns = whole.start_time
    assert whole.end_time - begin_ns == pytest.approx(0.8e9, abs=1e3)
    told = [(span.name, (span.start_time - begin_ns) / 1e9, (span.end_time - begin_ns) / 1e9) for span in parts]
    wanted = [
        ("wait for a place", 0.0, 0.1),
        ("stage 0 queue", 0.13, 0.16),
        ("stage 0 compute", 0.16, 0.46),
        ("stage 1 queue", 0.49, 0.52),
        ("stage 1 compute", 0.52, 0.72),
    ]
    assert [name for name, *_ in told] == [name for name, *_ in wanted]
    for (_, *times), (_, *expected) in zip(told, wanted, strict=True):
        assert times == pytest.approx(expected, abs=1e-5)
    assert all(span.parent.span_id == whole.context.span_id for span in parts)
    assert parts[4].attributes["odin.layers"] == "2-3"
    assert parts[4].attributes["odin.device"] == "cpu:1"
    assert parts[4].attributes["odin.run_queue_delay_s"] == 0.0
    assert whole.attributes["odin.outcome"] == "answered"


def test_stages_that_a_micro_batch_passed_by_have_no_span():
    lines = (LINE, timeline(6, 1000.2, (0.6, 0.0), plan=(3, 0), latency_s=0.65))
    names = [(span.name, span.attributes.get("odin.micro_batch")) for span in spans_of(DONE._replace(timelines=lines))]
    assert names[5:] == [("stage 0 queue", 1), ("stage 0 compute", 1), ("infer m", None)]


def test_stages_that_say_they_took_longer_than_the_whole_still_make_spans():
    *_, last, _whole = spans_of(DONE._replace(timelines=(LINE._replace(completed_s=LINE.submitted_s + 0.1),)))
    assert last.name == "stage 1 compute"
    assert (last.end_time - last.start_time) / 1e9 == pytest.approx(0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.INTERNAL, StatusCode.ERROR),
        (FailureKind.REFUSED, StatusCode.ERROR),
        (FailureKind.INVALID, StatusCode.UNSET),
    ],
)
def test_only_what_is_the_servers_is_an_error(kind, status):
    (span,) = spans_of(DONE._replace(failure=kind, message="why", timelines=()))
    assert span.status.status_code is status


def test_names_that_clients_make_up_are_no_spans_names():
    (span,) = spans_of(DONE._replace(failure=FailureKind.NOT_FOUND, timelines=(), devices=()))
    assert span.name == "infer"


@pytest.mark.parametrize("traceparent", ["", "rubbish", "00-0-0-01", "00-" + "g" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_valid_parent_a_trace_begins_here(traceparent):
    *_, whole = spans_of(DONE._replace(request=DONE.request._replace(traceparent=traceparent)))
    assert whole.parent is None


def test_what_the_caller_does_not_sample_is_not_made():
    unsampled = DONE.request._replace(traceparent=f"00-{TRACE}-{PARENT}-00")
    assert spans_of(DONE._replace(request=unsampled)) == ()


def test_the_end_does_not_wait_for_a_collector_that_does_not_answer():
    goes_on = threading.Event()

    class Hangs(InMemorySpanExporter):
        def shutdown(self):
            goes_on.wait(60)

    traces = Traces(exporter=Hangs())
    traces(DONE)
    traces.close(timeout_s=0.01)  # returns
    goes_on.set()


def test_the_environment_decides(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED",
                 "OTEL_TRACES_EXPORTER"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    assert not wants_traces()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert wants_traces()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not wants_traces()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wants_traces()
