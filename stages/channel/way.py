r"""The way to a stage on another machine: how long it takes, and what is on it, as its sender knows.

::

    sender     send r1 ..................................... heard: r1 begun, 5 ms after it had come
                  \                                        /
    receiver       `--- delay + bytes ---> r1 waits, begins

No clock is shared. The delay is half of the shortest round trip that Linux has seen on the connection; its mean also
counts what waits in queues, and the first one finding the address. What the bytes take is learned from the answers:
Linux's own ``tcpi_delivery_rate`` is that of the last few small messages where no large one has passed.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from odin.partitioner.relay import slowdown_after

__all__ = ["Sent", "Way"]

_MAX_UNDERWAY = 64
"""Most requests that are remembered: the gateway never says what it has received."""


class Sent(NamedTuple):
    """A request with which the receiver has not begun, as far as is known here."""

    cut: int
    nbytes: int
    sent_s: float


class Way:
    """What is known of a way. Times are the sender's clock; two threads use it.

    Attributes
    ----------
    delay_s
        Seconds that a small message takes.
    underway
        What was sent, and has not begun, oldest first.
    others
        Requests that wait at the receiver from other senders.
    heard
        How often the receiver has spoken.
    turn_s
        For how long the receiver expected to be busy with the request that it began last.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.underway: tuple[Sent, ...] = ()
        self.others = self.heard = 0
        self.turn_s = float("inf")
        self._byte_s = 0.0
        self._begun = 0
        self._through_s = float("-inf")  # when the last request had arrived that is known to have
        self._lock = threading.Lock()

    def transfer_s(self, nbytes: int) -> float:
        """Seconds that so many bytes occupy the way, the delay apart; none until that was seen once."""
        return nbytes * self._byte_s

    def note_sent(self, cut: int, nbytes: int, now_s: float) -> None:
        """A request leaves."""
        with self._lock:
            self.underway = (*self.underway, Sent(cut, nbytes, now_s))[-_MAX_UNDERWAY:]

    def note_heard(self, *, begun: int, since_s: float, others: int, turn_s: float, now_s: float) -> None:
        """The receiver has spoken.

        Parameters
        ----------
        begun
            Requests of this sender that it has begun with.
        since_s
            Seconds from the arrival of the last of them until it spoke.
        others
            As the attribute.
        turn_s
            For how long it expects to be busy.
        now_s
            When it was heard.
        """
        with self._lock:
            self.heard += 1
            self.others = others
            count = min(begun - self._begun, len(self.underway))
            if count <= 0:
                return
            self._begun, self.turn_s = begun, turn_s
            _, nbytes, sent_s = self.underway[count - 1]
            self.underway = self.underway[count:]
            arrived_s = now_s - self.delay_s - since_s
            took_s = max(0.0, arrived_s - self.delay_s - max(sent_s, self._through_s - self.delay_s))
            self._through_s = arrived_s
            if nbytes:
                byte_s = took_s / nbytes
                self._byte_s = slowdown_after(self._byte_s, byte_s, 1.0) if self._byte_s else byte_s
