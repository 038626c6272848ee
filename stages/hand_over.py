"""One stage's part in the relay: between two layers it decides whether to hand over, and says when it will be free.

The decision itself is in :mod:`odin.partitioner.relay`; here are the words that it reads and writes
(:mod:`odin.stages.channel.readiness`)::

    begin (a request is there)                 busy, free at ...
    passes_on (before the first layer)         looks at later stages -> stop here, if this one is very slow
    at_cut (between two layers)                looks at later stages -> stop here, or free at ... and go on
    pause (its share of the device is used)    still busy, free at the end of the pause
    rest (nothing to do)                       idle since now
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from odin.monitor.samples import SampleTimes, StageRow
from odin.partitioner.relay import (
    Windows,
    free_at,
    idle_slowdown,
    is_better,
    is_done_sooner,
    is_expected_at,
    is_left_to_others,
    is_much_sooner,
    slowdown_after,
)
from odin.stages.channel.link import Sender
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, SLOWDOWN, Readiness, waiting
from odin.stages.channel.shared_queue import QueueWords, StageWords
from odin.stages.company import Company
from odin.stages.pacer import Pacer
from odin.stages.takers import Taker, make_taker

__all__ = ["HandOver", "Reach", "Takers"]

_GIVES_WAY_S = 0.0005
"""So long is a request left to idle stages while another pipeline's stage computes here: who has a core for itself
takes it at once."""
_BELIEVED_S = 0.005
"""After so long a stage that was to send to this one, or to take from the queue, may hang."""

Takers = Sequence[Sequence[Taker]]
"""By cut, the later stages that may take a request there."""


class Reach(NamedTuple):
    """What a stage may do with requests under given windows.

    Attributes
    ----------
    first, last
        Half-open range of layers that it may have to run.
    takers
        Later stages that may take a request from it, by cut; their indices.
    free
        Whether stages decide where to hand over: so every one of them tells how fast it is, the last one too.
    shares
        Whether all stages may take new requests from one queue.
    """

    first: int
    last: int
    takers: tuple[tuple[int, ...], ...]
    free: bool
    shares: bool = False

    @classmethod
    def of(cls, windows: Windows, stage: int, connected: Sequence[int], stages: Sequence[int] | None = None) -> Reach:
        """Reach of a stage that may send to these later ones, where ``stages`` tells whose each row of the windows is.

        Without, they are those of all stages in order.
        """
        stages = range(len(windows)) if stages is None else stages
        row = stages.index(stage)
        first, last = windows.range_of(row)
        takers = []
        for cut in range(windows.layer_count):
            able = [stages[later] for later in windows.takers(row, cut)]
            # One that it cannot reach is reached through the next, which has no layers of its own then.
            takers.append(tuple(k for k in able if k in connected) or tuple(connected[:1] if able else ()))
        return cls(first, last, tuple(takers), windows.plan is None, windows.all_begin)


class HandOver:
    """What one stage knows and tells.

    Parameters
    ----------
    index
        The stage's.
    baseline_s
        Seconds of each layer on each stage's device with nothing else running, shape (stages, layers).
    cost_s
        Seconds to hand over at each cut, shape (layers + 1,).
    cut_nbytes
        Bytes that cross each cut.
    readiness
        The stage's own words.
    later
        Channels to later stages.
    single_s, batch
        Seconds as ``baseline_s``, which are of ``batch`` samples, for one sample; empty if those are not known.
    pacer
        Of the stage's loop: pauses are part of when it will be free.
    company
        Stages of other pipelines on the same cores.
    """

    def __init__(
        self,
        index: int,
        *,
        baseline_s: Sequence[Sequence[float]],
        cost_s: Sequence[float],
        cut_nbytes: Sequence[int],
        readiness: Readiness,
        later: Mapping[int, Sender],
        single_s: Sequence[Sequence[float]] = (),
        batch: int = 1,
        pacer: Pacer | None = None,
        company: Company | None = None,
    ) -> None:
        self._pacer, self._company = pacer or Pacer(), company
        self._index, self._words = index, readiness.words
        self._times = SampleTimes(baseline_s, single_s, batch=batch)
        self._rows: Sequence[StageRow] = self._times.full  # of the request that is here
        self._baseline_s, self._behind_s = self._rows[index]
        self._cost_s, self._cut_nbytes = [float(cut_s) for cut_s in cost_s], cut_nbytes
        self._saves_s = [here_s - next_s for here_s, next_s in itertools.pairwise(self._cost_s)]
        self._fastest: dict[int, list[float]] = {}  # by samples, seconds from each cut on
        self._takers = {stage: make_taker(stage, sender, self._times.full[stage]) for stage, sender in later.items()}
        self._chain_s = [row.behind_s[0] for row in self._times.full]
        self._queue: QueueWords | None = None
        self._shares = False
        self._apart = False  # takes no new requests: nothing is to be left to it
        self._cut_takers: Takers = ()
        self._first = self._last = 0
        self._slowdown = 1.0
        self._layer_began_s = 0.0
        self._chosen: int | None = None

    def takers_of(self, reach: Reach) -> Takers:
        """Resolve a reach once, not per request."""
        return [tuple(self._takers[stage] for stage in stages) for stages in reach.takers]

    def set_taker(self, stage: int, sender: Sender) -> None:
        """There is a new channel to a later stage, which :meth:`takers_of` resolves to from now on."""
        taker = make_taker(stage, sender, self._times.full[stage])
        self._takers = {**self._takers, stage: taker}

    def reachable(self, stages: Collection[int]) -> list[int]:
        """Those of some later stages that requests may be handed over to: on this machine, and the next one, if it is
        on another machine.
        """
        takers, later = self._takers, sorted(stage for stage in stages if stage > self._index)
        return [
            stage
            for stage in later
            if (taker := takers.get(stage)) is not None and (taker.link.way is None or stage == later[0])
        ]

    def least_s(self, reach: Reach, cut: int, samples: int = 0) -> float:
        """Seconds that a request at a cut still takes at least, with nothing disturbed: its layers here if windows are
        a plan, and else each layer on whichever stage is fastest.
        """
        rows = self._times.at(samples)
        if not reach.free:
            return rows[self._index].between_s(cut, reach.last)
        least_s = self._fastest.get(samples)
        if least_s is None:
            fastest_s = [min(seconds) for seconds in zip(*(row.layer_s for row in rows[self._index :]), strict=True)]
            least_s = self._fastest[samples] = StageRow.of(fastest_s).behind_s
        return least_s[cut]

    def share(self, queue: QueueWords) -> None:
        """Take new requests from a queue that all stages take from, where windows allow it."""
        self._queue = queue

    def set_apart(self, apart: bool) -> None:
        """Take no part in what is new from now on, or take part again."""
        if apart != self._apart:
            self._apart = apart
            if self._words[IDLE_SINCE_S] < math.inf:
                self.rest(time.perf_counter())

    def leaves(self, waited_s: float) -> bool:
        """Whether to leave what waits in the queue: another request is on its way here, or others are much faster, or
        have their core for themselves.

        After a moment nobody is believed to be about to send or to take any more.
        """
        believed = waited_s < _BELIEVED_S
        if believed and waiting(self._words) > 0:
            return True
        queue = self._queue
        if queue is None:
            return False
        now_s, others, idle_count = time.perf_counter(), [], 0
        for stage, (since_s, free_s, slowdown) in enumerate(queue.told()):
            chain_s, idle = self._chain_s[stage], since_s < math.inf
            if idle:
                slowdown = idle_slowdown(slowdown, idle_s=now_s - since_s, chain_s=chain_s)
            if stage == self._index:
                own_s = (slowdown if idle else self._slowdown) * chain_s
            elif not idle or believed:
                idle_count += idle
                others.append((idle, 0.0 if idle else is_expected_at(free_s, now_s) - now_s, slowdown * chain_s))
        count = queue.waiting
        if is_left_to_others(own_s, others, waiting=count):
            return True
        if self._company is None or waited_s > _GIVES_WAY_S:
            return False
        return idle_count >= count > 0 and self._company.beside

    def begin(
        self, cut_takers: Takers, first: int, last: int, now_s: float, *, shares: bool = False, samples: int = 0
    ) -> None:
        """Take a request at cut ``first`` that may stay up to cut ``last``, while all may take new ones or not."""
        words = self._words
        self._rows = self._times.at(samples)
        self._baseline_s, self._behind_s = self._rows[self._index]
        since_s = words[IDLE_SINCE_S]
        if since_s < math.inf:
            self._slowdown = idle_slowdown(self._slowdown, idle_s=now_s - since_s, chain_s=self._chain_s[self._index])
            words[IDLE_SINCE_S] = math.inf
        if self._company is not None:
            self._company.computes(True)
        self._shares = shares and self._queue is not None
        self._cut_takers, self._first, self._last = cut_takers, first, last
        self._layer_began_s = now_s
        self._chosen = None
        if first < last:
            self._publish(first, now_s)

    def passes_on(self, cut: int, now_s: float) -> bool:
        """Whether to hand over to ``target`` at once, with nothing done for the request: another is much faster."""
        if self._shares:
            return self._finds_sooner(cut, now_s)
        layer_s = self._slowdown * self._baseline_s[cut]
        for taker in self._cut_takers[cut]:
            if taker.link.usable and not taker.waits(now_s):
                busy = waiting(self._words) > 0
                idle, free_s, its_layer_s = self._seen(taker, cut, now_s, busy=busy)
                if is_much_sooner(now_s, idle, free_s, its_layer_s, layer_s) and taker.link.has_place:
                    self._chosen = taker.stage
                    return True
        return False

    def rest(self, now_s: float) -> None:
        """Nothing is to be done."""
        self._words[FREE_S] = self._words[IDLE_SINCE_S] = now_s
        if self._company is not None:
            self._company.computes(False)
        if self._queue is not None:
            free_s = math.inf if self._apart else now_s
            self._queue.tell(self._index, StageWords(free_s, free_s, self._slowdown))

    def pause(self, until_s: float) -> None:
        """Nothing is done until then, though something may wait."""
        self._words[FREE_S] = until_s
        if self._queue is not None:
            self._queue.tell(self._index, StageWords(math.inf, math.inf if self._apart else until_s, self._slowdown))

    def at_cut(self, cut: int, now_s: float) -> bool:
        """Before layer ``cut``, with the one before it just done: whether to stop here, and hand over to ``target``."""
        self._layer_done(cut - 1, now_s)
        takers = self._cut_takers[cut]
        if self._shares:
            if takers and self._finds_sooner(cut, now_s):
                return True
        elif takers:
            slowdown, behind_s = self._slowdown, self._behind_s
            busy = waiting(self._words) > 0
            layer_s = slowdown * self._baseline_s[cut]
            rest_s = slowdown * (behind_s[cut] - behind_s[self._last])
            for taker in takers:
                if not taker.link.usable or taker.waits(now_s):
                    continue
                idle, free_s, its_layer_s = self._seen(taker, cut, now_s, busy=busy)
                if (
                    is_better(
                        now_s, idle, free_s, its_layer_s, busy, layer_s, rest_s, self._cost_s[cut], self._saves_s[cut]
                    )
                    and taker.link.has_place
                ):
                    self._chosen = taker.stage
                    return True
        self._publish(cut, now_s)
        return False

    def _seen(self, taker: Taker, cut: int, now_s: float, *, busy: bool) -> tuple[bool, float, float]:
        """See :meth:`Taker.seen`, of the request that is here."""
        return taker.seen(cut, self._cut_nbytes[cut], now_s, busy=busy, row=self._rows[taker.stage])

    def _finds_sooner(self, cut: int, now_s: float) -> bool:
        """Whether a later stage would be done with the rest so much sooner that it gets it."""
        queue, last, slowdown = self._queue, self._last, self._slowdown
        assert queue is not None
        layer_s, rest_s = slowdown * self._baseline_s[cut], slowdown * (self._behind_s[cut] - self._behind_s[last])
        for taker in self._cut_takers[cut]:
            if not taker.link.usable:
                continue
            idle, free_s, its = taker.speed(now_s)
            behind_s = self._rows[taker.stage].behind_s
            its_layer_s, its_rest_s = its * (behind_s[cut] - behind_s[cut + 1]), its * (behind_s[cut] - behind_s[last])
            if (
                is_done_sooner(
                    now_s, idle, free_s, its_layer_s, its_rest_s, layer_s, rest_s, self._cost_s[cut], queue.waiting > 0
                )
                and not taker.waits(now_s)
                and taker.link.has_place
            ):
                self._chosen = taker.stage
                return True
        return False

    def ran(self, last: int, now_s: float) -> None:
        """The request was run up to cut ``last``."""
        if self._chosen is None and last > self._first:
            self._layer_done(last - 1, now_s)

    def target(self, cut: int) -> int | None:
        """Stage that gets the request at this cut, for whose place the sender may have to wait. None: nobody can."""
        if self._chosen is not None:
            return self._chosen
        takers, now_s = [taker for taker in self._cut_takers[cut] if taker.link.usable], time.perf_counter()
        for taker in takers:
            if not taker.waits(now_s):
                return taker.stage
        return takers[0].stage if takers else None

    def _layer_done(self, layer: int, now_s: float) -> None:
        """Learn from a layer's time how slow the stage is."""
        self._slowdown = slowdown_after(self._slowdown, now_s - self._layer_began_s, self._baseline_s[layer])
        self._layer_began_s = now_s

    def _publish(self, cut: int, now_s: float) -> None:
        """Say when the stage will be free, now that it goes on with layer ``cut``."""
        slowdown, behind_s, words = self._slowdown, self._behind_s, self._words
        next_free_s = math.inf
        if not self._shares and cut + 1 < self._last and (after := self._cut_takers[cut + 1]):
            taker = next((one for one in after if one.link.usable), None)
            if taker is not None and not taker.waits(now_s):
                next_free_s = taker.free_s(self._cut_nbytes[cut + 1], now_s)
        end_s = now_s + slowdown * self._baseline_s[cut]
        rest_s = slowdown * (behind_s[cut + 1] - behind_s[self._last])
        free_s = free_at(end_s, rest_s=rest_s, next_free_s=next_free_s)
        if self._pacer.limits:
            used_s = self._behind_s[self._first] - self._behind_s[self._last]
            free_s += self._pacer.owed_s(free_s, used_s)
        words[FREE_S] = free_s
        words[SLOWDOWN] = slowdown
        if self._queue is not None:
            self._queue.tell(self._index, StageWords(math.inf, free_s, slowdown))
