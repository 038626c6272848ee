"""The stages as the gateway sees them now: how fast each is, and when it will be done with what it has.

Where all stages take from one queue they say so themselves, in shared memory, after every layer. Elsewhere it is
worked out from when requests were sent and what the last ones took.

What is learned is kept as if all micro-batches were full; a prediction says of how many samples it is
(:mod:`odin.monitor.samples`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from odin.monitor.samples import SampleTimes
from odin.monitor.timing import RequestTimeline
from odin.partitioner.exits import Exits, LineExits, SharedExits, left_line
from odin.partitioner.relay import Windows, idle_slowdown, is_expected_at
from odin.stages.channel.shared_queue import QueueWords

__all__ = ["Conditions", "Sent"]

_WEIGHT = 0.3
"""Of the latest request in a stage's slowdown, as in :func:`odin.partitioner.relay.slowdown_after`."""
_FORGETS = 10.0
"""A slowdown that is not seen any more is forgotten so many times more slowly than by the stages, which try whether it
has gone: most loads last longer than a pause between two requests."""
_LEAST_S, _LEAST_SLOWDOWN = 1e-9, 1e-3


class Sent(NamedTuple):
    """A micro-batch that the stages have: when it was sent, and its samples (0: not known, taken to be full)."""

    at_s: float
    samples: int = 0


class Conditions:
    """What is known of the stages.

    Parameters
    ----------
    baseline_s
        Seconds of each layer on each stage's device with nothing else running, shape (stages, layers).
    queue
        The words of the stages that take from one queue.
    single_s, batch
        Seconds as ``baseline_s``, which are of ``batch`` samples, for one sample; None if those are not known.
    share
        Largest part of its device's time that each stage uses; beyond it they pause between requests.

    Attributes
    ----------
    live
        Indices of the stages that serve; those that are lost count for nothing.
    """

    def __init__(
        self,
        baseline_s: Sequence[Sequence[float]],
        queue: QueueWords | None = None,
        *,
        share: float = 1.0,
        single_s: Sequence[Sequence[float]] | None = None,
        batch: int = 1,
    ) -> None:
        self._share = share
        self._times = SampleTimes(baseline_s, single_s, batch=batch)
        self._chain_s = [max(row.behind_s[0], _LEAST_S) for row in self._times.full]
        self._queue = queue
        self.live: Sequence[int] = range(len(self._chain_s))
        self._slowdown = [1.0] * len(self._chain_s)
        self._seen_s: list[float] = [-math.inf] * len(self._chain_s)
        self._part_s: list[float] | None = None  # of a request on each stage, where windows leave that open
        self._left_s = [-math.inf] * len(self._chain_s)

    def answered(self, timeline: RequestTimeline) -> None:
        """Learn from a request how slow each stage is, and when it was done with it."""
        left_s = timeline.completed_s
        part_s = [0.0] * len(self._chain_s)
        for timing, full in zip(reversed(timeline.stages), reversed(self._times.as_full(timeline).stages), strict=True):
            stage = timing.stage
            baseline_s = self._times.full[stage].between_s(timing.first, timing.last)
            if baseline_s > 0:
                self._slowdown[stage] += _WEIGHT * (full.wall_s / baseline_s - self._slowdown[stage])
                self._seen_s[stage] = left_s
            part_s[stage] = full.wall_s
            self._left_s[stage] = max(self._left_s[stage], left_s)
            left_s -= timing.wall_s + timing.queue_s
        known_s = self._part_s or part_s
        self._part_s = [was_s + _WEIGHT * (now_s - was_s) for was_s, now_s in zip(known_s, part_s, strict=True)]

    def shared(self, now_s: float, sent: Sequence[Sent] = (), *, samples: int = 0) -> Exits:
        """The stages while all take from one queue; for others of ``samples`` each, with what they were sent."""
        queue, free_s, chain_s = self._queue, [], []
        assert queue is not None
        told = queue.told()
        for stage in self.live:
            since_s, at_s, slowdown = told[stage]
            alone_s = self._chain_s[stage]
            if since_s < math.inf:
                idle_s = (now_s - since_s) / _FORGETS
                slowdown, at_s = idle_slowdown(slowdown, idle_s=idle_s, chain_s=alone_s), now_s
            elif at_s == math.inf:  # it has said nothing yet
                at_s = now_s
            else:
                at_s = is_expected_at(at_s, now_s)
            free_s.append(at_s)
            chain_s.append(max(slowdown, _LEAST_SLOWDOWN) * alone_s * self._times.share(stage, samples))
        if not free_s:
            return _Never()
        used_s = [self._chain_s[stage] * self._times.share(stage, samples) for stage in self.live]
        turn_s = self._turns_s(chain_s, used_s)
        return SharedExits(free_s, chain_s, self._waiting(queue.waiting, sent, samples), turn_s=turn_s)

    def _turns_s(self, takes_s: Sequence[float], used_s: Iterable[float]) -> Sequence[float]:
        """Seconds from one request to the next, where a stage pauses between them; nothing where none does."""
        if self._share >= 1:
            return ()
        return [max(own_s, computes_s / self._share) for own_s, computes_s in zip(takes_s, used_s, strict=True)]

    def _waiting(self, waiting: int, sent: Sequence[Sent], samples: int) -> int:
        """What no stage has taken, told in micro-batches of so many samples."""
        untaken = sent[-waiting:] if waiting else ()  # they are taken in the order of sending
        if all(one.samples == samples for one in untaken):
            return waiting
        stage = self.live[0]
        shares = math.fsum(self._times.share(stage, one.samples) for one in untaken)
        return math.ceil(waiting / len(untaken) * shares / self._times.share(stage, samples) - 1e-9)

    def in_line(self, now_s: float, windows: Windows, sent: Sequence[Sent], *, samples: int = 0) -> Exits:
        """The stages while requests pass them in order; for others of ``samples`` each, with those under way, oldest
        first.
        """
        full_s = self._stage_s(now_s, windows)
        by_samples = {count: self._of(full_s, count) for count in {samples, *(one.samples for one in sent)}}
        stage_s, turn_s = by_samples[samples]
        begin_s = self._left_s
        if turn_s:
            begin_s = [at_s + turn - own for at_s, turn, own in zip(begin_s, turn_s, stage_s, strict=True)]
        left_s = left_line(begin_s, ((one.at_s, *by_samples[one.samples]) for one in sent), now_s=now_s)
        return LineExits(now_s, left_s, stage_s, turn_s)

    def _of(self, full_s: Sequence[float], samples: int) -> tuple[Sequence[float], Sequence[float]]:
        """Seconds on each stage of so many samples, and from one such request to the next."""
        stage_s = [own_s * self._times.share(stage, samples) for stage, own_s in enumerate(full_s)]
        # What a stage computes is at most what it takes now, and disturbed it takes longer than it computes.
        used_s = [own_s / max(1.0, slowdown) for own_s, slowdown in zip(stage_s, self._slowdown, strict=True)]
        return stage_s, self._turns_s(stage_s, used_s)

    def _stage_s(self, now_s: float, windows: Windows) -> list[float]:
        """Seconds of a full micro-batch on each stage at its present speed."""
        if windows.plan is None and self._part_s is not None:
            return self._part_s
        stage_s, cut, count = [0.0] * len(self._chain_s), 0, len(windows)
        stages = self.live if len(self.live) == count else range(count)
        for index, (stage, (first, last)) in enumerate(zip(stages, windows, strict=True)):
            # Where nothing is known yet of where requests will change hands: in equal parts of each window.
            end = max(cut, first + (last - first) * (index + 1) // count)
            row, idle_s = self._times.full[stage], max(0.0, now_s - self._seen_s[stage])
            slowdown = idle_slowdown(self._slowdown[stage], idle_s=idle_s / _FORGETS, chain_s=self._chain_s[stage])
            stage_s[stage], cut = slowdown * row.between_s(cut, end), end
        return stage_s


class _Never:
    """No stage is left."""

    def exit_s(self, ahead: int) -> float:
        """Never."""
        return math.inf

    begin_s = exit_s
