"""Metrics, traces, the access log and the page of models whose stages are real."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fake_serving import served_http
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families as parse

from odin.server.config import Limits, parse_model
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.messages import Caller, InferRequest, Tensor
from odin.server.operations import Operations
from odin.server.repository import Repository

pytestmark = pytest.mark.ray

TRACE = "0af7651916cd43dd8448eb211c80319c"


class _Collector(BaseHTTPRequestHandler):
    """Takes spans by OTLP."""

    spans: list = []  # noqa: RUF012 - the one test's

    def do_POST(self):
        told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in told.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def collector():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        server.shutdown()
        thread.join()


def test_what_a_server_tells_of_its_requests(two_cores, tmp_path, collector):
    operations = Operations(access_log=str(tmp_path / "log"), traces=collector)
    model = {"source": "mobilenet_v2", "image_size": 64, "stages": two_cores, "policy": "static"}
    config = parse_model(model, name="m", folder=Path(), where="test")

    async def live():
        repository = Repository(configs=[config], on_event=operations.on_event)
        dataplane = DataPlane(repository, Limits())
        routes = operations.routes(dataplane)
        try:
            await dataplane.load("m")
            image = np.zeros((3, 3, 64, 64), "f4")
            tensor = Tensor("input", DATATYPES["FP32"], image)
            caller = Caller("grpc", "10.0.0.1:5", image.nbytes)
            trace = f"00-{TRACE}-b7ad6b7169203331-01"
            await dataplane.infer(InferRequest("m", "", "7", {}, (tensor,), traceparent=trace, caller=caller))
            bad = tensor._replace(name="none")
            with pytest.raises(Exception, match="no input 'none'"):
                await dataplane.infer(InferRequest("m", "", "8", {}, (bad,), caller=caller))
            with served_http(routes) as (address, _):
                text = await asyncio.to_thread(_get, f"{address}/metrics")
                state = await asyncio.to_thread(_first_event, f"{address}/events")
        finally:
            await repository.close()
            operations.close()
        return text, state

    text, state = asyncio.run(live())
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }

    def value(name, **labels):
        return found[(name, *sorted({"model": "m", **labels}.items()))]

    assert value("odin_requests_total", outcome="answered") == value("odin_requests_total", outcome="invalid") == 1
    assert value("odin_samples_total") == 3
    for stage, device in enumerate(two_cores):
        assert value("odin_stage_compute_seconds_count", stage=str(stage), device=device) == 3
        assert value("odin_stage_compute_seconds_sum", stage=str(stage), device=device) > 0
    (view,) = (one["view"] for one in state["models"])
    assert [stage["device"] for stage in view["stages"]] == two_cores
    answered, failed = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (answered["id"], answered["status"], failed["id"], failed["status"]) == ("7", "OK", "8", "INVALID_ARGUMENT")
    assert [len(batch) for batch in answered["stages"]] == [2, 2, 2]
    whole_s = answered["waiting_s"] + sum(stage["queue_s"] + stage["compute_s"] for stage in answered["stages"][0])
    assert 0 < whole_s <= answered["latency_s"]
    assert answered["response_nbytes"] == 3 * 1000 * 4
    spans = {span.span_id: span for span in _Collector.spans}
    (whole,) = (span for span in spans.values() if span.trace_id.hex() == TRACE and span.name == "infer m")
    parts = [span for span in spans.values() if span.parent_span_id == whole.span_id]
    assert len(parts) == 1 + 3 * 4  # a wait, and queue and compute on two stages of three micro-batches
    for part in parts:
        assert whole.start_time_unix_nano - 1000 <= part.start_time_unix_nano
        assert part.end_time_unix_nano <= whole.end_time_unix_nano + 1000


def _get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def _first_event(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.readline()[6:])
