"""What an alternative is: something that serves images, measured by the same loops as all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple, Protocol

from benchmarks.common import LoadResult, closed_loop
from odin_lab.live.server import Array, Server, Setup

__all__ = ["Alternative", "Array", "Loop", "Setup", "serving"]


class Loop(Protocol):
    """A closed loop of ``count`` measured requests after ``warmup`` others, ``in_flight`` at a time."""

    def __call__(self, *, count: int, in_flight: int, warmup: int) -> LoadResult: ...


class Alternative(NamedTuple):
    """An alternative that is up.

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


@contextmanager
def serving(start: Callable[[Setup], AbstractContextManager[Server]], setup: Setup) -> Iterator[Alternative]:
    """An alternative that takes requests one by one and answers with futures."""
    with start(setup) as server:
        yield Alternative(server.infer, partial(closed_loop, server.submit), server.worker_pids, server.plan)
