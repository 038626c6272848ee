"""Watching a pipeline in a terminal: keys, the redrawing loop, and a panel beside other output.

Data comes from a callable, pictures from :mod:`odin.monitor.view.screen`; here they meet the terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from odin.monitor.view.fleet_view import View
from odin.monitor.view.screen import Picture, plain

__all__ = ["Controls", "Keyboard", "keyboard", "live_panel", "watch"]

Reason = Literal["quit", "interrupted", "ended"]

_ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left"}
_ARROWS |= {b"\x1bO" + code[-1:]: name for code, name in _ARROWS.items()}
_AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
_SUSPEND = "\x1a"
_PANEL_HEIGHT = 16


class Controls(Protocol):
    """What the keys do beyond quitting, and what the screen's last line says."""

    keys: str

    def press(self, key: str) -> None:
        """React to a key: a character, or ``left``, ``right``, ``up``, ``down``."""

    def status(self) -> str:
        """What to say at the right of the last line, such as ``paused``."""


class Freeze:
    """The controls of a running pipeline: p freezes the screen; the state is still updated.

    Parameters
    ----------
    next_view
        Gives the present view.
    """

    keys = "q quit   p pause"

    def __init__(self, next_view: Callable[[], View]) -> None:
        self._next_view = next_view
        self._held: View | None = None
        self._paused = False

    def __call__(self) -> View:
        """Return the present view, or the one held."""
        if not self._paused or self._held is None:
            self._held = self._next_view()
        return self._held

    def press(self, key: str) -> None:
        """Hold the picture, or let it go on."""
        if key in ("p", "P", " "):
            self._paused = not self._paused

    def status(self) -> str:
        """Tell that the picture is held."""
        return "paused" if self._paused else ""


class Keyboard:
    """Keys pressed at a terminal, without waiting for the end of a line.

    Parameters
    ----------
    descriptor
        The terminal; ``None`` if there is none, and then no key ever comes.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> list[str]:
        """Wait for keys, at most ``timeout_s`` seconds; an empty list if none came."""
        if self._descriptor is None:
            time.sleep(timeout_s)
            return []
        readable, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if not readable:
            return []
        try:
            data = os.read(self._descriptor, 256)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            self._descriptor = None
        return _split_keys(data)


def _split_keys(data: bytes) -> list[str]:
    keys = []
    while data:
        size = 3 if data[:3] in _ARROWS else 1
        keys.append(_ARROWS.get(data[:size]) or chr(data[0]))
        data = data[size:]
    return keys


@contextmanager
def keyboard(descriptor: int | None = None) -> Iterator[Keyboard]:
    """Read single keys from a terminal, and give it back as it was.

    Ctrl-C remains an interrupt; Ctrl-Z becomes a key, so that the screen can be left in order before stopping.

    Parameters
    ----------
    descriptor
        The terminal; default: standard input. Anything else than a terminal of which this process is in the
        foreground has no keys.
    """
    try:
        number = sys.stdin.fileno() if descriptor is None else descriptor
        usable = os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no standard input at all
        usable = False
    if not usable:
        yield Keyboard(None)
        return
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        modes = termios.tcgetattr(number)
        modes[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(number, termios.TCSANOW, modes)
        yield Keyboard(number)
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(number, termios.TCSADRAIN, before)


def watch(
    next_view: Callable[[], View],
    console: Console,
    *,
    refresh_hz: float = 4.0,
    controls: Controls | None = None,
) -> Reason:
    """Show a pipeline on the whole terminal until q, Ctrl-C, or the end of the run.

    Without a terminal that can be drawn on, new events are printed line by line instead.

    Parameters
    ----------
    next_view
        Gives the present view; called once per picture. What it raises ends the screen first.
    console
        Where to draw.
    refresh_hz
        Pictures per second.
    controls
        What other keys do; default: p holds the picture.

    Returns
    -------
    str
        ``"quit"`` by key, ``"interrupted"`` by Ctrl-C, ``"ended"`` because the run did. Then the last picture is left
        on the terminal as plain text.
    """
    freeze = None if controls else Freeze(next_view)
    source, chosen = (freeze or next_view), (controls or freeze)
    assert chosen is not None
    drawable = console.is_terminal and not console.is_dumb_terminal
    try:
        with _ended_by_signal():
            while (ending := (_screen if drawable else _lines)(source, console, chosen, 1 / refresh_hz)) == "suspended":
                os.killpg(os.getpgrp(), signal.SIGTSTP)
    except KeyboardInterrupt:
        return "interrupted"
    if ending == "ended":
        view = source()
        if drawable:
            console.print(plain(view, width=console.width, ascii_only=_ascii_only(console)), **_AS_IT_IS)
        if drawable or not any(event.kind == "end" for event in view.events):
            console.print(f"ended: {view.ended}", **_AS_IT_IS)
        return "ended"
    return "quit"


def _screen(source: Callable[[], View], console: Console, controls: Controls, period_s: float) -> str:
    """Draw on the alternate screen until something ends it."""
    with keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while (view := source()).ended is None:
            live.update(Picture(view, controls.keys, controls.status()), refresh=True)
            if ending := _press_all(keys.wait(period_s), controls):
                return ending
    return "ended"


def _lines(source: Callable[[], View], console: Console, controls: Controls, period_s: float) -> str:
    """Print each new event on a line of its own until something ends it."""
    told = 0
    with keyboard() as keys:
        while True:
            view = source()
            fresh = view.event_count - told
            for event in view.events[-fresh:] if fresh > 0 else ():
                text = "".join(character if character.isprintable() else "?" for character in event.text)
                console.print(f"{event.at_s:9.1f} s  {text}", **_AS_IT_IS)
            told = view.event_count
            if view.ended is not None:
                return "ended"
            if ending := _press_all(keys.wait(period_s), controls):
                return ending


def _press_all(keys: list[str], controls: Controls) -> str:
    for key in keys:
        if key in ("q", "Q"):
            return "quit"
        if key == _SUSPEND:
            return "suspended"
        controls.press(key)
    return ""


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM into an orderly exit, so that the terminal is given back; unless the program handles it itself."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


@contextmanager
def live_panel(
    next_view: Callable[[], View],
    console: Console,
    *,
    refresh_hz: float = 2.0,
    height: int | None = None,
    transient: bool = True,
) -> Iterator[None]:
    """Show a pipeline below what else is printed, redrawn by a thread until the block is left.

    Without a terminal that can be drawn on, nothing is shown. A view that cannot be had leaves the last picture.

    Parameters
    ----------
    next_view
        Gives the present view; called from the thread.
    console
        Where to draw; print to it (or to standard output) meanwhile and it appears above.
    refresh_hz
        Pictures per second.
    height
        Lines; default: half of the terminal's, at least 16; fewer if the terminal has fewer.
    transient
        Take the panel away at the end.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    last: list[RenderableType] = [""]

    def picture() -> RenderableType:
        with contextlib.suppress(Exception):  # a thread of the display must not end what it displays
            most = height or max(_PANEL_HEIGHT, console.height // 2)
            last[0] = Picture(next_view(), height=max(1, min(most, console.height - 2)))
        return last[0]

    with Live(console=console, get_renderable=picture, refresh_per_second=refresh_hz, transient=transient):
        yield
