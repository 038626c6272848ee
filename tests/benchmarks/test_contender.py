"""Contenders in processes of their own: one turn at a time, what is timed, and what becomes of errors."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.contender import PARKED_S, WARM_S, Contender, Runner, turn

Array = npt.NDArray[np.float32]


def counting(first: int, *, fails_at: int = -1, dies_at: int = -1) -> Runner:
    calls = 0

    def run() -> Array:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise ValueError(f"call {calls}")
        if calls == dies_at:
            os._exit(3)
        return np.array([first + calls, os.getpid()], np.float32)

    return run


def test_a_contender_computes_elsewhere_whenever_it_is_asked() -> None:
    with Contender("one", partial(counting, 40)) as one, Contender("two", partial(counting, 50)) as two:
        assert (one.output[0], two.output[0]) == (41, 51)
        assert len({one.output[1], two.output[1], os.getpid()}) == 3
        assert min(two.seconds(), one.seconds(), two.seconds()) >= 0


def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="call 1"):
        Contender("one", partial(counting, 0, fails_at=1))
    with Contender("one", partial(counting, 0, fails_at=2)) as contender, pytest.raises(ValueError, match="call 2"):
        contender.seconds()


def test_one_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match="the fastest: its process ended with status 3"):
        Contender("the fastest", partial(counting, 0, dies_at=1))


def test_a_turn_is_one_call_after_a_pause_and_as_many_as_make_it_warm() -> None:
    now_s, happened = 0.0, []

    def sleep(pause_s: float) -> None:
        happened.append(f"sleep {pause_s}")

    def runner(cost_s: float) -> Array:
        nonlocal now_s
        now_s += cost_s
        happened.append("call")
        return np.zeros(1, np.float32)

    assert turn(partial(runner, 10 * WARM_S), clock=lambda: now_s, sleep=sleep) == pytest.approx(10 * WARM_S)
    assert happened == [f"sleep {PARKED_S}", "call", "call"]
    happened.clear()
    assert turn(partial(runner, WARM_S / 4), clock=lambda: now_s, sleep=sleep) == pytest.approx(WARM_S / 4)
    assert len(happened) in (1 + 4 + 1, 1 + 5 + 1)  # rounding of sums
