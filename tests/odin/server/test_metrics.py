"""What Prometheus is told."""

from __future__ import annotations

import asyncio
import math
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fake_serving import fake_dataplane, serve_fake, served_http
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from synthetic_run import START_S, Story, interference, run_started

from odin.monitor.events import KnobTurned, PlanChanged, SlowdownChanged, StageBack, StageLost
from odin.server.bucket_counts import BucketCounts
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, Tensor
from odin.server.metrics import Metrics, metrics_route

REQUEST = InferRequest("m", "", "", {}, (Tensor("x", DATATYPES["FP32"], np.zeros((2, 3), "f4")),))
PAGE = Path(__file__).parents[3] / "docs" / "serving-metrics.md"


def watched(stories):
    dataplane, metrics = fake_dataplane(stories), Metrics()
    metrics.watch(dataplane)
    return dataplane, metrics


def ask(dataplane, *requests):
    async def all_of_them():
        return await asyncio.gather(*(dataplane.infer(request) for request in requests), return_exceptions=True)

    return asyncio.run(all_of_them())


def samples(metrics):
    """Values by name and labels, of all but the process's."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def disturbed():
    story = Story(run_started((9, 9)))
    story.serve(40)
    story.slowdown[1] = 2.0
    story.tell(SlowdownChanged, 1, 40, 6, 2.0, "onset")
    story.serve(20)
    return story.events


def test_requests_are_counted_by_outcome():
    dataplane, metrics = watched({"m": [run_started()]})
    ask(dataplane, REQUEST, REQUEST)
    dataplane.repository.served("m").fails = RequestError(FailureKind.REFUSED, "late")
    ask(dataplane, REQUEST)
    now = samples(metrics)
    assert now["odin_requests_total", "m", "answered"] == 2
    assert now["odin_requests_total", "m", "refused"] == 1
    assert now["odin_samples_total", "m"] == 4
    assert now["odin_request_seconds_count", "m"] == 2  # refusals have no latency
    assert now["odin_request_waiting_seconds_sum", "m"] == pytest.approx(0.1)
    assert now["odin_model_info", "m", "1", "torch", "relay"] == 1
    assert now["odin_requests_under_way", "m"] == 0
    assert now["odin_ready",] == 1


def test_stages_have_their_times_and_devices():
    dataplane, metrics = watched({"m": [run_started()]})
    ask(dataplane, REQUEST, REQUEST)
    dataplane.repository.served("m").plan = (18, 0)  # passes stage 1 by
    ask(dataplane, REQUEST)
    now = samples(metrics)
    assert [now["odin_stage_compute_seconds_count", "m", str(stage), f"cpu:{stage}"] for stage in (0, 1)] == [3, 2]
    assert now["odin_stage_compute_seconds_sum", "m", "1", "cpu:1"] == pytest.approx(0.1)
    assert now["odin_stage_queue_seconds_bucket", "m", "0", "cpu:0", "0.005"] == 3
    assert now["odin_stage_queue_seconds_bucket", "m", "0", "cpu:0", "0.002"] == 0


def test_what_odin_top_shows_is_there_too():
    events = interference(end=False)
    dataplane, metrics = watched({"m": events[: next(i for i, e in enumerate(events) if isinstance(e, PlanChanged))]})
    now = samples(metrics)
    assert now["odin_stage_slowdown_ratio", "m", "1", "cpu:1"] == pytest.approx(2.1, rel=0.05)
    assert now["odin_stage_interference", "m", "1", "cpu:1", "CPU share"] == 1
    assert ("odin_stage_interference", "m", "0", "cpu:0", "CPU share") not in now
    states = {key[4]: value for key, value in now.items() if key[:3] == ("odin_stage_state", "m", "1")}
    assert states == dict.fromkeys(("quiet", "bypassed", "empty", "hung", "lost"), 0.0) | {"disturbed": 1.0}
    assert now["odin_stage_layers", "m", "1", "cpu:1"] == 9
    view = dataplane.repository.served("m").view()
    assert now["odin_throughput_requests_per_second", "m"] == view.throughput_hz
    assert now["odin_throughput_bound_requests_per_second", "m"] == view.fluid_bound_hz
    assert now["odin_throughput_samples_per_second", "m"] == view.samples_hz == view.throughput_hz
    assert now["odin_micro_batches_in_flight", "m"] == 3


def test_two_causes_are_two_series():
    events = interference(end=False)
    at = next(i for i, e in enumerate(events) if isinstance(e, PlanChanged))
    cause = type(events[at - 1])(events[at - 1].at_s, 1, "CPU share + memory", (), "")
    _, metrics = watched({"m": [*events[: at - 1], cause]})
    found = {key[4] for key in samples(metrics) if key[0] == "odin_stage_interference"}
    assert found == {"CPU share", "memory"}


def test_moves_losses_and_returns_are_counted():
    _, metrics = watched({"m": [run_started()]})
    for event in (
        PlanChanged(1.0, 5, 1, (9, 9), (12, 6), "move", "", math.nan, 0.0),
        StageLost(2.0, 1, "killed", False, 3),
        StageLost(3.0, 1, "silent", True, 0),
        StageBack(4.0, 1, 77, 2.0, True),
    ):
        metrics.on_event("m", event)
    now = samples(metrics)
    assert now["odin_plan_changes_total", "m"] == 1
    assert (now["odin_stage_losses_total", "m", "lost"], now["odin_stage_losses_total", "m", "hung"]) == (1, 1)
    assert (now["odin_stage_returns_total", "m", "replaced"], now["odin_stage_returns_total", "m", "answers"]) == (1, 0)


def test_a_knob_that_is_turned_is_told():
    turned = [
        KnobTurned(START_S + 1, "batch", 8, 8, "p95", math.nan, 0.25, 0),
        KnobTurned(START_S + 2, "batch", 8, 4, "p95", 0.3, 0.25, 40),
    ]
    _, metrics = watched({"m": [run_started(), *turned], "other": [run_started()]})
    now = samples(metrics)
    assert now["odin_tuned_knob", "m", "batch"] == 4
    assert now["odin_latency_limit_seconds", "m"] == 0.25
    assert now["odin_knob_turns_total", "m", "batch"] == 1
    assert ("odin_latency_limit_seconds", "other") not in now


def test_names_that_clients_make_up_become_one_series():
    dataplane, metrics = watched({"m": [run_started()]})
    before = len(samples(metrics))
    ask(dataplane, *(REQUEST._replace(model=f"made-up-{number}") for number in range(100)))
    now = samples(metrics)
    assert now["odin_requests_total", "", "not_found"] == 100
    assert len(now) == before + 1


def test_an_unloaded_model_takes_its_series_along():
    dataplane, metrics = watched({"m": disturbed(), "other": [run_started()]})
    ask(dataplane, REQUEST, REQUEST._replace(model="other"))
    assert any(key[1:2] == ("m",) for key in samples(metrics))
    asyncio.run(dataplane.unload("m"))
    metrics.on_event("m", StageLost(2.0, 1, "it ends", False, 0))  # its stages' end may be told late
    assert not any(key[1:2] == ("m",) for key in samples(metrics))
    assert samples(metrics)["odin_requests_total", "other", "answered"] == 1
    serve_fake(dataplane.repository, "m", [run_started()])
    assert samples(metrics)["odin_request_seconds_count", "m"] == 0


def test_what_is_no_number_never_enters():
    dataplane, metrics = watched({"m": [run_started()]})
    assert ("odin_throughput_requests_per_second", "m") not in samples(metrics)  # nan: nothing is known yet
    found = []
    dataplane.observers.add(found.append)
    ask(dataplane, REQUEST)
    metrics.observe(found[0]._replace(latency_s=math.nan))
    line = found[0].timelines[0]
    spoilt = line.stages[0]._replace(wall_s=math.nan, queue_s=math.inf)
    metrics.observe(found[0]._replace(timelines=(line._replace(stages=(spoilt,)),)))
    now = samples(metrics)
    assert not any(math.isnan(value) for value in now.values())
    assert now["odin_request_seconds_count", "m"] == 2
    assert now["odin_stage_compute_seconds_count", "m", "0", "cpu:0"] == 2


def test_bucket_counts_are_those_of_prometheus():
    from prometheus_client import Histogram

    bounds = (0.1, 0.5, 1.0)
    ours, theirs = BucketCounts(bounds), Histogram("h", "", buckets=bounds, registry=None)
    for value in (0.05, 0.1, 0.3, 0.5, 0.7, 1.0, 2.0):
        ours.add(value)
        theirs.observe(value)
    (family,) = theirs.collect()
    wanted = [(s.labels["le"], s.value) for s in family.samples if s.name == "h_bucket"]
    assert ours.cumulative == wanted
    assert ours.total == pytest.approx(next(s.value for s in family.samples if s.name == "h_sum"))


@pytest.mark.parametrize("kind", ["text", "openmetrics"])
def test_prometheus_can_read_it(kind):
    dataplane, metrics = watched({"m": disturbed(), "b": [run_started((6, 6, 6))]})
    ask(dataplane, REQUEST, REQUEST._replace(model="b"))
    accept = {"text": "*/*", "openmetrics": "application/openmetrics-text; version=1.0.0"}[kind]
    with served_http([metrics_route(metrics)]) as (address, _):
        question = urllib.request.Request(f"{address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(question, timeout=30) as answer:
            text, media_type = answer.read().decode(), answer.headers["content-type"]
    read = {"text": parse, "openmetrics": parse_openmetrics}[kind]
    families = {family.name: family for family in read(text)}
    assert media_type.startswith({"text": "text/plain", "openmetrics": "application/openmetrics-text"}[kind])
    assert {sample.labels["model"] for sample in families["odin_request_seconds"].samples} == {"m", "b"}
    assert families["process_resident_memory_bytes"].samples[0].value > 0


def test_the_documentation_has_every_metric_and_no_other():
    _, metrics = watched({"m": [run_started()]})
    described = {}
    for family in metrics.describe():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        described[name] = (family.type, labels)
    rows = re.findall(r"^\| `(odin_\w+)` \| (\w+) \| ([^|]*?) ?\|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert {name: (kind, labels) for name, kind, labels in rows} == described
