"""Faults outside the data path: each kind is reported once, then counted; serving continues."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Literal

from odin.control.users_code import describe, where_raised
from odin.monitor.events import Event, Fault

__all__ = ["Faults"]

_MOST_KINDS = 200
"""Most kinds that are distinguished: a program may raise a new exception class for each request."""


class Faults:
    """Reports each kind of fault once, by a warning and an event.

    A kind is a part of the system and the class of what it raised. Nothing here raises, whatever the warnings filter,
    an exception's own ``__repr__`` or the events' takers do.

    Parameters
    ----------
    emit
        Takes the events.
    clock
        Monotonic seconds.
    """

    def __init__(self, emit: Callable[[Event], None], *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._emit = emit
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._ended = False

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Number of faults by part and exception class."""
        with self._lock:
            return dict(self._counts)

    def tell(
        self,
        part: str,
        error: BaseException | str,
        then: str,
        *,
        kind: str = "",
        repeat: Literal["", "event", "both"] = "",
        place: str = "",
        silent: bool = False,
    ) -> None:
        """Take one fault.

        Parameters
        ----------
        part
            What failed, such as ``on_event``.
        error
            What it raised, or what is wrong with it.
        then
            What happens now, for the user: ``serving goes on``.
        kind
            Tells texts of one part apart; an exception's is its class.
        repeat
            What is given again for each further fault of this kind, where there are few: the event, or both.
        place
            Where a text's fault happened, as :func:`odin.control.users_code.where_raised` gives it; an exception's is
            known.
        silent
            Another event tells it: give only the warning.
        """
        key = (part, kind if isinstance(error, str) else type(error).__name__)
        with self._lock:
            if key not in self._counts and len(self._counts) >= _MOST_KINDS:
                key = ("other parts", "")
            self._counts[key] = count = self._counts.get(key, 0) + 1
        if not isinstance(error, str):
            place = place or where_raised(error)
            error = f"raised {describe(error)}"
        text = f"{error}; {then}{place}"
        if count == 1 or repeat == "both":
            _warn(f"{part}{': ' if kind else ' '}{text}")
        if not silent and (count == 1 or repeat):
            with contextlib.suppress(BaseException):
                self._emit(Fault(self._clock(), part, text, count))

    def tell_again(self) -> None:
        """Report, at the end, the number of each repeated fault. Only the first call has an effect."""
        with self._lock:
            counts, self._ended = {} if self._ended else dict(self._counts), True
        for (part, kind), count in counts.items():
            if count > 1:
                with contextlib.suppress(BaseException):
                    self._emit(Fault(self._clock(), part, f"{kind or 'the same'}: {count} times in all", count))


def _warn(text: str) -> None:
    try:
        warnings.warn(text, stacklevel=2)
    except BaseException:  # warnings are errors here; in this thread nobody would see it
        with contextlib.suppress(BaseException):
            print(f"odin: {text}", file=sys.stderr)
