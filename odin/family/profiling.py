"""Measures a variant: opened twice, timed alone, and asked about labelled data."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch

from odin.family.profile import VariantProfile, line_through
from odin.models.labelled import Labelled
from odin.options import leading_size
from odin.pipeline import Pipeline

__all__ = ["profile_variant"]

_MANY = 4
"""Samples of the larger requests that are timed; more if a micro-batch has more."""
_WARM, _TIMED, _BUDGET_S = 3, 15, 2.0
_ASKED = 32
"""Labelled samples in one request."""


def profile_variant(
    open_pipeline: Callable[[], Pipeline],
    labelled: Labelled | None = None,
    *,
    example: Sequence[torch.Tensor] | None = None,
    on_progress: Callable[[str, float], None] = lambda what, part: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[VariantProfile, Pipeline]:
    """Measure a variant; returns the profile, and the pipeline, which is open.

    Parameters
    ----------
    open_pipeline
        Called twice: the first time the layers may have to be timed, the second one tells how long loading takes.
    labelled
        By which its accuracy is measured.
    example
        One call's arguments, by which it is timed; default: zeros.
    on_progress
        Called with what is being done, and which part of all is done.
    """
    on_progress("opened, its layers timed", 0.0)
    open_pipeline().close()
    on_progress("loaded again", 0.3)
    begin_s = clock()
    pipeline = open_pipeline()
    load_s = clock() - begin_s
    try:
        on_progress("timed", 0.5)
        slope_s, intercept_s, cost_s = _timed(pipeline, example, clock)
        accuracy = None
        if labelled is not None:
            right = 0
            for done, count in _right(pipeline, labelled):
                right += count
                on_progress("asked about labelled data", 0.6 + 0.4 * done)
            accuracy = right / len(labelled.classes)
        on_progress("done", 1.0)
        profile = VariantProfile(
            slope_s,
            intercept_s,
            load_s,
            _memory_mib(pipeline),
            cost_s,
            len(pipeline.profiles) / cost_s,
            accuracy,
            0 if labelled is None else len(labelled.classes),
            "" if labelled is None else labelled.digest,
        )
    except BaseException:
        pipeline.close(drain=False)
        raise
    return profile, pipeline


def _timed(
    pipeline: Pipeline, example: Sequence[torch.Tensor] | None, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Slope and intercept of latency over samples, and seconds of a device for one sample.

    The latter are measured by whole requests: layers that are timed one by one have their weights in the caches, and
    add up to less.
    """
    whole = leading_size(pipeline.chain)
    if example is None:
        example = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in pipeline.chain.inputs]
    sizes = (1, max(_MANY, pipeline.batch)) if pipeline.chain.dynamic_batch else (whole,)
    points: list[tuple[int, float]] = []
    costs_s: list[float] = []
    for size in sizes:
        repeated = tuple(torch.cat([tensor] * size)[:size] if tensor.dim() else tensor for tensor in example)
        latency_s, costs_s = _repeated(pipeline, repeated, clock)
        points.append((size, latency_s))
    return *line_through(points[0], points[-1]), statistics.median(costs_s)


def _repeated(
    pipeline: Pipeline, arguments: Sequence[torch.Tensor], clock: Callable[[], float]
) -> tuple[float, list[float]]:
    """Median seconds of a request, and of each micro-batch the seconds of devices for one sample."""
    for _ in range(_WARM):
        pipeline(*arguments)
    costs_s: list[float] = []
    leave = pipeline.follow(
        lambda one: costs_s.append(sum(stage.wall_s - stage.run_delay_s for stage in one.stages) / one.samples)
    )
    took_s: list[float] = []
    while len(took_s) < _TIMED and (sum(took_s) < _BUDGET_S or len(took_s) < 3):
        begin_s = clock()
        pipeline(*arguments)
        took_s.append(clock() - begin_s)
    leave()
    return statistics.median(took_s), costs_s


def _right(pipeline: Pipeline, labelled: Labelled) -> Iterator[tuple[float, int]]:
    """Part of the data that is done, and how many answers were right, request by request."""
    size = _ASKED if pipeline.chain.dynamic_batch else leading_size(pipeline.chain)
    inputs, classes = labelled.inputs.split(size), labelled.classes.split(size)
    if not pipeline.chain.dynamic_batch and len(inputs[-1]) != size:
        raise ValueError(
            f"{len(labelled.classes)} labelled samples, and the model takes {size} at a time: give a multiple of that"
        )
    for number, (scores, true) in enumerate(zip(pipeline.map(inputs), classes, strict=True)):
        scores = _scores(scores)
        if scores.dim() != 2 or len(scores) != len(true):
            raise ValueError(
                f"outputs of shape {tuple(scores.shape)} for {len(true)} samples: accuracy is that of classifiers, "
                "whose output is one score for each class; give the accuracy yourself (accuracy=)"
            )
        yield (number + 1) / len(classes), int((scores.argmax(dim=1) == true).sum())


def _scores(output: Any) -> torch.Tensor:
    """The first tensor of an output."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def _memory_mib(pipeline: Pipeline) -> float:
    """Of the stages' processes, what they share divided among who shares it."""
    nbytes = 0
    for _, pid in pipeline.stage_names():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            try:
                nbytes += process.memory_full_info().pss
            except psutil.AccessDenied:
                nbytes += process.memory_info().rss
    return nbytes / 2**20
