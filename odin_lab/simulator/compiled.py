"""Loops over numbers, compiled by numba where it is installed (``pip install 'odin-pipeline[simulate]'``).

Without numba simulations take the same steps with numpy and plain Python, and have the same results.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from odin.monitor.detectors import cusum_rows
from odin.monitor.watch_rows import WatchLoops, learn_rows, sample_rows, work_rows
from odin_lab.simulator.passing import pass_requests
from odin_lab.simulator.relay_loop import HELPERS, run_until_drawn

__all__ = ["Loops", "compiled", "is_available", "loops"]

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def is_available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def compiled(loop: Callable[P, R], *helpers: Callable[..., object]) -> Callable[P, R]:
    """A function compiled at its first call, or taken from numba's cache.

    Only floating-point operations as written: none is contracted or reordered, so that results are the same to the bit.

    Parameters
    ----------
    helpers
        Functions of the same file that it calls.
    """
    import numba
    from numba.extending import register_jitable

    for helper in helpers:
        register_jitable(error_model="numpy")(helper)
    made: Any = numba.njit(loop, cache=True, error_model="numpy", nogil=True)  # typed in some versions only
    return cast("Callable[P, R]", made)


class Loops(NamedTuple):
    """The simulator's loops."""

    pass_requests: Callable[..., tuple[int, float]] = pass_requests
    run_events: Callable[..., bool] = run_until_drawn
    watch: WatchLoops = WatchLoops()


@functools.cache
def loops() -> Loops | None:
    """All of them, compiled; None where numba is missing: as they are they are slower than numpy."""
    if not is_available():
        return None
    helpers = cusum_rows.add, cusum_rows.add_settled, cusum_rows.keep, cusum_rows.is_news
    take = compiled(cusum_rows.take_rows, *helpers)
    watch = WatchLoops(compiled(sample_rows), take, compiled(learn_rows), compiled(work_rows))
    return Loops(compiled(pass_requests), compiled(run_until_drawn, *HELPERS), watch)
