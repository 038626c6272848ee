"""The metrics of models and their stages: names, help texts, labels, and what becomes samples of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from odin.monitor.timing import RequestTimeline, StageTiming
from odin.monitor.view.event_text import plan_text
from odin.monitor.view.pipeline_view import PipelineView, StageState, StageView
from odin.server.bucket_counts import BucketCounts
from odin.server.served import ServedModel

__all__ = ["ModelCounts", "PipelineFamilies", "RequestFamilies"]


def _bounds(powers: Sequence[int], parts: Sequence[str]) -> tuple[float, ...]:
    """1 to 10 in steps, for each power of ten, and a last 10."""
    return *(float(f"{part}e{power}") for power in powers for part in parts), float(f"1e{powers[-1] + 1}")


REQUEST_BOUNDS_S = _bounds(range(-3, 1), ("1", "1.5", "2", "3", "5", "7"))
STAGE_BOUNDS_S = _bounds(range(-4, 1), ("1", "2", "5"))
BATCH_BOUNDS = tuple(float(2**power) for power in range(9))
_STATES: tuple[str, ...] = get_args(StageState)


class ModelCounts:
    """What has been seen of one model."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.latency = BucketCounts(REQUEST_BOUNDS_S)
        self.waiting = BucketCounts(REQUEST_BOUNDS_S)
        self.queue: dict[int, BucketCounts] = {}
        self.compute: dict[int, BucketCounts] = {}
        self.batches = BucketCounts(BATCH_BOUNDS)
        self.plan_changes = self.samples = 0
        self.lost: Counter[str] = Counter()
        self.back: Counter[str] = Counter()

    def add_timeline(self, timeline: RequestTimeline) -> None:
        """Take in a micro-batch; nothing of one that is counted with another request that it answered."""
        if timeline.requests:
            self.batches.add(float(timeline.samples or 1))
            for timing in timeline.stages:
                self.add_timing(timing)

    def add_timing(self, timing: StageTiming) -> None:
        """Take in what a stage measured; nothing of one that the micro-batch has passed by."""
        if timing.first < timing.last:
            _of_stage(self.queue, timing.stage).add(timing.queue_s)
            _of_stage(self.compute, timing.stage).add(timing.wall_s)


def _of_stage(by_stage: dict[int, BucketCounts], stage: int) -> BucketCounts:
    found = by_stage.get(stage)
    if found is None:
        found = by_stage[stage] = BucketCounts(STAGE_BOUNDS_S)
    return found


class RequestFamilies:
    """Metrics of requests."""

    def __init__(self) -> None:
        model = ["model"]
        self.requests = CounterMetricFamily(
            "odin_requests",
            "Finished requests for inference; outcome is answered or the kind of failure.",
            labels=["model", "outcome"],
        )
        self.samples = CounterMetricFamily("odin_samples", "Samples (images) in answered requests.", labels=model)
        self.latency = HistogramMetricFamily(
            "odin_request_seconds", "Time from a request's receipt to its answer, of answered ones.", labels=model
        )
        self.waiting = HistogramMetricFamily(
            "odin_request_waiting_seconds", "Part of that time before the request was sent to the stages.", labels=model
        )
        self.under_way = GaugeMetricFamily(
            "odin_requests_under_way", "Requests of a model in progress, waiting ones included.", labels=model
        )
        self.info = GaugeMetricFamily(
            "odin_model_info", "1 for each model that serves.", labels=["model", "version", "engine", "policy"]
        )

    def add(self, name: str, counts: ModelCounts, served: ServedModel | None) -> None:
        """Add a model's samples; None: of requests for models that do not serve."""
        for outcome, count in sorted(counts.outcomes.items()):
            self.requests.add_metric([name, outcome], count)
        if served is None:
            return
        self.samples.add_metric([name], counts.samples)
        counts.latency.add_to(self.latency, [name])
        counts.waiting.add_to(self.waiting, [name])
        self.under_way.add_metric([name], served.under_way)
        pipeline = served.pipeline
        self.info.add_metric([name, served.config.version, pipeline.engine, pipeline.policy], 1)

    def families(self) -> list[Metric]:
        """All, with the samples that were added."""
        return [self.requests, self.samples, self.latency, self.waiting, self.under_way, self.info]


class PipelineFamilies:
    """Metrics of pipelines and their stages."""

    def __init__(self) -> None:
        model, stage = ["model"], ["model", "stage", "device"]
        self.in_flight = GaugeMetricFamily("odin_micro_batches_in_flight", "Micro-batches in the stages.", labels=model)
        self.throughput = GaugeMetricFamily(
            "odin_throughput_requests_per_second",
            "Requests per second while some are under way; parts of one that is larger than a micro-batch count each.",
            labels=model,
        )
        self.bound = GaugeMetricFamily(
            "odin_throughput_bound_requests_per_second",
            "Fluid bound: that throughput if work could be divided without granularity.",
            labels=model,
        )
        self.error = GaugeMetricFamily(
            "odin_prediction_error_seconds",
            "Actual minus predicted completion, recently: median and 99th percentile.",
            labels=["model", "quantile"],
        )
        self.plan_changes = CounterMetricFamily(
            "odin_plan_changes", "Times that layers or windows moved.", labels=model
        )
        self.lost = CounterMetricFamily(
            "odin_stage_losses", "Stages that were lost; how is lost or hung.", labels=["model", "how"]
        )
        self.back = CounterMetricFamily(
            "odin_stage_returns", "Stages that are back; how is replaced or answers.", labels=["model", "how"]
        )
        self.compute = HistogramMetricFamily(
            "odin_stage_compute_seconds", "Time in a stage's layers, per micro-batch.", labels=stage
        )
        self.queue = HistogramMetricFamily(
            "odin_stage_queue_seconds", "Time before a stage, per micro-batch.", labels=stage
        )
        self.layers = GaugeMetricFamily(
            "odin_stage_layers", "Layers that a stage runs; the mean under the relay.", labels=stage
        )
        self.slowdown = GaugeMetricFamily(
            "odin_stage_slowdown_ratio", "Time now / undisturbed time; absent where unknown.", labels=stage
        )
        self.busy = GaugeMetricFamily(
            "odin_stage_utilisation_ratio", "Part of the time that a stage computed, recently.", labels=stage
        )
        self.state = GaugeMetricFamily(
            "odin_stage_state", "1 for the state that a stage is in, else 0.", labels=[*stage, "state"]
        )
        self.cause = GaugeMetricFamily(
            "odin_stage_interference", "1 for each kind of interference on a stage.", labels=[*stage, "cause"]
        )
        self.batches = HistogramMetricFamily(
            "odin_micro_batch_samples", "Samples in a micro-batch that answered requests.", labels=model
        )
        self.knob = GaugeMetricFamily(
            "odin_tuned_knob",
            "Batch size or number of instances, where it is adjusted to a latency limit.",
            labels=["model", "knob"],
        )
        self.limit = GaugeMetricFamily("odin_latency_limit_seconds", "That latency limit.", labels=model)
        self.turns = CounterMetricFamily(
            "odin_knob_turns", "Times that batch size or instances were adjusted.", labels=["model", "knob"]
        )
        self.share = GaugeMetricFamily(
            "odin_share_ratio", "Largest part of its device's time that each stage uses.", labels=model
        )
        self.together = GaugeMetricFamily(
            "odin_planned_together_requests_per_second",
            "Rate that the last joint plan assumes for a tenant, one of the models planned together with this one.",
            labels=["model", "tenant", "plan"],
        )
        self.samples = GaugeMetricFamily(
            "odin_throughput_samples_per_second", "Samples in the requests of that throughput.", labels=model
        )

    def add(self, name: str, view: PipelineView, counts: ModelCounts) -> None:
        """Add a model's samples."""
        if view.in_flight is not None:
            self.in_flight.add_metric([name], view.in_flight)
        _add_known(self.throughput, [name], view.throughput_hz)
        _add_known(self.bound, [name], view.fluid_bound_hz)
        _add_known(self.samples, [name], view.samples_hz)
        _add_known(self.error, [name, "0.5"], view.off_p50_s)
        _add_known(self.error, [name, "0.99"], view.off_p99_s)
        counts.batches.add_to(self.batches, [name])
        if view.tuned is not None:
            self.knob.add_metric([name, view.tuned.knob], view.tuned.value)
            self.limit.add_metric([name], view.tuned.limit_s)
            self.turns.add_metric([name, view.tuned.knob], view.tuned.turns)
        self.plan_changes.add_metric([name], counts.plan_changes)
        for how in ("lost", "hung"):
            self.lost.add_metric([name, how], counts.lost[how])
        for how in ("replaced", "answers"):
            self.back.add_metric([name, how], counts.back[how])
        self.share.add_metric([name], view.share)
        for tenant in view.together:
            self.together.add_metric([name, tenant.name, plan_text(tenant.plan)], tenant.rate_hz)
        for stage in view.stages:
            self._add_stage([name, str(stage.stage), stage.device], stage, counts)

    def _add_stage(self, labels: Sequence[str], stage: StageView, counts: ModelCounts) -> None:
        _of_stage(counts.compute, stage.stage).add_to(self.compute, labels)
        _of_stage(counts.queue, stage.stage).add_to(self.queue, labels)
        self.layers.add_metric(labels, sum(stage.layer_shares) if stage.layer_shares else stage.last - stage.first)
        _add_known(self.slowdown, labels, stage.slowdown)
        _add_known(self.busy, labels, stage.utilisation)
        for state in _STATES:
            self.state.add_metric([*labels, state], float(state == stage.state))
        for cause in filter(None, stage.interference.split(" + ")):
            self.cause.add_metric([*labels, cause], 1)

    def families(self) -> list[Metric]:
        """All, with the samples that were added."""
        return list(vars(self).values())


def _add_known(family: GaugeMetricFamily, labels: Sequence[str], value: float) -> None:
    if not math.isnan(value):
        family.add_metric(labels, value)
