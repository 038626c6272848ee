"""Policies compared in each setting: means over repeats, ratios paired by repeat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from odin_lab.report.results import QUANTILES, SLO_LEVELS, Cell

__all__ = [
    "Place",
    "Score",
    "base_name",
    "is_ours",
    "is_yardstick",
    "mean",
    "order_policies",
    "pooled_quantiles",
    "scores",
]

_ORDER = ("relay", "filter", "odin", "lls", "static", "oracle", "delayed-oracle")
_OURS = ("relay", "filter")
_YARDSTICKS = ("oracle", "delayed-oracle")
SLO = 0.8
"""The service level of the tables: a request holds it if the throughput about it is at least this share of the peak."""


class Place(NamedTuple):
    """Where policies are compared."""

    study: str
    model: str
    devices: int
    period: float
    duration: float

    def __str__(self) -> str:
        words = [self.model, f"{self.devices} device{'s' if self.devices != 1 else ''}"]
        if self.period or self.duration:
            words.append(f"period {self.period:g}, duration {self.duration:g}")
        return ", ".join(words)


class Score(NamedTuple):
    """A policy in a place: over its repeats the mean, the median in live studies; nan where unknown.

    ``of_*`` are throughput ratios, ``p99_of_lls`` is one of latencies; ``holds`` is the share of requests that hold
    the service level :data:`SLO`.
    """

    repeats: int
    throughput_hz: float
    of_fluid: float
    of_oracle: float
    of_delayed: float
    of_static: float
    of_lls: float
    latency_p50_s: float
    latency_p99_s: float
    p99_of_lls: float
    holds: float
    exploring: float
    trials_per_event: float
    changes_per_event: float


def base_name(policy: str) -> str:
    """A policy's name without its parameters and remarks."""
    return policy.partition(":")[0].partition(" ")[0]


def is_ours(policy: str) -> bool:
    """Whether it is one of ODIN's own, with whatever parameters."""
    return base_name(policy) in _OURS


def is_yardstick(policy: str) -> bool:
    """Whether it knows what no policy can know."""
    return base_name(policy) in _YARDSTICKS


def order_policies(policies: Iterable[str]) -> tuple[str, ...]:
    """Ours first, the yardsticks last, those nobody here knows before them; each once."""

    def rank(policy: str) -> tuple[float, str, list[tuple[float, str]]]:
        name = base_name(policy)
        place = float(_ORDER.index(name)) if name in _ORDER else _ORDER.index("oracle") - 0.5
        text, _, remark = policy.partition(" ")
        parts = (part.partition("=") for part in text.split(","))
        return place, remark, [(float(v), k) if v.replace(".", "", 1).isdigit() else (-1.0, k + v) for k, _, v in parts]

    return tuple(sorted(dict.fromkeys(policies), key=rank))


def mean(values: Iterable[float]) -> float:
    """Mean of those that are finite; nan if none is."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _median(values: Iterable[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return float(np.median(kept)) if kept else math.nan


def scores(cells: Iterable[Cell]) -> dict[Place, dict[str, Score]]:
    """Every policy in every place; ratios that the cells do not tell are made from the cells of the same repeat."""
    found: dict[Place, dict[str, dict[int, Cell]]] = {}
    for cell in cells:
        place = Place(cell.study, cell.model, cell.devices, cell.period, cell.duration)
        found.setdefault(place, {}).setdefault(cell.policy, {})[cell.repeat] = cell
    return {
        place: {policy: _score(policies[policy], policies) for policy in order_policies(policies)}
        for place, policies in sorted(found.items(), key=lambda item: item[0])
    }


def _score(own: Mapping[int, Cell], policies: Mapping[str, Mapping[int, Cell]]) -> Score:
    cells = list(own.values())
    middle = _median if cells[0].study.startswith("live") else mean

    def against(reference: str, value: Callable[[Cell], float]) -> float:
        others = policies.get(reference, {})
        both = [(value(cell), value(others[repeat])) for repeat, cell in own.items() if repeat in others]
        return middle(mine / its for mine, its in both if its > 0)

    def ratio(told: Callable[[Cell], float], reference: str) -> float:
        value = middle(told(cell) for cell in cells)
        return value if math.isfinite(value) else against(reference, lambda cell: cell.throughput_hz)

    at = SLO_LEVELS.index(SLO)
    return Score(
        repeats=len(cells),
        throughput_hz=middle(cell.throughput_hz for cell in cells),
        of_fluid=middle(cell.throughput_hz / cell.fluid_bound_hz for cell in cells),
        of_oracle=ratio(lambda cell: cell.of_oracle, "oracle"),
        of_delayed=ratio(lambda cell: cell.of_delayed, "delayed-oracle"),
        of_static=ratio(lambda cell: cell.of_static, "static"),
        of_lls=against("lls", lambda cell: cell.throughput_hz),
        latency_p50_s=middle(cell.latency_p50_s for cell in cells),
        latency_p99_s=middle(cell.latency_p99_s for cell in cells),
        p99_of_lls=against("lls", lambda cell: cell.latency_p99_s),
        holds=middle(1 - cell.below_peak[at] for cell in cells if cell.below_peak),
        exploring=middle(cell.exploring for cell in cells),
        trials_per_event=middle(cell.trials_per_event for cell in cells),
        changes_per_event=middle(cell.changes_per_event for cell in cells),
    )


def pooled_quantiles(cells: Iterable[Cell], at: Sequence[float] = QUANTILES) -> np.ndarray:
    """Latency quantiles of the requests of all cells together, shape (at,), seconds; all nan if none tells any.

    Each cell's quantiles stand for its requests: between two of them lies the same share of the requests.
    """
    values, weights = [], []
    for cell in cells:
        told = np.asarray(cell.latency_quantiles_s, dtype=float)
        if told.size and np.isfinite(told).all():
            values.append((told[1:] + told[:-1]) / 2)
            weights.append(np.full(told.size - 1, cell.requests / (told.size - 1)))
    if not values:
        return np.full(len(at), np.nan)
    flat, weight = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(flat, kind="stable")
    share = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return np.asarray(np.interp(at, share, flat[order]))
