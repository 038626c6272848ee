"""The state of a pipeline at a moment, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.window import StageStatistics
from partitioner.plan import Plan

__all__ = ["PipelineSnapshot", "StageSnapshot"]


@dataclass(frozen=True)
class StageSnapshot:
    """One stage: where it is, which layers it runs, and medians over the last requests.

    Attributes
    ----------
    first, last
        Half-open range of layers under the current plan.
    statistics
        Medians in seconds and the busy share; see :class:`monitor.window.StageStatistics`.
    """

    index: int
    device: str
    node_id: str
    pid: int
    first: int
    last: int
    statistics: StageStatistics


@dataclass(frozen=True)
class PipelineSnapshot:
    """The whole pipeline.

    Attributes
    ----------
    completed, failed
        Requests since the start, micro-batches each counted.
    in_flight
        Requests submitted and not finished.
    throughput_hz
        Requests per second over the last requests; ``nan`` before two are done.
    latency_p50_s, latency_p95_s, latency_p99_s
        From submission to completion, over the last requests.
    """

    model: str
    plan: Plan
    epoch: int
    completed: int
    failed: int
    in_flight: int
    max_in_flight: int
    throughput_hz: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    stages: tuple[StageSnapshot, ...]
