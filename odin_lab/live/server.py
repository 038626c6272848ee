"""What serves in a benchmark: it takes requests one by one and answers with futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from odin.monitor.events import LoadChanged

__all__ = ["Array", "Server", "Setup"]

Array = npt.NDArray[np.float32]


class Setup(NamedTuple):
    """What everyone who serves gets.

    Attributes
    ----------
    model
        Name for :func:`odin.models.sources.load_source`; its weights are the same in every process.
    weights
        File of weights, or None for the seeded random ones.
    cores
        The cores to compute on.
    images
        ``(n, ...)``, preprocessed, each one request.
    plan
        The cut, as text; empty lets ODIN find it.
    in_flight
        Bound on requests under way.
    """

    model: str
    weights: Path | None
    cores: tuple[int, ...]
    images: Array
    plan: str
    in_flight: int


class Server(NamedTuple):
    """What serves, once it is up.

    Attributes
    ----------
    infer
        One image with leading size 1 -> its output, to see that it computes the right thing.
    submit
        Request index -> future of its result.
    worker_pids
        Processes that hold the model, beside this one.
    plan
        The cut it runs, as text; empty if it is not cut.
    note_load
        Told of the loads that are put beside it.
    """

    infer: Callable[[Array], Array]
    submit: Callable[[int], Future[object]]
    worker_pids: tuple[int, ...]
    plan: str = ""
    note_load: Callable[[LoadChanged], None] = lambda event: None
