"""A live run simulated: does the simulator come to the throughput and the latency that were measured?

What is true is taken from the run itself, but for what is to be predicted: how requests queue, what the detector sees,
what the policy decides and when that is felt. From the run are each layer's time while nothing is injected, what each
load does to each stage (those beside it included, with which it shares caches), and the noise: each request has on each
stage the factor that it had live, whatever layers are there now. When loads begin and end is the run's, too.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.policies.base import Setting
from odin.partitioner.policies.registry import make_policy
from odin.partitioner.relay import Windows
from odin.partitioner.transfer import DEFAULT_HOP_S
from odin_lab.report.results import Validation
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.interference import Event, Interference, scenario_text
from odin_lab.simulator.liverun import LiveRun, LoadSpan, read_live_run
from odin_lab.simulator.noise import ReplayedNoise
from odin_lab.simulator.queueing import Line
from odin_lab.simulator.run import PREPARE_S, Run, simulate
from odin_lab.simulator.world import World
from odin_lab.timings import TimingsError, TimingTable, load_timings

__all__ = ["Twin", "replay", "simulate_like", "twin_of", "validate"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_ENOUGH = 5
"""Requests from which a median is taken."""


class Twin(NamedTuple):
    """What a live run is simulated with."""

    world: World
    told: Setting
    interference: Interference


def validate(path: str | os.PathLike[str], *, table: TimingTable | None = None, detector: str = "cusum") -> Validation:
    """Simulate the live run of an event log.

    Parameters
    ----------
    path
        The log, as ``odin run --log`` and ``odin bench live`` write it. Only what comes before the first change of
        policy is used.
    table
        Take what loads do from this table, instead of from the run.
    detector
        The detector that the run had.

    Raises
    ------
    ValueError
        If the log cannot be read or does not tell what is needed.
    """
    live = read_live_run(path)
    try:
        run = simulate_like(live, table=table, detector=detector)
    except ValueError as error:  # such as a policy that is no more
        raise ValueError(f"{path} cannot be simulated: {error}") from error
    name = f"{live.started.model}, {len(live.started.stages)} stages, {len(live.finished_s)} requests"
    return Validation(
        f"{name}, {len(live.loads)} loads",
        live.started.policy,
        live.throughput_hz,
        run.throughput_hz,
        _p99_s(live.latency_s),
        _p99_s(run.finished_s - run.submitted_s),
    )


def simulate_like(live: LiveRun, *, table: TimingTable | None = None, detector: str = "cusum") -> Run:
    """Simulate a live run; nothing in it is drawn at random."""
    twin = twin_of(live, table=table)
    arrivals = Arrivals()
    if not live.is_closed_loop:
        arrivals = Arrivals("trace", recorded_s=tuple(live.submitted_s.tolist()))
    return simulate(
        twin.world,
        make_policy(live.started.policy),
        requests=len(live.finished_s),
        interference=twin.interference,
        plan=live.plan,
        arrivals=arrivals,
        in_flight=live.in_flight,
        detector=detector,
        prepare_s=float(np.median(live.prepare_s)) if len(live.prepare_s) else PREPARE_S,
        truth="hidden",
        told=twin.told,
    )


def replay(live: LiveRun) -> tuple[float, float]:
    """Let the run's requests, with the times that stages took for them, pass the simulator's line of stages.

    Returns
    -------
    (float, float)
        Throughput, requests per second, and 99th percentile of latency, seconds. Against the live run's this shows how
        well queueing alone is modelled.

    Raises
    ------
    ValueError
        If requests were handed over within windows, not by a plan: then it is not a line that they pass in order.
    """
    if live.started.windows:
        raise ValueError(f"the run had windows {live.started.windows}; replay one whose layers move by plans")
    requests, stages = live.stage_s.shape
    line, allowed = Line(stages), live.started.max_in_flight
    send_s, receive_s = _transfers_s(live)
    line.load(live.stage_s, np.full(stages, receive_s), np.full(stages, send_s))
    entered_s, left_s = np.empty(requests), np.empty(requests)
    for request in range(requests):
        entered_s[request] = left_s[request - allowed] if request >= allowed else 0.0
        if not live.is_closed_loop:
            entered_s[request] = max(entered_s[request], live.submitted_s[request])
        left_s[request] = line.step(request, entered_s[request] + send_s)
    return requests / float(left_s[-1]), _p99_s(left_s - entered_s)


def twin_of(live: LiveRun, *, table: TimingTable | None = None) -> Twin:
    """What is true of a live run, what its policy was told, and what disturbed it.

    Raises
    ------
    ValueError
        If no stage was ever undisturbed, or the table does not fit.
    """
    stages, layers = len(live.started.stages), len(live.started.layers)
    if table is not None and table.layer_count != layers:
        raise ValueError(f"the table has {table.layer_count} layers, the run {layers}; record the run's model")
    told_s = live.share[:, None] * np.array([stage.baseline_s for stage in live.started.stages])
    spans, conditions, texts = _conditions(live)
    segments = _segments(live, texts)
    baseline_s = np.array(
        [_typical_s(live, stage, conditions[:, stage] == 0, told_s[stage]) for stage in range(stages)]
    )
    slowdown, events = {}, []
    effect = np.ones((stages, len(texts), layers))
    for stage in range(stages):
        for number in range(1, len(texts)):
            if table is None:
                own_s = _typical_s(live, stage, conditions[:, stage] == number, baseline_s[stage])
                effect[stage, number] = own_s / baseline_s[stage]
            else:
                effect[stage, number] = _effect_in_table(table, [span for span in spans[number] if span.stage == stage])
            slowdown[f"{texts[number]} seen by stage {stage}"] = effect[stage, number]
    for start_s, end_s, number in segments:
        if number > 0:
            events += [
                Event(stage, f"{texts[number]} seen by stage {stage}", start_s, end_s) for stage in range(stages)
            ]
    send_s, receive_s = _transfers_s(live)
    world = World.of(
        baseline_s,
        send_s=np.full(layers + 1, send_s),
        receive_s=np.full(layers + 1, receive_s),
        intensity=_intensity(live),
        slowdown=slowdown,
        noise=ReplayedNoise(_noise(live, baseline_s[:, None] * effect, segments)),
    )
    reach = Windows.parse(live.started.windows) if live.started.windows else None
    told = world.setting(live.plan)._replace(baseline_s=told_s, reach=reach)
    return Twin(world, told, Interference(tuple(events), "seconds"))


def _segments(live: LiveRun, texts: list[str]) -> list[tuple[float, float, int]]:
    """Spans of time with the same loads: start, end, and the number of their text."""
    edges = sorted({0.0, math.inf, *(span.start_s for span in live.loads), *(span.end_s for span in live.loads)})
    segments = []
    for start_s, end_s in itertools.pairwise(edges):
        text = _text([span for span in live.loads if span.start_s <= start_s < span.end_s])
        if text not in texts:
            texts.append(text)
        segments.append((start_s, end_s, texts.index(text)))
    return segments


def _conditions(live: LiveRun) -> tuple[list[list[LoadSpan]], IntArray, list[str]]:
    """Loads of each of the run's conditions, number 0 being none; the condition under which each stage computed on
    each request, -1 if it changed meanwhile, shape (requests, stages); and the conditions' texts.
    """
    texts = [""]
    segments = _segments(live, texts)
    edges_s = np.array([start_s for start_s, _, _ in segments])
    numbers = np.array([number for _, _, number in segments])
    first = np.searchsorted(edges_s, live.begin_s, side="right") - 1
    last = np.searchsorted(edges_s, live.begin_s + live.stage_s, side="right") - 1
    found = np.where(first == last, numbers[np.maximum(first, 0)], -1)
    spans: list[list[LoadSpan]] = [[] for _ in texts]
    for start_s, _, number in segments:
        spans[number] = [span for span in live.loads if span.start_s <= start_s < span.end_s]
    return spans, found, texts


def _text(spans: Sequence[LoadSpan]) -> str:
    return " + ".join(sorted(f"{span.load}*{span.intensity:g}" for span in spans))


def _typical_s(live: LiveRun, stage: int, rows: NDArray[np.bool_], expected_s: FloatArray) -> FloatArray:
    """Seconds of each layer on a stage in some of the requests; layers not seen there by the ratio of those that were.

    Medians, made to agree with the median of the stage's whole time.
    """
    first, last = live.cuts[:, stage], live.cuts[:, stage + 1]
    rows = rows & (last > first)
    if rows.sum() < _ENOUGH:
        return expected_s
    prefix_s = np.concatenate([[0.0], np.cumsum(expected_s)])
    typical_s = expected_s * np.median(live.even_s[rows, stage] / (prefix_s[last] - prefix_s[first])[rows])
    for layer in range(len(expected_s)):
        seen = rows & (first <= layer) & (layer < last) & np.isfinite(live.layer_s[:, layer])
        if seen.sum() >= _ENOUGH:
            typical_s[layer] = np.median(live.layer_s[seen, layer])
    noise = _residuals(live, stage, rows, typical_s)
    return np.asarray(typical_s * math.exp(float(np.median(noise))))


def _residuals(live: LiveRun, stage: int, rows: NDArray[np.bool_], typical_s: FloatArray) -> FloatArray:
    """Logarithms of the stage's time over what its layers take, in some of the requests."""
    first, last = live.cuts[:, stage], live.cuts[:, stage + 1]
    rows = rows & (last > first)
    prefix_s = np.concatenate([[0.0], np.cumsum(typical_s)])
    residuals: FloatArray = np.log(live.even_s[rows, stage] / (prefix_s[last] - prefix_s[first])[rows])
    return residuals


def _noise(live: LiveRun, true_s: FloatArray, segments: Sequence[tuple[float, float, int]]) -> FloatArray:
    """Time of each request on each stage over what its layers take, shape (requests, stages), given seconds of each
    layer by stage and condition, shape (stages, conditions, layers).

    Conditions may change meanwhile: what a stage does in each of them is the part of its layers that it takes there.
    A stage that had no layers has the noise of the request next to it.
    """
    requests, stages = live.stage_s.shape
    noise: FloatArray = np.ones((requests, stages))
    for stage in range(stages):
        first, last = live.cuts[:, stage], live.cuts[:, stage + 1]
        begin_s, end_s = live.begin_s[:, stage], live.begin_s[:, stage] + live.stage_s[:, stage]
        had = np.flatnonzero((last > first) & (end_s > begin_s))
        if not len(had):
            continue
        done: FloatArray = np.zeros(requests)
        for from_s, to_s, number in segments:
            prefix_s = np.concatenate([[0.0], np.cumsum(true_s[stage, number])])
            spent_s = np.maximum(np.minimum(end_s, to_s) - np.maximum(begin_s, from_s), 0.0)[had]
            done[had] += spent_s / (prefix_s[last] - prefix_s[first])[had]
        done[had] *= live.even_s[had, stage] / live.stage_s[had, stage]
        nearest = np.rint(np.interp(np.arange(requests), had, np.arange(len(had)))).astype(np.int64)
        noise[:, stage] = done[had[nearest]]
    return noise


def _effect_in_table(table: TimingTable, spans: Sequence[LoadSpan]) -> FloatArray:
    # Not at the top: loads are about processes, and the simulator of worlds needs none of them.
    from odin_lab.inject.load import Load

    table_world = World.from_timings(table, devices=1, noise="none")
    names = []
    for span in spans:
        load = Load.parse(span.load)
        names.append(scenario_text(load.kind, span.intensity, load.threads / load.on.threads))
    return table_world.effect(names)


def _transfers_s(live: LiveRun) -> tuple[float, float]:
    """Seconds to send: hand-overs that did not wait; and to receive: from when a stage is free and the request is
    there until it computes, on average. Under windows requests come in no order: half a hop.
    """
    send_s = float(np.nanpercentile(live.handed_s, 10))
    if live.started.windows:
        return send_s, DEFAULT_HOP_S / 2
    left_s = live.begin_s + live.stage_s + np.nan_to_num(live.handed_s)
    came_s = np.column_stack([live.submitted_s + send_s, left_s[:, :-1]])
    receive_s = live.begin_s[1:] - np.maximum(came_s[1:], left_s[:-1])
    return send_s, max(float(np.mean(receive_s)), 0.0)


def _intensity(live: LiveRun) -> FloatArray | None:
    """Operations per byte of the run's layers, which its log does not tell, from the shipped timings of its model."""
    try:
        table = load_timings(live.started.model)
    except TimingsError:
        return None
    return table.intensity if table.layers == live.started.layers else None


def _p99_s(latency_s: FloatArray) -> float:
    return float(np.percentile(latency_s, 99))
