"""Requests through a line of stages with finite buffers, exactly: one pass over the stages per request.

What stage s does with request r, as in ``stages/loop.py``: it receives and computes once the request has come and
the request before has left, waits for a slot of the next stage, and copies the result there. A slot is taken from
then until the next stage has sent its own result on. With w = receive + compute, x = send, and D[r, s] the time at
which request r has left stage s::

    D[r, s] = max( max(D[r, s-1], D[r-1, s]) + w[r, s],  D[r - slots, s+1] ) + x[s]

With A[r, s] = sum over stages up to s of w + x this is a running maximum, which is one call for all stages::

    D[r, s] - A[r, s] = max over t <= s of  max( D[r-1, t] - A[r, t-1],  D[r - slots, t+1] + x[t] - A[r, t] )

with the time of entry in place of D[r, -1] - A[r, -1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odin_lab.simulator.passing import Prepared

__all__ = ["Line"]

FloatArray = NDArray[np.float64]

_add, _subtract, _maximum, _accumulate = np.add, np.subtract, np.maximum, np.maximum.accumulate  # called often


class Line:
    """A line of stages that requests pass in order.

    Parameters
    ----------
    stages
        How many, at least 1.
    slots
        Places between neighbouring stages, at least 1, the one of the request that is computed on among them.

    Raises
    ------
    ValueError
        If there is no stage or no slot.
    """

    def __init__(self, stages: int, *, slots: int = 2) -> None:
        if stages < 1 or slots < 1:
            raise ValueError(f"{stages} stages with {slots} slots between: both are at least 1")
        self.stages, self.slots = stages, slots
        self._left_s: FloatArray = np.full((slots, stages), -np.inf)  # when requests left each stage, the latest last
        self._left_next_s = self._left_s[:, 1:]
        self._row = slots
        self._before: FloatArray = np.empty((0, stages))
        self._through = self._handed = self._before
        self._receive_s: FloatArray = np.empty(stages)
        self._send_s = self._receive_s
        self._start, self._slot = np.empty(stages), np.empty(stages - 1)
        self._handing = self._start[:-1]

    def load(self, busy_s: FloatArray, receive_s: FloatArray, send_s: FloatArray) -> None:
        """Prepare the next requests to pass.

        Parameters
        ----------
        busy_s
            Seconds that each of them is computed on by each stage, shape (requests, stages), finite.
        receive_s, send_s
            Seconds that each stage spends to receive, to send, shape (stages,).
        """
        requests = len(busy_s)
        left_s = np.empty((requests + self.slots, self.stages))
        left_s[: self.slots] = self._left_s[self._row - self.slots : self._row]
        self._left_s, self._left_next_s, self._row = left_s, left_s[:, 1:], self.slots
        work_s = busy_s + (receive_s + send_s)
        self._through = np.add.accumulate(work_s, 1)
        self._before = self._through - work_s
        self._handed = (self._through - send_s)[:, :-1]
        self._receive_s, self._send_s = receive_s, send_s

    def step(self, index: int, entry_s: float) -> float:
        """Let the loaded request ``index`` pass, which is the next one; returns when it has left the last stage."""
        row, left_s, start = self._row, self._left_s, self._start
        self._row = row + 1
        _subtract(left_s[row - 1], self._before[index], start)
        if self.stages > 1:
            slot, handing = self._slot, self._handing
            _subtract(self._left_next_s[row - self.slots], self._handed[index], slot)
            _maximum(handing, slot, out=handing)
        if start.item(0) < entry_s:
            start[0] = entry_s
        _accumulate(start, 0, None, start)
        left = left_s[row]
        _add(start, self._through[index], left)
        left_last_s: float = left.item(-1)
        return left_last_s

    def prepared(self, begin: int) -> Prepared:
        """What has been loaded, of requests from ``begin`` on, for :func:`odin_lab.simulator.passing.pass_requests`."""
        return Prepared(begin, self._left_s, self._through, self._before, self._handed)

    def passed(self, requests: int) -> None:
        """So many of the loaded requests have passed."""
        self._row += requests

    @property
    def left_s(self) -> FloatArray:
        """When the request of the last step has left each stage, shape (stages,)."""
        row: FloatArray = self._left_s[self._row - 1]
        return row

    def began_s(self, stage: int, entry_s: float) -> float:
        """When a stage began to compute on the request of the last step."""
        came_s = entry_s if stage == 0 else self._left_s.item(self._row - 1, stage - 1)
        began_s: float = max(came_s, self._left_s.item(self._row - 2, stage)) + self._receive_s.item(stage)
        return began_s

    def lengthen(self, index: int, stage: int, added_s: float, entry_s: float) -> float:
        """Take the last step again, a stage computing so much longer; returns when the request has left."""
        self._row -= 1
        self._through[index, stage:] += added_s
        self._before[index, stage + 1 :] += added_s
        self._handed[index, stage:] += added_s
        return self.step(index, entry_s)
