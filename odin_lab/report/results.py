"""Results of an evaluation, simulated or live, and their file: JSON, nan as ``null`` and infinity as ``"inf"``."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from odin.monitor.json_text import from_plain, to_plain, with_nan
from odin.partitioner.files import write_whole

__all__ = [
    "FORMAT",
    "QUANTILES",
    "SLO_LEVELS",
    "VERSION",
    "Cell",
    "Decision",
    "DetectionPoint",
    "Promises",
    "Results",
    "ResultsError",
    "Timeline",
    "Validation",
    "merge",
    "now",
    "read_results",
]

_Item = TypeVar("_Item")

FORMAT = "odin-evaluation"
VERSION = 1
SLO_LEVELS = tuple(percent / 100 for percent in range(35, 100, 5))
"""Shares of the peak throughput that :attr:`Cell.below_peak` is about: 0.35, 0.40 .. 0.95."""
QUANTILES = tuple(percent / 100 for percent in range(101))
"""Where :attr:`Cell.latency_quantiles_s` are taken: 0, 0.01 .. 1."""


class ResultsError(ValueError):
    """These are no results, or not ones that go together."""


@dataclass(frozen=True)
class Cell:
    """One policy in one setting, once.

    Attributes
    ----------
    study
        ``grid`` (period x duration), ``scaling`` (over devices), ``live`` (a real pipeline), ``single``.
    model, policy, devices
        What ran, under whom, on how many.
    period, duration
        Of the interference: in requests in simulation, in seconds live; 0 where there was none.
    repeat
        Number of the repetition (seed); equal ones of several policies saw the same noise and events.
    requests, lost, events
        Submitted, not answered, and interference events in the time.
    throughput_hz, peak_hz
        Obtained, and of the best plan undisturbed.
    latency_mean_s, latency_p50_s, latency_p99_s, latency_quantiles_s
        Of the requests; the last at :data:`QUANTILES`, or empty.
    below_peak
        Share of requests whose momentary throughput was below each of :data:`SLO_LEVELS` x ``peak_hz``, or empty.
    exploring
        Share of requests that ran under a plan on trial.
    trials_per_event, changes_per_event
        Plans tried, and plan changes in all, per interference event.
    of_oracle, of_delayed, of_static
        Throughput / that of the oracle, the delayed oracle, static in the same repeat; nan where there is none.
    memory_bytes
        Resident in the end; nan in simulation.
    goodput_hz, capacity_hz
        Requests answered in time per second, and answered per second were there no deadlines; nan without deadlines.
    in_time, refused
        Share of the requests taken on that were answered in time, and of all that were refused; nan without deadlines.
    sent_again, recovery_s, worst_recovery_s
        How many times requests were sent again, and seconds from the loss of a device until throughput was back at what
        the others allow, median and largest; nan without losses.
    """

    study: str
    model: str
    policy: str
    devices: int
    period: float
    duration: float
    repeat: int
    requests: int
    lost: int
    events: int
    throughput_hz: float
    peak_hz: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    latency_quantiles_s: tuple[float, ...]
    below_peak: tuple[float, ...]
    exploring: float
    trials_per_event: float
    changes_per_event: float
    of_oracle: float = math.nan
    of_delayed: float = math.nan
    of_static: float = math.nan
    memory_bytes: float = math.nan
    goodput_hz: float = math.nan
    capacity_hz: float = math.nan
    in_time: float = math.nan
    refused: float = math.nan
    sent_again: float = math.nan
    recovery_s: float = math.nan
    worst_recovery_s: float = math.nan
    fluid_bound_hz: float = math.nan

    def __post_init__(self) -> None:
        for name, least in (("latency_quantiles_s", len(QUANTILES)), ("below_peak", len(SLO_LEVELS))):
            if len(getattr(self, name)) not in (0, least):
                raise ResultsError(f"{name} has {len(getattr(self, name))} values; give {least}, or none")

    @property
    def key(self) -> tuple[str, str, str, int, float, float, int]:
        """What tells it from the other cells."""
        return self.study, self.model, self.policy, self.devices, self.period, self.duration, self.repeat


@dataclass(frozen=True)
class Timeline:
    """One run over time.

    Attributes
    ----------
    study, model, policy, title
        What ran; timelines with equal study, model and title are shown beside each other.
    at_s, throughput_hz, latency_s
        Points of time since the start, and throughput and latency there.
    interference
        (start_s, end_s, device, label) of each event.
    changes
        (at_s, label) of each plan change; the label is the new plan or the kind of decision.
    peak_hz
        Throughput of the best plan undisturbed; nan if that is not known.
    turns
        (at_s, label) of each other decision: a knob was turned, pipelines were planned together.
    """

    study: str
    model: str
    policy: str
    title: str
    at_s: tuple[float, ...]
    throughput_hz: tuple[float, ...]
    latency_s: tuple[float, ...]
    interference: tuple[tuple[float, float, int, str], ...]
    changes: tuple[tuple[float, str], ...]
    peak_hz: float
    turns: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        if not len(self.at_s) == len(self.throughput_hz) == len(self.latency_s):
            lengths = len(self.at_s), len(self.throughput_hz), len(self.latency_s)
            raise ResultsError(f"a timeline with {lengths} points in time, throughput, latency: give as many of each")


@dataclass(frozen=True)
class DetectionPoint:
    """How late a detector tells a slowdown, in observations, against the least possible.

    Attributes
    ----------
    detector
        Its text form.
    noise_cv, slowdown
        Coefficient of variation of the timings, and by how much they rise.
    delay, bound
        Mean observations until the alarm, ``nan`` if any change was missed, and ln(ARL)/KL, the least for so few false
        alarms (Lorden).
    false_alarms, missed
        False alarms per 1,000 observations, and share of the changes that were not told within ``limit`` observations.
    median
        Median observations until the alarm, those missed counted as longer than all others; ``inf`` if these are half
        or more.
    """

    detector: str
    noise_cv: float
    slowdown: float
    delay: float
    bound: float
    false_alarms: float
    missed: float
    median: float = math.nan
    limit: int = 100

    @property
    def typical(self) -> float:
        """The mean, or the median where there is no mean."""
        return self.median if math.isnan(self.delay) else self.delay


@dataclass(frozen=True)
class Validation:
    """The same run live and simulated."""

    name: str
    policy: str
    live_hz: float
    simulated_hz: float
    live_p99_s: float
    simulated_p99_s: float


@dataclass(frozen=True)
class Promises:
    """One run.

    Attributes
    ----------
    model, policy, title
        What ran, and where it was read.
    requests
        Finished ones for which a completion was expected.
    at_s, expected_s, actual_s
        Of some of them: completion since the start, and seconds from sending to the expected and actual completion.
    off_p50_s, off_p99_s
        Actual minus expected completion of all of them.
    in_time, late, refused
        Requests with deadlines.
    """

    model: str
    policy: str
    title: str
    requests: int
    at_s: tuple[float, ...]
    expected_s: tuple[float, ...]
    actual_s: tuple[float, ...]
    off_p50_s: float
    off_p99_s: float
    in_time: int = 0
    late: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Decision:
    """One decision of a run.

    Attributes
    ----------
    run, at_s
        Where it was read, and seconds since that run's start.
    model
        What it is about: the run's model, or another one on the same devices that was planned with it.
    what
        ``plan`` (where requests change hands), ``batch`` or ``instances`` (a knob), ``together`` (a plan made for
        several pipelines at once), ``variant`` (what requests of a family got).
    before, after
        Plan, or value of the knob.
    why
        In words.
    latency_s, limit_s
        Of a knob: what was held against what; nan if that does not apply.
    """

    run: str
    at_s: float
    model: str
    what: str
    before: str
    after: str
    why: str
    latency_s: float = math.nan
    limit_s: float = math.nan


@dataclass(frozen=True)
class Results:
    """What one command measured or simulated.

    Attributes
    ----------
    command, created, environment
        How, when (ISO 8601, UTC: :func:`now`) and on what: ``{"cpu": ..., "python": ...}``.
    cells, timelines, detections, validations, promises, decisions
        What came out.
    notes
        What a reader must know: reconstructions, what was left out, and why.
    """

    command: str
    created: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    detections: tuple[DetectionPoint, ...] = ()
    validations: tuple[Validation, ...] = ()
    promises: tuple[Promises, ...] = ()
    notes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()

    def to_json(self) -> str:
        """What the file holds, in one line."""
        return json.dumps({"format": FORMAT, "version": VERSION, **_encode(self)}, allow_nan=False)

    def write(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; ``.gz`` at the end of the name compresses it."""
        path = Path(path)
        data = (self.to_json() + "\n").encode()
        write_whole(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        return path


def now() -> str:
    """The time for :attr:`Results.created`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_results(path: str | Path) -> Results:
    """Read a file that :meth:`Results.write` wrote.

    Raises
    ------
    ResultsError
        If it holds none, or is of a later version than this program knows.
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        values = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (ValueError, EOFError, OSError, zlib.error, RecursionError) as error:
        raise ResultsError(f"{path} is not JSON ({error}); give a file of odin simulate or odin bench") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ResultsError(f"{path} holds no evaluation; give a file that odin simulate or odin bench wrote (--output)")
    version = values.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ResultsError(f"{path} is of version {version}, and this program reads up to {VERSION}; update ODIN")
    body = {name: value for name, value in values.items() if name not in ("format", "version")}
    try:
        if unknown := body.keys() - {item.name for item in fields(Results)}:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        return from_plain(with_nan(body), Results, strict=False)
    except ValueError as error:
        raise ResultsError(f"{path} is damaged: {error}; make it anew") from error


def merge(*results: Results) -> Results:
    """Put results of several commands together.

    Commands and dates are joined; where environments differ, so are their values. What is told twice alike is kept
    once.

    Raises
    ------
    ResultsError
        If two have the same cell with different values.
    """
    cells: dict[tuple[Any, ...], tuple[Cell, str]] = {}
    for cell in (cell for part in results for cell in part.cells):
        text = json.dumps(_encode(cell))
        if cells.setdefault(cell.key, (cell, text))[1] != text:
            told = f"{cell.study} {cell.model} {cell.policy}, {cell.devices} devices, repeat {cell.repeat}"
            raise ResultsError(f"two results of {told} differ; leave one of the files out")
    return Results(
        command="\n".join(dict.fromkeys(part.command for part in results)),
        created="; ".join(dict.fromkeys(part.created for part in results)),
        environment=_joined(part.environment for part in results),
        cells=tuple(cell for cell, _ in cells.values()),
        timelines=_once(item for part in results for item in part.timelines),
        detections=_once(item for part in results for item in part.detections),
        validations=_once(item for part in results for item in part.validations),
        promises=_once(item for part in results for item in part.promises),
        notes=tuple(dict.fromkeys(note for part in results for note in part.notes)),
        decisions=_once(item for part in results for item in part.decisions),
    )


def _joined(environments: Iterable[Mapping[str, str]]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for environment in environments:
        for key, value in environment.items():
            values.setdefault(key, {})[value] = None
    return {key: "; ".join(found) for key, found in values.items()}


def _once(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple({json.dumps(_encode(item)): item for item in items}.values())


def _encode(value: Any) -> Any:
    """Plain JSON values of a record, numpy's numbers included."""
    return _without_nan(to_plain(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
