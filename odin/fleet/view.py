"""A fleet's state at one moment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from odin.fleet.dispatcher import Counts
from odin.fleet.scheduler import EVICT, LOAD, RUN, Measured

__all__ = ["ExecutorView", "FleetView", "Prediction", "predictions_of"]


class ExecutorView(NamedTuple):
    """One executor.

    Attributes
    ----------
    device, pid
        Where it runs.
    state
        ``serving`` or ``lost``.
    slowdown
        Its time now / baseline.
    models
        That it has open.
    """

    device: str
    pid: int
    state: str
    slowdown: float
    models: int


class Prediction(NamedTuple):
    """How good predictions were of late, for one kind of action.

    Attributes
    ----------
    kind
        ``run``, ``load`` or ``evict``.
    actions
        How many were looked at.
    predicted_s, actual_s
        Medians.
    within
        Share of the actions that took no longer than predicted.
    """

    kind: str
    actions: int
    predicted_s: float
    actual_s: float
    within: float


class FleetView(NamedTuple):
    """A fleet at one moment.

    Attributes
    ----------
    models
        That can be asked for.
    resident
        Names of those in memory, the most recently used last.
    resident_mib, memory_mib
        What these take, and all may take together.
    waiting
        Requests that were not sent to an executor yet.
    counts
        Of requests and actions, since the start.
    executors
        In the order of their devices.
    predictions
        By kind of action.
    """

    models: int
    resident: tuple[str, ...]
    resident_mib: float
    memory_mib: float
    waiting: int
    counts: Counts
    executors: tuple[ExecutorView, ...]
    predictions: tuple[Prediction, ...]


def predictions_of(measured: Sequence[Measured]) -> tuple[Prediction, ...]:
    """Sum up what was predicted and measured."""
    found = []
    for kind in (RUN, LOAD, EVICT):
        of_kind = [one for one in measured if one.kind == kind]
        if of_kind:
            found.append(
                Prediction(
                    kind,
                    len(of_kind),
                    statistics.median(one.expected_s for one in of_kind),
                    statistics.median(one.took_s for one in of_kind),
                    sum(one.took_s <= one.expected_s for one in of_kind) / len(of_kind),
                )
            )
    return tuple(found)
