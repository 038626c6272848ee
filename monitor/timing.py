"""One stage's timing of one request, as it travels in the request's header.

Record on the wire, little-endian: ``stage u16, first u32, last u32``, then five ``f64`` (queue, wall, cpu, run delay,
transfer; seconds), then ``last - first`` times ``f32`` (seconds per layer). Records follow one another without padding.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

__all__ = ["RequestTimeline", "StageTiming", "unpack_timings"]

_FIXED = struct.Struct("<HIIddddd")


class StageTiming(NamedTuple):
    """What one stage measured of one request.

    Attributes
    ----------
    stage
        Index of the stage in the pipeline.
    first, last
        Half-open range of layers that it ran.
    queue_s
        Seconds from the arrival of the request in the stage's channel to the start of computing.
    wall_s
        Seconds of wall-clock time spent in the layers.
    cpu_s
        Seconds of CPU time that the stage's threads used meanwhile; on a GPU stage the time between CUDA events.
    run_delay_s
        Seconds for which the computing thread was runnable but not running (Linux ``schedstat``); 0 where unknown.
    transfer_s
        Seconds spent handing the *previous* request's result to the next stage, waiting for a free slot included.
        (This request's own hand-over is not over when its header is written.)
    layer_s
        Seconds per layer, ``last - first`` of them.
    """

    stage: int
    first: int
    last: int
    queue_s: float
    wall_s: float
    cpu_s: float
    run_delay_s: float
    transfer_s: float
    layer_s: tuple[float, ...]

    def pack(self) -> bytes:
        """Encode as one wire record."""
        fixed = _FIXED.pack(*self[:8])
        return fixed + struct.pack(f"<{len(self.layer_s)}f", *self.layer_s)


class RequestTimeline(NamedTuple):
    """Everything the gateway knows of one finished request.

    ``submitted_s`` and ``completed_s`` are readings of the gateway's clock; ``latency_s`` is their difference.

    Attributes
    ----------
    submitted_s
        When it was sent to the stages: its input lay in a slot by then, and what it waited in line is before that.
    expected_s
        When it was expected to be completed, as predicted when it came to the gateway, or last when another one went
        before it; ``nan`` without a prediction. So it may lie before ``submitted_s``.
    in_time
        Whether it had a deadline, and was done before it; of several requests in one micro-batch how many were so.
    samples
        How many were computed together; 0 if that is not known, or has no meaning: a full micro-batch.
    requests
        How many requests were answered by it: more than one where they were joined. Each of these gets its timeline,
        and all but the first have 0 there, so that what they say of the stages is counted once.
    """

    request: int
    epoch: int
    submitted_s: float
    completed_s: float
    stages: tuple[StageTiming, ...]
    expected_s: float = math.nan
    in_time: bool | int = False
    samples: int = 0
    requests: int = 1

    @property
    def latency_s(self) -> float:
        """Seconds from submission to completion."""
        return self.completed_s - self.submitted_s


def unpack_timings(data: bytes) -> tuple[StageTiming, ...]:
    """Decode wire records, oldest first.

    Raises
    ------
    ValueError
        If the bytes end inside a record.
    """
    timings, offset = [], 0
    try:
        while offset < len(data):
            fixed = _FIXED.unpack_from(data, offset)
            _, first, last, *_ = fixed
            offset += _FIXED.size
            layer_s = struct.unpack_from(f"<{last - first}f", data, offset)
            offset += 4 * (last - first)
            timings.append(StageTiming._make((*fixed, layer_s)))
    except struct.error as error:
        raise ValueError(f"timing records end early: {len(data)} bytes, record at byte {offset}") from error
    return tuple(timings)
