"""``odin replay``: play a finished run's event log in the same screen as a running pipeline.

Exit status: 0; 2 for wrong usage or a file that is no log; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from odin.monitor.eventlog import read_log
from odin.monitor.events import Event
from odin.monitor.view.builder import PipelineView, ViewBuilder
from odin.monitor.view.screen import plain, plain_width
from odin.monitor.view.terminal import watch

__all__ = ["Player", "add_parser", "run"]

_JUMP_S = 10.0
_FASTEST = 1024.0


class Player:
    """Plays a log: at each call the view as far as the run has got by then.

    Parameters
    ----------
    path
        The log.
    speed
        Seconds of the run per second of the clock.
    clock
        Seconds.

    Raises
    ------
    ValueError
        If the file is no log.
    """

    keys = "q quit   space pause   left/right 10 s   up/down speed"

    def __init__(self, path: Path, *, speed: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path = path
        self._speed = speed
        self._clock = clock
        self._paused = False
        self._rewind()
        self._seen_s = clock()

    def _rewind(self) -> None:
        self._notes: list[str] = []
        self._events: Iterator[Event] = read_log(self._path, on_note=self._notes.append)
        self._builder = ViewBuilder()
        with self._naming_the_file():
            first = next(self._events)
            self._builder.apply(first)
            self._start_s = self._last_s = first.at_s
            self._position_s = 0.0
            self._next: Event | None = next(self._events, None)

    def advance(self, by_s: float) -> None:
        """Go on in the run; not beyond its end."""
        self._position_s += by_s
        with self._naming_the_file():
            while self._next is not None and self._next.at_s <= self._start_s + self._position_s:
                self._builder.apply(self._next)
                self._last_s = max(self._last_s, self._next.at_s)
                self._next = next(self._events, None)
        if self._next is None:
            self._position_s = min(self._position_s, self._last_s - self._start_s)

    def view(self) -> PipelineView:
        """How the run looks at the present position; it has ended where the log ends."""
        with self._naming_the_file():
            view = self._builder.view(self._start_s + self._position_s)
        if self._next is None and view.ended is None:
            why = "; ".join(self._notes) or "the run was killed, or goes on"
            view = msgspec.structs.replace(view, ended=f"the log ends without the run's end: {why}")
        return view

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            told = str(error)
            raise ValueError(told if str(self._path) in told else f"{self._path}: {told}") from error

    def __call__(self) -> PipelineView:
        """Advance by the time that has passed, and show."""
        now_s = self._clock()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        if not self._paused:
            self.advance(passed_s * self._speed)
        return self.view()

    def press(self, key: str) -> None:
        """Pause, jump, or change the speed."""
        if key in (" ", "p", "P"):
            self._paused = not self._paused
        elif key == "right":
            self.advance(_JUMP_S)
        elif key == "left":
            target_s = max(0.0, self._position_s - _JUMP_S)
            self._rewind()
            self.advance(target_s)
        elif key in ("up", "down"):
            faster = self._speed * (2.0 if key == "up" else 0.5)
            self._speed = min(_FASTEST, max(1 / _FASTEST, faster))

    def status(self) -> str:
        """The speed, and whether it is paused."""
        return f"{'paused   ' if self._paused else ''}replay x{self._speed:g}"


def add_parser(subparsers: Any) -> None:
    """Add ``odin replay`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="show a finished run again, from its event log",
        description="Play the event log of a finished run in the screen of odin top.",
        epilog="Keys: q quits, space pauses, left and right jump 10 s, up and down change the speed.",
    )
    parser.add_argument("log", metavar="LOG", type=Path, help="event log of a run")
    parser.add_argument(
        "--speed", type=_positive, default=1.0, metavar="X", help="speed relative to the recorded run (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="print the final state, or that at --at, as plain text")
    parser.add_argument("--json", action="store_true", help="print that state as JSON")
    parser.add_argument(
        "--at", type=_seconds, metavar="SECONDS", help="begin with, or print, the state so long after the start"
    )
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns of the screen (default: the terminal's, or 100)"
    )
    parser.add_argument(
        "--height", type=int, metavar="N", help="lines of the screen (default: the terminal's); not with --once"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    for name in ("width", "height"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= 10_000:
            raise ValueError(f"--{name} {value}: give a number of cells from 1 to 10000")
    player = Player(arguments.log, speed=arguments.speed)
    if arguments.once or arguments.json:
        player.advance(math.inf if arguments.at is None else arguments.at)
        view = player.view()
        if arguments.json:
            print(view.to_json())
        else:
            ascii_only = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
            print(plain(view, width=arguments.width or plain_width(), ascii_only=ascii_only), end="")
        return 0
    if arguments.at is not None:
        player.advance(arguments.at)
    watch(player, Console(width=arguments.width, height=arguments.height), controls=player)
    return 0


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number <= _FASTEST:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {_FASTEST:g}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds >= 0")
    return number
