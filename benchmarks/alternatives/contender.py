"""What a contender is: something that serves images, measured by the same loops as all others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.common import LoadResult, closed_loop

__all__ = ["Contender", "Loop", "Setup", "from_submit"]

Array = npt.NDArray[np.float32]


class Setup(NamedTuple):
    """What every contender gets.

    Attributes
    ----------
    model
        Name for :func:`odin.sources.load_source`; its weights are the same in every process.
    weights
        File of weights, or None for the seeded random ones.
    cores
        The two cores to compute on.
    images
        ``(n, 3, height, width)``, preprocessed.
    plan
        The cut, as text; empty lets ODIN find it.
    in_flight
        Bound on requests under way, in the loaded loop.
    """

    model: str
    weights: Path | None
    cores: tuple[int, int]
    images: Array
    plan: str
    in_flight: int


class Loop(Protocol):
    """A closed loop of ``count`` measured requests after ``warmup`` others, ``in_flight`` at a time."""

    def __call__(self, *, count: int, in_flight: int, warmup: int) -> LoadResult: ...


class Contender(NamedTuple):
    """A contender that is up.

    Attributes
    ----------
    infer
        One image ``(1, 3, height, width)`` -> its output, to see that it computes the right thing.
    loop
        How it is measured.
    worker_pids
        Processes that hold the model, beside this one.
    plan
        The cut it runs, as text; empty if it is not cut.
    """

    infer: Callable[[Array], Array]
    loop: Loop
    worker_pids: tuple[int, ...]
    plan: str = ""


def from_submit(submit: Callable[[int], Future[object]]) -> Loop:
    """The loop of a contender that takes requests one by one and answers with futures."""
    return partial(closed_loop, submit)
