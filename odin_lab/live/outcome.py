"""From live runs to the cells, timelines and notes of an evaluation.

Figures of a run are over its measured time, the quiet lead-in included. ``peak_hz`` is its own throughput in that
lead-in, up to when the first load's processes are started: the machine drifts between runs, so that what a run came
to is held against what it came to itself just before. Momentary throughput is what it is in simulation
(:mod:`odin_lab.simulator.metrics`).
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.stages.device import Device
from odin_lab.live.machine import Environment
from odin_lab.live.run_record import RunRecord, Task
from odin_lab.live.script import describe
from odin_lab.report.over_time import over_time
from odin_lab.report.results import QUANTILES, Cell, Results, Timeline, now
from odin_lab.simulator.metrics import below_peak, paired

__all__ = ["Run", "in_order", "notes", "peak_hz", "results", "to_cell", "to_cells", "to_timeline"]

FloatArray = NDArray[np.float64]

STUDY = "live"


class Run(NamedTuple):
    """A run: what was to be done, and what it came to."""

    task: Task
    record: RunRecord


def peak_hz(run: Run) -> float:
    """Requests per second in the quiet lead-in; nan if fewer than two finished in it."""
    quiet = [at_s for at_s in run.record.finished_s if at_s < run.task.script.quiet_s]
    return (len(quiet) - 1) / (quiet[-1] - quiet[0]) if len(quiet) > 1 and quiet[-1] > quiet[0] else math.nan


def to_cell(run: Run) -> Cell:
    """Sum a run up, without the ratios to other policies."""
    task, record = run
    script = task.script
    finished_s = np.array(record.finished_s)
    latency_s = finished_s - np.array(record.submitted_s)
    quantiles_s = np.quantile(latency_s, QUANTILES) if len(latency_s) else np.full(len(QUANTILES), np.nan)
    events, peak = len(script.scenario.steps), peak_hz(run)
    return Cell(
        study=STUDY,
        model=task.model,
        policy=task.title,
        devices=len(task.cores),
        period=script.period_s,
        duration=script.duration_s,
        repeat=task.repeat,
        requests=len(record.finished_s) + record.lost,
        lost=record.lost,
        events=events,
        throughput_hz=len(record.finished_s) / script.seconds,
        peak_hz=peak,
        latency_mean_s=float(latency_s.mean()) if len(latency_s) else math.nan,
        latency_p50_s=float(quantiles_s[QUANTILES.index(0.5)]),
        latency_p99_s=float(quantiles_s[QUANTILES.index(0.99)]),
        latency_quantiles_s=tuple(quantiles_s.tolist()) if len(latency_s) else (),
        below_peak=() if math.isnan(peak) else below_peak(finished_s, peak),
        exploring=record.exploring,
        trials_per_event=record.trials / events,
        changes_per_event=len(record.moves) / events,
        memory_bytes=float(record.memory_nbytes),
    )


def to_cells(runs: Iterable[Run]) -> tuple[Cell, ...]:
    """Cells of all runs, each held against static's, and the oracle's if it ran, in the same repeat."""
    return paired([to_cell(run) for run in in_order(runs)])


def in_order(runs: Iterable[Run]) -> list[Run]:
    """By repeat, and within each as the contenders were named: the order in which they ran was drawn."""
    return sorted(runs, key=lambda run: (run.task.repeat, run.task.number))


def to_timeline(run: Run) -> Timeline:
    """Throughput and mean latency over time."""
    task, record = run
    latency_s = [end_s - begin_s for begin_s, end_s in zip(record.submitted_s, record.finished_s, strict=True)]
    told = over_time(record.finished_s, latency_s, seconds=task.script.seconds)
    return Timeline(
        study=STUDY,
        model=task.model,
        policy=task.title,
        title=f"{task.model} live on {len(task.cores)} cores, repeat {task.repeat + 1}",
        at_s=told.at_s,
        throughput_hz=told.throughput_hz,
        latency_s=told.latency_s,
        interference=tuple(
            (span.start_s, span.end_s, stage, span.name)
            for span in record.loads
            for stage in _stages(span.on, task.cores)
        ),
        changes=tuple((move.at_s, move.plan) for move in record.moves),
        peak_hz=peak_hz(run),
    )


def _stages(on: str, cores: Sequence[int]) -> tuple[int, ...]:
    """Which stages a load's device concerns; one past the last for a core of nobody's."""
    device = Device.parse(on)
    own = tuple(stage for stage, core in enumerate(cores) if device.kind == "cpu" and core in device.indices)
    return own or (len(cores),)


def results(runs: Sequence[Run], words: Sequence[str] = (), *, planned: int) -> Results:
    """All of it; timelines are of the first repeat.

    Parameters
    ----------
    words
        What else is to be said: which runs failed, who is not there.
    planned
        Runs there were to be.
    """
    environment = Environment.collect()
    return Results(
        command=shlex.join(["odin", *sys.argv[1:]]),
        created=now(),
        environment={
            "cpu": environment.cpu_model,
            "cores": str(environment.cores),
            "memory": f"{environment.memory_nbytes / 2**30:.0f} GiB",
            "system": environment.system,
            "python": environment.python,
            **environment.versions,
        },
        cells=to_cells(runs),
        timelines=tuple(to_timeline(run) for run in in_order(runs) if run.task.repeat == 0),
        notes=notes(runs, words, planned=planned),
    )


def notes(runs: Sequence[Run], words: Sequence[str] = (), *, planned: int) -> tuple[str, ...]:
    """What a reader of the results must know."""
    told = []
    if len(runs) < planned:
        told.append(f"{len(runs)} of {planned} live runs; the others failed or were broken off.")
    told += words
    if not runs:
        return tuple(told)
    told.append(
        "Live: closed loop, latency as the caller sees it; the peak is each run's own throughput before its first "
        "load; memory is PSS, Ray's own processes included, the loads left out; replicas and stages have the same "
        "priority as the loads. Events repeat within a repeat: every contender saw the same."
    )
    scripts = {run.task.repeat: describe(run.task.script) for run in runs}
    if len(set(scripts.values())) == 1:
        told.append(f"Interference: {next(iter(scripts.values()))}.")
    else:
        told += [f"Interference in repeat {repeat + 1}: {text}." for repeat, text in sorted(scripts.items())]
    titles = dict.fromkeys(run.task.title for run in in_order(runs))
    steal = (
        f"{title} " + ", ".join(f"{run.record.steal:.1%}" for run in runs if run.task.title == title)
        for title in titles
    )
    told.append(f"Share of the cores' time that the host gave to others (steal), by run: {'; '.join(steal)}.")
    return tuple(told)
