"""A line of stages of which some are lost and come back: :class:`FaultLine`.

A stage that is lost is one whose place is always taken. What was with it is sent again by the gateway, from the first
layer; the first answer of any attempt counts. Where all stages take new requests from one queue nothing else happens.
Elsewhere the gateway holds requests back until those that live are prepared for the best plan over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.deadlines import FAILED, DeadlineLine
from odin_lab.simulator.engine import Truth
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.losses import Loss, Losses
from odin_lab.simulator.relay import Request, What
from odin_lab.simulator.steering import Epoch, Steering
from odin_lab.simulator.world import World

__all__ = [
    "CRASH_NOTICE_S",
    "HANG_FACTOR",
    "FaultLine",
    "LossSeen",
]

FloatArray = NDArray[np.float64]

CRASH_NOTICE_S = 0.001
"""Seconds from the death of a stage to the moment at which the gateway knows."""
HANG_FACTOR = 10.0
"""A stage that was silent for so many times what it should take for its request is taken for lost."""
_DEATHS = 2
"""Stages that may die on the same request until that fails."""


@dataclass
class LossSeen:
    """A loss as it went: when the gateway knew (infinite: before that it was over), and when the device was back."""

    loss: Loss
    noticed_s: float = math.inf
    back_s: float = math.inf


@dataclass
class _Fate:
    """A stage's: whether it stands still, and what it was in the midst of; ``life`` counts its losses."""

    stopped: bool = False
    life: int = 0
    loss: int = -1
    watched: bool = False
    receive_left_s: float = 0.0
    layer_left: float = math.nan
    taker_life: int = 0


class FaultLine(DeadlineLine):
    """One run. For the parameters see :func:`odin_lab.simulator.simulate`.

    Attributes
    ----------
    attempts
        How many times each was sent again.
    plan_index
        Which of the plans each was sent under last.
    seen
        The losses that there were.
    """

    def __init__(
        self,
        world: World,
        steering: Steering,
        *,
        requests: int,
        interference: Interference,
        arrivals: Arrivals,
        in_flight: int,
        losses: Losses | None,
        deadline_s: float,
        admission: str,
        prepare_s: float,
        crash_notice_s: float,
        hang_factor: float,
        truth: Truth,
        seed: int,
    ) -> None:
        super().__init__(
            world,
            windows=steering.epoch.windows,
            requests=requests,
            interference=interference,
            arrivals=arrivals,
            in_flight=in_flight,
            deadline_s=deadline_s,
            admission=admission,
            seed=seed,
        )
        self._reach: Epoch = steering.epoch
        self._steering, self._prepare_s, self._truth = steering, prepare_s, truth
        self._crash_notice_s, self._hang_factor = crash_notice_s, hang_factor
        self._fates = [_Fate() for _ in self._stages]
        self._to_come: Iterator[Loss] = iter(())
        if losses is not None:
            losses.check_fits(world.device_count)
            self._to_come = losses.moments(devices=world.device_count, seed=seed)
        self._plan_next: Plan | None = None
        self._preparing = 0
        self._held = False
        self._now_s = 0.0
        self._deaths: dict[int, int] = {}
        self.attempts: NDArray[np.int64] = np.zeros(requests, dtype=np.int64)
        self.plan_index: NDArray[np.int64] = np.zeros(requests, dtype=np.int64)
        self.trial: NDArray[np.bool_] = np.zeros(requests, dtype=np.bool_)
        self.seen: list[LossSeen] = []

    def run(self) -> None:
        """Serve, or refuse, all requests."""
        self._await_loss()
        super().run()
        self.seen = [seen for seen in self.seen if seen.loss.at_s <= self._now_s]
        self._steering.stop(self._told_s())

    def _happen(self, at_s: float, what: What, stage: int, number: int) -> None:
        self._now_s = at_s
        if what == "lost":
            self._fall(number, at_s)
        elif what == "noticed":
            if self._fates[stage].life == number and self._fates[stage].stopped:
                self._lose(stage, at_s)
        elif what == "back":
            if self._fates[stage].loss == number:
                self._return(stage, at_s)
        elif what == "prepared":
            if number == self._preparing:
                self._prepared(at_s)
        else:
            super()._happen(at_s, what, stage, number)

    # -- losses -----------------------------------------------------------------------------------------------------

    def _await_loss(self) -> None:
        loss = next(self._to_come, None)
        if loss is not None:
            self.seen.append(LossSeen(loss))
            self._push(loss.at_s, "lost", loss.device, len(self.seen) - 1)

    def _fall(self, number: int, now_s: float) -> None:
        """A device dies, or stands still: nobody knows yet."""
        loss = self.seen[number].loss
        stage, fate = self._stages[loss.device], self._fates[loss.device]
        if fate.stopped:  # it is lost already, at random
            self.seen.pop(number)
            self._await_loss()
            return
        self._await_loss()
        fate.stopped, fate.loss, fate.watched, fate.layer_left = True, number, False, math.nan
        if stage.item is not None and stage.end_s < math.inf:
            layer_s = self._layers_s[loss.device][stage.item.cut] * stage.factor
            fate.receive_left_s = max(0.0, stage.layer_began_s - now_s)
            fate.layer_left = (stage.end_s - max(now_s, stage.layer_began_s)) / layer_s if layer_s > 0 else 0.0
            stage.end_s = math.inf
            stage.turn += 1
        if loss.hangs:  # a hand-over ends before
            self._watch(loss.device, now_s)
        else:
            stage.turn += 1
            self._push(now_s + self._crash_notice_s, "noticed", loss.device, fate.life)
        if loss.for_s < math.inf:
            self._push(loss.back_s, "back", loss.device, number)

    def _watch(self, index: int, now_s: float) -> None:
        """Wait for a word of a stage that hangs and has, or could have, something to do."""
        stage, fate = self._stages[index], self._fates[index]
        waits = stage.item is not None or stage.waiting is not None or (self._reach.shares and bool(self._queue))
        if not fate.stopped or fate.watched or not waits or not self.seen[fate.loss].loss.hangs:
            return
        fate.watched = True
        share_s = stage.behind_s[0]
        request = stage.item or stage.waiting
        if request is not None:
            first = stage.first if stage.item is not None else request.cut
            share_s = stage.behind_s[first] - stage.behind_s[request.reach.windows[index][1]]
        self._push(now_s + self._hang_factor * stage.slowdown * share_s, "noticed", index, fate.life)

    def _lose(self, index: int, now_s: float) -> None:
        """The gateway knows: what is with the stage is sent again."""
        stage, fate = self._stages[index], self._fates[index]
        seen = self.seen[fate.loss]
        seen.noticed_s = now_s
        gone = [request for request in (stage.item, stage.waiting) if request is not None]
        stage.lost = stage.taken = True
        stage.waiting = None
        fate.life += 1
        if not seen.loss.hangs:
            if stage.item is not None:
                self._deaths[stage.item.number] = self._deaths.get(stage.item.number, 0) + 1
                if stage.taker >= 0 and self._fates[stage.taker].life == fate.taker_life:
                    self._stages[stage.taker].taken = False  # it was copying there
            stage.item, stage.blocked, stage.end_s, stage.taker = None, False, math.inf, -1
        self._replan(now_s)
        self._again(gone, now_s)
        self._place_free(now_s)
        if self._reach.shares:
            self._offer(now_s)

    def _return(self, index: int, now_s: float) -> None:
        """A device is back: replaced, or it goes on."""
        stage, fate = self._stages[index], self._fates[index]
        seen = self.seen[fate.loss]
        if not seen.loss.hangs and not stage.lost:
            self._lose(index, now_s)
        seen.back_s = now_s
        fate.stopped = False
        if not seen.loss.hangs:
            stage.slowdown = 1.0
            self._door.replaced(index)
        if stage.lost:
            stage.lost = stage.taken = False
            self._replan(now_s)
        if stage.item is None:
            stage.free_s = stage.since_s = now_s
            self._take(index, now_s)
        elif not math.isnan(fate.layer_left):
            layer_s = self._layers_s[index][stage.item.cut] * stage.factor
            stage.end_s = now_s + fate.receive_left_s + fate.layer_left * layer_s
            stage.turn += 1
            self._push(stage.end_s, "layer", index, stage.turn)
        elif stage.blocked:
            self._leave(index, now_s)
        self._place_free(now_s)
        if self._reach.shares:
            self._offer(now_s)

    def _again(self, requests: Iterable[Request], now_s: float) -> None:
        """Send requests again, before those that came later."""
        for request in requests:
            number = request.number
            if self._is_over(request):
                continue
            if self._deaths.get(number, 0) >= _DEATHS:
                self._give_up(number, FAILED, now_s)
                continue
            self.attempts[number] += 1
            entered_s = now_s + self._send_s[0]
            attempt = int(self.attempts[number])
            new = replace(request, cut=0, attempt=attempt, entered_s=entered_s, reach=self._reach)
            place = next((k for k, other in enumerate(self._queue) if other.number > number), len(self._queue))
            self._queue.insert(place, self._begin(new))
            self._push(entered_s, "entered")

    def _strand(self) -> None:
        """Nothing happens any more: all stages are lost for good."""
        if not all(stage.lost for stage in self._stages):
            super()._strand()
        self.outcome[self.outcome == 0] = FAILED
        self._over = self._requests

    # -- plans ------------------------------------------------------------------------------------------------------

    def _replan(self, now_s: float) -> None:
        """Other devices live: hold requests back until these are prepared for the best plan over them."""
        if self._reach.shares:
            return
        self._preparing += 1
        self._held = True
        live = self._live()
        if live:
            self._ready_s = now_s + self._prepare_s
            self._plan_next = self._steering.best_plan(live, self._conditions.true_s)
            self._push(self._ready_s, "prepared", 0, self._preparing)

    def _prepared(self, now_s: float) -> None:
        assert self._plan_next is not None
        live = self._live()
        self._held, self._first = False, live[0]
        self._reach = self._steering.start(live, self._plan_next)
        for request in self._queue:
            request.reach = self._reach
            self._begin(request)
        self._offer(now_s)

    def _begin(self, request: Request) -> Request:
        """A request is sent under the plan in force."""
        self.plan_index[request.number], self.trial[request.number] = self._reach.number, self._reach.trial
        request.layer_s = [0.0] * len(self._layers_s[0]) if self._steering.observes else None
        return request

    def _told_s(self) -> FloatArray | None:
        return self._conditions.true_s if self._truth == "now" else None

    # -- in and out -------------------------------------------------------------------------------------------------

    def _submit(self, now_s: float) -> None:
        if not self._held:
            self._steering.look_until(now_s, self._told_s())
            self._reach = self._steering.epoch
        super()._submit(now_s)
        for index, fate in enumerate(self._fates):
            if fate.stopped:
                self._watch(index, now_s)

    def _enqueue(self, number: int, now_s: float) -> None:
        super()._enqueue(number, now_s)
        self._begin(self._queue[-1])

    def _completed(self, request: Request, done_s: float) -> None:
        super()._completed(request, done_s)
        if request.layer_s is not None and isinstance(request.reach, Epoch):
            self._steering.finished(request.reach, request.layer_s, done_s)

    # -- stages -----------------------------------------------------------------------------------------------------

    def _takes_new(self, index: int, now_s: float) -> bool:
        return not self._held and not self._fates[index].stopped and super()._takes_new(index, now_s)

    def _take(self, index: int, now_s: float) -> None:
        stage = self._stages[index]
        if self._fates[index].stopped:
            stage.item, stage.end_s, stage.free_s, stage.since_s = None, math.inf, now_s, now_s
            return
        super()._take(index, now_s)

    def _is_over(self, request: Request) -> bool:
        return super()._is_over(request) or request.attempt < self.attempts.item(request.number)

    def _send(self, index: int, taker: int, now_s: float) -> None:
        super()._send(index, taker, now_s)
        self._fates[index].taker_life = self._fates[taker].life

    def _deliver(self, request: Request, index: int, taker: int, now_s: float) -> None:
        if self._fates[taker].life != self._fates[index].taker_life:  # lost meanwhile
            self._again([request], now_s)
            return
        if self._fates[taker].stopped:
            assert self._stages[taker].waiting is None
            self._stages[taker].waiting = request
            self._watch(taker, now_s)
            return
        super()._deliver(request, index, taker, now_s)

    def _leave(self, index: int, now_s: float) -> bool:
        stage = self._stages[index]
        assert stage.item is not None
        reach, cut = stage.item.reach, stage.item.cut
        if self._fates[index].stopped:
            stage.blocked = True
            return True
        if reach.windows[index][1] <= cut < reach.windows.layer_count and all(
            self._stages[taker].lost for taker in reach.takers[index][cut]
        ):
            request, stage.item, stage.blocked, stage.end_s = stage.item, None, False, math.inf
            self._again([request], now_s)
            self._take(index, now_s)
            return True
        return super()._leave(index, now_s)
