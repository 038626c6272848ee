"""Many requests through the line at once: the engine's loop over requests, as a loop over numbers.

:func:`pass_requests` does what :class:`odin_lab.simulator.engine.Engine` does with one request after the other, to the
bit, as long as nothing happens between them: the plan stays, and devices are in the conditions they were prepared for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gate", "Prepared", "pass_requests"]

FloatArray = NDArray[np.float64]


class Gate(NamedTuple):
    """When requests come and go, by request, and how they are let in; see the engine."""

    coming_s: FloatArray
    """Empty in a closed loop."""
    clients: int
    in_flight: int
    entering_s: float
    leaving_s: float
    arrived_s: FloatArray
    submitted_s: FloatArray
    finished_s: FloatArray


class Prepared(NamedTuple):
    """What :class:`odin_lab.simulator.queueing.Line` has prepared of the requests from ``begin`` on."""

    begin: int
    left_s: FloatArray
    through: FloatArray
    before: FloatArray
    handed: FloatArray


def pass_requests(
    request: int,
    end: int,
    gate: Gate,
    prepared: Prepared,
    latest_s: float,
    next_edge_s: float,
    next_change_s: float,
    pending_s: FloatArray,
    pending_devices: NDArray[np.int64],
) -> tuple[int, float]:
    """Let requests from ``request`` to ``end`` pass, until one meets other conditions.

    Parameters
    ----------
    latest_s
        When the request before was submitted.
    next_edge_s, next_change_s, pending_s, pending_devices
        When conditions change for who is told of them, and for the next device; changes that some device has not
        come to yet, and these devices.

    Returns
    -------
    tuple
        The request that is not served yet, and when the one before it was submitted.
    """
    begin, left_s, through, before, handed = prepared
    stages = through.shape[1]
    slots = left_s.shape[0] - through.shape[0]
    while request < end:
        if len(gate.coming_s):
            arrives_s = gate.coming_s[request]
        else:
            arrives_s = gate.finished_s[request - gate.clients] if request >= gate.clients else 0.0
        at_s = max(arrives_s, latest_s)
        if request >= gate.in_flight:
            at_s = max(at_s, gate.finished_s[request - gate.in_flight])
        if at_s >= next_edge_s:
            break
        index = request - begin
        row = index + slots
        start = at_s + gate.entering_s
        for k in range(stages):
            start = max(start, left_s[row - 1, k] - before[index, k])
            if k + 1 < stages:
                start = max(start, left_s[row - slots, k + 1] - handed[index, k])
            left_s[row, k] = start + through[index, k]
        if left_s[row, stages - 1] > next_change_s:
            break
        meets = False
        for number in range(len(pending_s)):
            meets |= left_s[row, pending_devices[number]] > pending_s[number]
        if meets:
            break
        gate.arrived_s[request], gate.submitted_s[request] = arrives_s, at_s
        gate.finished_s[request] = left_s[row, stages - 1] + gate.leaving_s
        latest_s = at_s
        request += 1
    return request, latest_s
