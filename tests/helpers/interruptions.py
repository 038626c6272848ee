"""Calls that a signal handler's exception interrupts, at random moments."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable


class _InterruptedError(BaseException):
    pass


def interrupt_often(call: Callable[[], object], *, times: int) -> None:
    """Call again and again, until a signal's handler has raised in it; so many times."""

    def interrupt(*_: object) -> None:
        raise _InterruptedError

    draw, before = random.Random(0), signal.signal(signal.SIGPROF, interrupt)
    try:
        for _ in range(times):
            try:
                signal.setitimer(signal.ITIMER_PROF, draw.uniform(5e-5, 1.5e-3))
                for _ in range(200):  # a handler's exception may be lost, in a callback of the garbage collector
                    call()
            except _InterruptedError:
                pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
