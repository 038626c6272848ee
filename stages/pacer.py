"""Holds a stage to a share of its device's time: after a request it pauses until it has used no more than that.

::

    share 0.5      |##r1##|......|##r2##|......|##r3##|          busy, pause
    credit          +    -      0                                share seconds per second, at most those of a window

Credit grows by ``share`` seconds in each second, up to ``share`` of a window while the stage has nothing to do, and
what the device computes is taken from it. Where it is below 0 after a request, the stage pauses until it is 0 again. So
in any stretch of time the stage uses at most ``share`` of that and of one window, and at most one request too much.

Seconds of the device are meant, not wall time: a stage that is disturbed uses less of its core, and pauses less. It
takes no privileges, and a pause uses no CPU.
"""

from __future__ import annotations

import threading
from numbers import Real
from typing import Any

__all__ = ["LEAST_SHARE", "Pacer", "check_share"]

LEAST_SHARE = 0.01
"""With less the pauses would be a hundred times as long as a request takes."""
_WINDOW_S = 0.1


def check_share(share: Any) -> float:
    """Return a share of a device's time as a number.

    Raises
    ------
    ValueError
        If it is none.
    """
    known = isinstance(share, Real) and not isinstance(share, bool)
    if not known or not LEAST_SHARE <= share <= 1:
        raise ValueError(
            f"share={share!r}; it is the largest part of each device's time that the pipeline uses: give a number from "
            f"{LEAST_SHARE} to 1, such as 0.5"
        )
    return float(share)


class Pacer:
    """Says how long to pause; a GPU stage begins with a request in another thread than it ends the one before in.

    Parameters
    ----------
    share
        Largest part of the device's time; 1 never pauses.
    window_s
        Seconds of which credit is kept.

    Examples
    --------
    >>> pacer = Pacer(0.5, window_s=0.0)
    >>> pacer.begin(10.0)
    >>> pacer.done(10.25, 0.25)  # so many seconds it has to pause now
    0.25
    >>> pacer.begin(10.5)
    >>> pacer.done(11.0, 0.125)  # it was disturbed, and had its core for a quarter of the time
    0.0
    """

    def __init__(self, share: float = 1.0, *, window_s: float = _WINDOW_S) -> None:
        self.share = check_share(share)
        self._most_s = share * window_s
        self._credit_s, self._at_s = self._most_s, 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def limits(self) -> bool:
        """Whether it ever pauses."""
        return self.share < 1

    def begin(self, now_s: float) -> None:
        """The stage begins with a request."""
        with self._lock:
            self._advance(now_s)
            self._credit_s = min(self._credit_s, self._most_s)

    def done(self, now_s: float, used_s: float) -> float:
        """The stage has done with a request, for which it had its device for so long; returns seconds to pause."""
        with self._lock:
            self._advance(now_s)
            self._credit_s -= used_s
            return self._pause_s(self._credit_s)

    def owed_s(self, end_s: float, used_s: float) -> float:
        """Seconds to pause if the stage will be done at ``end_s``, with so much used since the last pause."""
        gained_s = self.share * max(0.0, end_s - self._at_s)
        return self._pause_s(self._credit_s + gained_s - used_s)

    def _pause_s(self, credit_s: float) -> float:
        return max(0.0, -credit_s) / self.share if self.limits else 0.0

    def _advance(self, now_s: float) -> None:
        if now_s > self._at_s:
            self._credit_s += self.share * (now_s - self._at_s)
        self._at_s = now_s

    def wait(self, pause_s: float) -> None:
        """Pause; uses no CPU."""
        self._over.wait(pause_s)

    def end(self) -> None:
        """End a pause, and all later ones at once. From any thread."""
        self._over.set()
