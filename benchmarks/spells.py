"""A load that comes and goes at moments drawn beforehand, so that everybody measured gets the same."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from odin.monitor.events import LoadChanged
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load

__all__ = ["Spell", "coming_and_going", "default_load", "spells"]


class Spell(NamedTuple):
    """Seconds from the beginning between which the load runs."""

    begin_s: float
    end_s: float


def spells(seconds: float, *, on_s: float, off_s: float, seed: int) -> list[Spell]:
    """Spells within ``seconds``; each is half to one and a half of ``on_s`` long, after ``off_s`` likewise.

    Examples
    --------
    >>> [(round(a, 1), round(b, 1)) for a, b in spells(8.0, on_s=2.0, off_s=2.0, seed=1)]
    [(1.3, 4.0), (6.5, 8.0)]
    """
    found: list[Spell] = []
    draw, at_s = random.Random(seed), 0.0
    while True:
        begin_s = at_s + off_s * draw.uniform(0.5, 1.5)
        if begin_s >= seconds:
            return found
        at_s = min(begin_s + on_s * draw.uniform(0.5, 1.5), seconds)
        found.append(Spell(begin_s, at_s))


def default_load(core: int) -> str:
    """Text of a load on one core: stress-ng if it is installed, otherwise ODIN's own."""
    return f"program@cpu:{core} stress-ng --cpu 1" if shutil.which("stress-ng") else f"cpu@cpu:{core}"


@contextmanager
def coming_and_going(
    load: Load | None, plan: Sequence[Spell], *, on_event: Callable[[LoadChanged], None] = lambda event: None
) -> Iterator[None]:
    """Run a load in its spells, from entering this on, from a thread of its own; it has ended when this is left.

    Nothing runs without a load. Errors of starting it are raised on leaving.
    """
    if load is None:
        yield
        return
    over, problems = threading.Event(), []

    def play() -> None:
        begin_s = time.perf_counter()
        try:
            with Injector(on_event=on_event) as injector:
                for spell in plan:
                    if over.wait(max(0.0, begin_s + spell.begin_s - time.perf_counter())):
                        return
                    handle = injector.start(load)
                    over.wait(max(0.0, begin_s + spell.end_s - time.perf_counter()))
                    handle.stop()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=play, name="benchmark-load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if problems:
        raise problems[0]
