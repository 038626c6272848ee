"""How the commands end by a signal: one behaviour for SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed).

::

    first signal     while modules are imported: the process ends at once, it has nothing yet
                     while requests flow (draining): feeding stops, what is under way is finished
                     else (starting, or waiting): Stopped is raised, and what was started is ended
    second signal    while requests are finished: Stopped is raised, which drops them
                     while all is being ended: nothing, it is being ended
    third signal     the process ends at once; the kernel ends what it started

The exit status is 128 + the signal's number: 130, 143, 129. Signals less than a tenth of a second apart count as one:
timeout(1) and closing terminals signal a process and then its whole group.

A shell without job control starts what runs in its background with SIGINT ignored. A command of ODIN handles it all the
same, from its beginning to its end. SIGHUP stays ignored if it was, which is what nohup(1) asks for.

Nothing here concerns programs that use :class:`odin.Pipeline`: their signals stay theirs, see
:mod:`odin.cluster.ray_signals`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

__all__ = ["Drain", "Signals", "Stopped", "draining", "held", "importing"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 0.1
_AGAIN_S = 0.02


class Stopped(KeyboardInterrupt):
    """A signal asks to stop. Like any KeyboardInterrupt it is no error that anyone handles on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.status = 128 + number


class Drain:
    """Whether feeding is to stop; what :func:`draining` gives."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def is_set(self) -> bool:
        """Whether a signal asked to."""
        return self._event.is_set()

    def set(self) -> None:
        """Stop feeding."""
        self._event.set()


class Signals:
    """The signals of this process from entering this until leaving it; in the main thread only, elsewhere nothing.

    Parameters
    ----------
    clock
        Seconds.
    leave
        Ends the process at once.
    """

    current: Signals | None = None
    """The one that is entered."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, leave: Callable[[int], Any] = os._exit) -> None:
        self._clock = clock
        self._leave = leave
        self._before: dict[int, Any] = {}
        self._last_s = -_SAME_S
        self._count = 0
        self._number: int | None = None
        self._state: Literal["running", "importing", "held", "draining", "ending"] = "running"
        self._drain = Drain()
        self._raised: Stopped | None = None
        self._unraisable = sys.unraisablehook

    @property
    def status(self) -> int | None:
        """Exit status that the first signal asks for; None if there was none."""
        return None if self._number is None else 128 + self._number

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                before = signal.getsignal(number)
                if number == signal.SIGHUP and before is signal.SIG_IGN:
                    continue
                self._before[number] = before
                signal.signal(number, self._on_signal)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            Signals.current = self
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            # None: what was not set from Python, and cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        if Signals.current is self:
            Signals.current = None
            sys.unraisablehook = self._unraisable
        self._before.clear()

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Import modules in this block, and start nothing: a signal ends the process at once.

        An exception that comes in the middle of an import may be dropped by whoever imports: by the import system's own
        callbacks, by compiled modules, and by those that go on without what they cannot import.
        """
        if self._state != "running":
            yield
            return
        self._state = "importing"
        try:
            yield
        finally:
            self._state = "running"

    def finish(self) -> None:
        """From here on all is being ended."""
        self._state = "ending"

    @contextmanager
    def draining(self) -> Iterator[Drain]:
        """Requests flow in this block: the first signal sets the event, a second one raises; afterwards all ends."""
        self._check()
        self._state = "draining"
        try:
            yield self._drain
        finally:
            self._state = "ending"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put the first signal off until the end of the block, which must be short and not be cut in two."""
        if self._state != "running":
            yield
            return
        self._state = "held"
        try:
            yield
        finally:
            self._state = "running"
        self._check()

    def _check(self) -> None:
        """Raise what a signal asked for meanwhile, or what somebody on the way caught and dropped."""
        if self._number is not None and self._state == "running":
            self._raise()

    def _raise(self) -> None:
        assert self._number is not None  # only after a signal
        self._state = "ending"
        self._raised = Stopped(self._number)
        raise self._raised

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now_s = self._clock()
        if now_s - self._last_s < _SAME_S:
            return
        self._last_s = now_s
        self._count += 1
        if self._number is None:
            self._number = number
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        if self._count > 2 or self._state == "importing":
            self._leave(128 + self._number)
        if self._state == "draining" and self._count == 1:
            self._drain.set()
        elif self._state in ("draining", "running"):
            self._raise()

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Try again soon where Python had to drop the exception, as in a destructor."""
        if self._raised is None or unraisable.exc_value is not self._raised:
            self._unraisable(unraisable)
            return
        self._state = "running"
        threading.Timer(_AGAIN_S, self._again).start()

    def _again(self) -> None:
        # A signal that counts for none by itself: it comes in the main thread, between two steps of it.
        self._count -= 1
        self._last_s = -_SAME_S
        signal.pthread_kill(threading.main_thread().ident or 0, self._number or signal.SIGTERM)


@contextmanager
def draining() -> Iterator[Drain]:
    """As :meth:`Signals.draining` of the command that runs; without one, signals are handled in this block alone."""
    if threading.current_thread() is not threading.main_thread():
        yield Drain()  # signals belong to the main thread
    elif Signals.current is not None:
        with Signals.current.draining() as drain:
            yield drain
    else:
        with Signals() as signals, signals.draining() as drain:
            yield drain


@contextmanager
def importing() -> Iterator[None]:
    """As :meth:`Signals.importing` of the command that runs; without one, nothing."""
    if Signals.current is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with Signals.current.importing():
        yield


@contextmanager
def held() -> Iterator[None]:
    """As :meth:`Signals.held` of the command that runs; without one, nothing."""
    if Signals.current is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with Signals.current.held():
        yield


def _leave_dead_terminal() -> None:
    """Let output to a terminal that is no more go nowhere, rather than fail whatever writes next."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
