"""How soon detectors see a slowdown, and how often they see one that is not there, against the least there is.

Delay: requests from the onset to the one that detects it, that one included; 1 is the least there is. Missed: not seen
within 100 requests. False alarms: changes reported in undisturbed streams, per 10,000 requests of a stream; the return
from a false alarm is not another. The bound is ln(ARL) / KL: the least worst-case mean delay, asymptotically, at a mean
of ARL = 10,000 requests between false alarms (Lorden 1971), KL being ln(slowdown)^2 / (2 sigma^2) for log-normal noise.

Every round draws new streams from the seed and the round's number; all detectors see the same ones (those of ``river``,
which take a sample at a time, the first few of them), calibrate on 500 undisturbed requests, then get 100 slowed down
and 100 as before. Times of recorded traces (event logs of undisturbed runs) are slowed down in the same way.

That bound is for independent noise. On recorded noise, of the timing tables (drawn as the simulator does) and of
traces, delays are held against those of :mod:`benchmarks.known_shift` on the same noise, at as many false alarms as the
detector makes there, at least one per 10,000.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Environment, add_arguments, report, write_result
from benchmarks.known_shift import Draw, known_shift_delays
from odin.monitor.detectors import CusumDetector, ThresholdDetector
from odin.monitor.detectors.adwin import AdwinDetector
from odin.monitor.detectors.page_hinkley import PageHinkleyDetector
from odin.monitor.events import RequestDone, RunStarted, from_json
from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline
from odin_lab.simulator.detection import (
    ARL,
    CALIBRATION,
    LIMIT,
    QUIET,
    SLOWDOWNS,
    Candidate,
    Delay,
    Noise,
    drifting,
    false_alarms,
    log_normal,
    measure_detector,
    sightings,
    to_delay,
    with_hiccups,
)
from odin_lab.simulator.noise import MeasuredNoise
from odin_lab.timings import load_timings
from odin_lab.timings.table import ALONE

FloatArray = NDArray[np.float64]

TARGET = 1.5
RECORDED = ("resnet50", "vgg16", "mobilenet_v2")
_YARDSTICK_STREAMS = 2000
_DEVICES = 2


class Row(NamedTuple):
    """One detector under one kind of noise."""

    detector: str
    noise: str
    false_alarms: float
    undisturbed: int
    delays: tuple[Delay, ...]


class Trace(NamedTuple):
    """A recorded run: log slowdowns, (requests, stages), and the requests before which layers moved."""

    name: str
    samples: FloatArray
    moves: tuple[int, ...]


def read_trace(path: Path) -> Trace:
    """Read an event log: its requests, in order of completion, each stage's time over that of its layers' baseline.

    Micro-batches of fewer samples count with the times that full ones would have had. Without baselines in the log, a
    stage's time is held against the median of its times with the same layers.

    Raises
    ------
    ValueError
        If there are no requests in it, or a line is no event.
    """
    baseline_s: Mapping[int, tuple[float, ...]] = {}
    times: SampleTimes | None = None
    requests: list[RequestTimeline] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            # By the text first: reading all of a long log's other events takes as long as its requests.
            if '"event":"request"' not in line and '"event":"run"' not in line:
                continue
            try:
                event = from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if isinstance(event, RunStarted):
                baseline_s = {index: stage.baseline_s for index, stage in enumerate(event.stages)}
                times = SampleTimes.of_run(event)
            elif isinstance(event, RequestDone):
                requests.append(event.timeline if times is None else times.as_full(event.timeline))
    if not requests:
        raise ValueError(f"{path} holds no requests: give the event log of a run, such as odin run --log FILE writes")
    stages = 1 + max(timing.stage for request in requests for timing in request.stages)
    samples = np.full((len(requests), stages), np.nan)
    layers = np.zeros((len(requests), stages, 2), dtype=np.int64)
    for index, request in enumerate(requests):
        for timing in request.stages:
            layers[index, timing.stage] = timing.first, timing.last
            usual_s = math.fsum(baseline_s.get(timing.stage, ())[timing.first : timing.last])
            if timing.last > timing.first and timing.wall_s > 0:
                samples[index, timing.stage] = math.log(timing.wall_s / (usual_s if usual_s > 0 else 1.0))
    if not baseline_s:
        for stage in range(stages):
            for held in np.unique(layers[:, stage], axis=0):
                same = (layers[:, stage] == held).all(axis=1) & ~np.isnan(samples[:, stage])
                samples[same, stage] -= np.median(samples[same, stage]) if same.any() else 0.0
    moved = (layers[1:] != layers[:-1]).any(axis=(1, 2))
    return Trace(path.stem, samples, tuple(int(index) + 1 for index in np.flatnonzero(moved)))


def cuttings(trace: Trace, *, count: int, length: int, random: np.random.Generator) -> FloatArray:
    """``count`` pieces of every stage's samples without a move in them, from anywhere, (length, count * stages).

    Raises
    ------
    ValueError
        If no piece of that length is without a move.
    """
    moved = np.zeros(len(trace.samples) + 1, dtype=np.int64)
    moved[np.array(trace.moves, dtype=np.int64) + 1] = 1
    before = np.cumsum(moved)
    starts = [
        start
        for start in range(len(trace.samples) - length + 1)
        if before[start + length] == before[start + 1]  # a move before its first request does no harm
    ]
    if not starts:
        raise ValueError(f"trace {trace.name}: no {length} requests in a row under one plan; record a longer run")
    pieces = [trace.samples[start : start + length] for start in random.choice(starts, count)]
    return np.concatenate(pieces, axis=1)


def drawn_from(trace: Trace) -> Draw:
    """Pieces of a trace, of all its stages, as noise."""

    def draw(random: np.random.Generator, requests: int, streams: int) -> FloatArray:
        count = math.ceil(streams / trace.samples.shape[1])
        return cuttings(trace, count=count, length=requests, random=random)

    return draw


# ---------------------------------------------------------------- measuring
def measure(
    name: str, candidate: Candidate, kind: str, noise: Noise, *, rounds: int, seed: int, quiet: int, slow: bool
) -> Row:
    """One detector under one kind of noise; every detector of the same round gets the same samples."""
    slowdowns = SLOWDOWNS if slow else ()
    found = measure_detector(candidate, noise, rounds=rounds, seed=seed, quiet=quiet, slowdowns=slowdowns)
    return Row(name, kind, found.false_alarms / found.undisturbed * 10_000, found.undisturbed, found.delays)


def recorded_noise(model: str) -> Noise:
    """Noise of a model's timing table, alone on its core, at the pace of a pipeline of two stages."""
    table = load_timings(model)
    measured = MeasuredNoise.of_table(table, interval_s=float(table.baseline_s().sum()) / _DEVICES)

    def draw(random: np.random.Generator, requests: int, streams: int) -> FloatArray:
        drawn = next(measured.blocks(random, requests=requests, devices=streams))
        return np.asarray(np.log(measured.factors(drawn, ALONE)))

    samples = draw(np.random.default_rng(0), QUIET, 100)
    return Noise(draw, deviation(samples))


def deviation(samples: FloatArray) -> float:
    """Standard deviation about each stream's median, by the median absolute deviation."""
    return 1.4826 * float(np.nanmedian(np.abs(samples - np.nanmedian(samples, axis=0))))


def beside_yardstick(rows: Sequence[Row], draw: Draw, *, seed: int, streams: int) -> list[Row]:
    """Rows of one recorded noise, the yardstick's delays as bounds; and its own, at 1 and as the first row does."""

    def delays(per_10_000: float) -> tuple[Delay, ...]:
        return known_shift_delays(draw, SLOWDOWNS, per_10_000=per_10_000, streams=streams, seed=seed)

    found = []
    for row in rows:
        bounds = {delay.slowdown: delay.onset for delay in delays(max(1.0, row.false_alarms))}
        found.append(row._replace(delays=tuple(d._replace(bound=bounds[d.slowdown]) for d in row.delays)))
    for per_10_000 in (1.0, max(1.0, rows[0].false_alarms)):
        found.append(Row("CUSUM told the shift", rows[0].noise, per_10_000, 0, delays(per_10_000)))
    return found


def measure_trace(name: str, candidate: Candidate, trace: Trace, *, rounds: int, seed: int) -> Row:
    """One detector on one recorded trace."""
    skip = min(CALIBRATION, len(trace.samples) // 4)
    stages = trace.samples.shape[1]
    alarms = false_alarms(candidate.make(stages), trace.samples, skip=skip, moves=trace.moves)
    undisturbed = int((~np.isnan(trace.samples[skip:])).sum())
    sigma = deviation(trace.samples)
    count = max(1, candidate.streams // stages)
    delays = []
    for slowdown in SLOWDOWNS:
        seen = []
        for round_index in range(rounds):
            random = np.random.default_rng([seed, round_index])
            samples = cuttings(trace, count=count, length=CALIBRATION + 2 * LIMIT, random=random)
            detector = candidate.make(samples.shape[1])
            seen.append(sightings(detector, samples, slowdown, calibration=CALIBRATION, limit=LIMIT))
        delays.append(to_delay(slowdown, seen, math.nan))
    kind = f"{trace.name} (sigma {sigma:.3f})"
    return Row(name, kind, alarms / max(1, undisturbed) * 10_000, undisturbed, tuple(delays))


# ---------------------------------------------------------------- showing
def show(kind: str, rows: Sequence[Row], environment: Environment, *, recorded: bool = False) -> None:
    """Print one kind of noise: a table of onsets, one of ends; of recorded noise onsets alone."""
    for title, end in (("onset", False), ("end", True)):
        if end and (recorded or not rows[0].delays):
            continue
        columns = ["detector", "false/10,000", *(f"x{delay.slowdown:g}" for delay in rows[0].delays)]
        cells = [
            [row.detector, f"{row.false_alarms:.2f}", *(cell(delay, end=end) for delay in row.delays)] for row in rows
        ]
        if recorded:
            title = "mean delay of the onset in requests, over that of a CUSUM told the shift, calibrated on this noise"
        elif rows[0].delays:
            cells.append(["ln(ARL) / KL", f"{10_000 / ARL:.2f}", *(f"{delay.bound:.2f}" for delay in rows[0].delays)])
            title = f"mean delay of the {title} in requests, over max(1, bound); median where some were missed"
        else:
            title = "no onset, no end"
        report(f"{kind}: {title}", columns, cells, environment)


def cell(delay: Delay, *, end: bool) -> str:
    """``"4.20 1.14x"``: mean delay, over the least there is; ``-`` where there is none.

    Where some were missed there is no mean: ``"median 21, 3.0% > 100"``, or ``"median > 100, 66% > 100"``.
    """
    mean, missed, median = (
        (delay.end, delay.end_missed, delay.end_median) if end else (delay.onset, delay.missed, delay.onset_median)
    )
    if math.isnan(missed):
        return "-"
    if missed == 0:
        return f"{mean:.2f}" + ("" if math.isnan(delay.bound) else f" {mean / max(1.0, delay.bound):.2f}x")
    told = f"median > {LIMIT}" if math.isinf(median) else f"median {median:.0f}"
    return f"{told}, {missed:{'.1%' if missed < 0.1 else '.0%'}} > {LIMIT}"


def target_text(rows: Iterable[Row], *, noise: str, detector: str) -> str:
    """Whether the target holds, in a line."""
    (row,) = (row for row in rows if (row.noise, row.detector) == (noise, detector))
    worst = max((delay for delay in row.delays if delay.slowdown >= 1.25), key=lambda delay: delay.ratio)
    holds = worst.ratio <= TARGET and row.false_alarms <= 1.0
    return (
        f"target ({detector}, {noise}, slowdown >= 1.25): within {TARGET}x of max(1, bound) at <= 1 false alarm per "
        f"10,000: {'holds' if holds else 'DOES NOT HOLD'}; worst {worst.ratio:.2f}x at x{worst.slowdown:g}, "
        f"{row.false_alarms:.2f} false alarms"
    )


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=4)
    parser.add_argument("--traces", nargs="+", type=Path, default=[], metavar="FILE", help="logs of undisturbed runs")
    parser.add_argument("--only-recorded", action="store_true", help="leave out noise that is made up")
    arguments = parser.parse_args()
    rounds, quiet = (1, 1000) if arguments.quick else (arguments.rounds, QUIET)
    if rounds < 1:
        parser.error(f"--rounds {rounds}: at least one round is needed")
    try:
        traces = [read_trace(path) for path in arguments.traces]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    many, few = (100, 8) if arguments.quick else (400, 16)
    candidates = {
        "CUSUM": Candidate(lambda streams: CusumDetector(streams, arl=ARL), many),
        "threshold 20 %": Candidate(ThresholdDetector, many),
    }
    if importlib.util.find_spec("river") is not None:
        candidates["Page-Hinkley (river)"] = Candidate(PageHinkleyDetector, few)
        candidates["ADWIN (river)"] = Candidate(AdwinDetector, few)
    else:
        print("without river's detectors, which are not installed: pip install 'odin-pipeline[compare]'")
    kinds = {f"CV {cv:.0%}": (log_normal(cv), True) for cv in (0.05, 0.1, 0.2)}
    kinds["CV 5%, 0.5% hiccups of x1.4 to x3"] = (with_hiccups(0.05), True)
    for cv in (0.05, 0.1):
        kinds[f"CV {cv:.0%}, drift of 20% each way in 1,000 requests"] = (drifting(cv), False)
    if arguments.only_recorded:
        kinds = {}
    yardstick = {"seed": arguments.seed, "streams": 100 if arguments.quick else _YARDSTICK_STREAMS}

    environment = Environment.collect(("numpy", "river"))
    results: list[Row] = []
    for kind, (noise, slow) in kinds.items():
        rows = [
            measure(name, candidate, kind, noise, rounds=rounds, seed=arguments.seed, quiet=quiet, slow=slow)
            for name, candidate in candidates.items()
        ]
        show(kind, rows, environment)
        results += rows
    for model in RECORDED[: 1 if arguments.quick else None]:
        noise = recorded_noise(model)
        kind = f"recorded with {model} (standard deviation {noise.sigma:.1%})"
        rows = [
            measure(name, candidate, kind, noise, rounds=rounds, seed=arguments.seed, quiet=quiet, slow=True)
            for name, candidate in candidates.items()
        ]
        rows = beside_yardstick(rows, noise.draw, **yardstick)
        show(kind, rows, environment, recorded=True)
        results += rows
    for trace in traces:
        try:
            rows = [
                measure_trace(name, candidate, trace, rounds=rounds, seed=arguments.seed)
                for name, candidate in candidates.items()
            ]
            rows = beside_yardstick(rows, drawn_from(trace), **yardstick)
        except ValueError as error:
            parser.error(str(error))
        show(rows[0].noise, rows, environment, recorded=True)
        results += rows
    if kinds:
        print(target_text(results, noise="CV 10%", detector="CUSUM"))
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
