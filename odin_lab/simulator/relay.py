"""A line of stages that hand over by readiness: event by event, with the decisions of :mod:`odin.partitioner.relay`.

One request at a time on a stage, one waiting place in front of each but the first. New requests wait in the gateway's
queue, for whichever stage is about to start with one if windows let all of them, else for the first. To hand over, a
stage takes the place, spends ``send_s`` and goes on to its next request; the taker spends ``receive_s``
when it begins. A layer half done when conditions change needs half of its new time from then on. Noise is drawn as for
every other policy: one factor per request and device, from the seed alone.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.relay import (
    Later,
    Windows,
    free_at,
    hand_over,
    idle_slowdown,
    is_done_sooner,
    is_expected_at,
    is_left_to_others,
    is_much_sooner,
    slowdown_after,
)
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.conditions import DEAD_S, Conditions
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE, BLOCK
from odin_lab.simulator.world import World

__all__ = ["Part", "Reach", "RelayLine", "Request", "Stage"]

FloatArray = NDArray[np.float64]

What = Literal["arrived", "entered", "layer", "sent", "conditions", "lost", "noticed", "back", "prepared"]


class Part(NamedTuple):
    """What a stage did of a request: layers ``[first, last)``, from taking it to having sent it on or answered."""

    request: int
    stage: int
    first: int
    last: int
    began_s: float
    left_s: float


class Reach:
    """Where requests may change hands: windows, and who may take one from each stage at each cut."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.shares = windows.all_begin
        self.takers = [[windows.takers(k, cut) for cut in range(windows.layer_count + 1)] for k in range(len(windows))]


@dataclass
class Request:
    """A request, or an attempt at it: where it may change hands, when it is with the gateway, how far it is."""

    number: int
    drawn: NDArray[np.generic]
    alone: FloatArray
    reach: Reach
    entered_s: float
    cut: int = 0
    attempt: int = 0
    layer_s: list[float] | None = None


class Stage:
    """A stage: idle (no item), computing (``end_s`` finite), or waiting for a place or sending (``end_s`` infinite).

    One that is ``lost`` is nobody's to hand over to: its place counts as taken.
    """

    __slots__ = (
        *("item", "waiting", "taken", "began_s", "first", "factor", "layer_began_s", "end_s", "turn"),
        *("slowdown", "free_s", "blocked", "since_s", "baseline_s", "behind_s", "taker", "lost", "computed_s"),
    )

    def __init__(self, baseline_s: FloatArray) -> None:
        self.item: Request | None = None
        self.waiting: Request | None = None
        self.taken = self.blocked = self.lost = False
        self.taker = -1
        self.began_s = self.layer_began_s = self.free_s = self.since_s = self.computed_s = 0.0
        self.end_s = math.inf
        self.first = self.turn = 0
        self.factor = self.slowdown = 1.0
        usual_s = np.minimum(baseline_s, DEAD_S)
        self.baseline_s: list[float] = usual_s.tolist()
        self.behind_s: list[float] = [*np.cumsum(usual_s[::-1])[::-1].tolist(), 0.0]


class RelayLine:
    """One run. For the parameters see :func:`odin_lab.simulator.simulate_relay`.

    Attributes
    ----------
    arrived_s, submitted_s, finished_s
        By request.
    conditions_number
        How many changes of conditions there had been when each request was submitted.
    parts
        What each stage did, in the order in which it was done.
    """

    def __init__(
        self,
        world: World,
        *,
        windows: Windows,
        requests: int,
        interference: Interference,
        arrivals: Arrivals,
        in_flight: int,
        seed: int,
    ) -> None:
        self._world, self._requests, self._in_flight = world, requests, in_flight
        self._reach = Reach(windows)
        self._receive_s: list[float] = world.receive_s.tolist()
        self._send_s: list[float] = world.send_s.tolist()
        self._conditions = Conditions(world, interference, known=interference.unit == "seconds")
        self._layers_s: list[list[float]] = np.minimum(self._conditions.true_s, DEAD_S).tolist()
        self._stages = [Stage(row) for row in world.baseline_s]
        self._first = 0  # whose the queue is, unless it is everybody's
        self._clients = arrivals.clients or in_flight
        self._coming_s = arrivals.times_s(requests, np.random.default_rng([seed, 2]))
        random = np.random.default_rng([seed, 1])
        self._blocks = world.noise.blocks(random, requests=BLOCK, devices=world.device_count)
        self._block: tuple[int, NDArray[np.generic], FloatArray] | None = None
        self._events: list[tuple[float, int, What, int, int]] = []
        self._pushed = self._answered = self._over = self._under_way = 0
        self._outside: deque[int] = deque()  # have come, and wait to be submitted
        self._queue: deque[Request] = deque()  # wait for stage 0
        self._coming = 0
        self.arrived_s: FloatArray = np.zeros(requests)
        self.submitted_s: FloatArray = np.zeros(requests)
        self.finished_s: FloatArray = np.full(requests, np.inf)
        self.conditions_number: NDArray[np.int64] = np.zeros(requests, dtype=np.int64)
        self.parts: list[Part] = []

    def run(self) -> None:
        """Serve all requests."""
        while self._conditions.next_unsettled <= 0:
            self._conditions.settle(0.0)
        self._change(0.0)
        first = self._requests if self._coming_s is not None else min(self._clients, self._requests)
        for _ in range(first):
            self._come(0.0)
        if self._conditions.next_edge < math.inf:
            self._push(self._conditions.next_edge, "conditions")
        while self._over < self._requests:
            if not self._events:
                self._strand()
                return
            at_s, _, what, stage, number = heapq.heappop(self._events)
            self._happen(at_s, what, stage, number)

    def _happen(self, at_s: float, what: What, stage: int, number: int) -> None:
        if what == "layer":
            if number == self._stages[stage].turn:
                self._layer_done(stage, at_s)
        elif what == "sent":
            if number == self._stages[stage].turn:
                self._sent(stage, at_s)
        elif what == "entered":
            self._offer(at_s)
        elif what == "arrived":
            self._arrive(number, at_s)
        else:
            self._change(at_s)
            if self._conditions.next_edge < math.inf:
                self._push(self._conditions.next_edge, "conditions")

    def _strand(self) -> None:
        raise AssertionError(f"{self._requests - self._over} requests are stuck")

    def _push(self, at_s: float, what: What, stage: int = 0, number: int = 0) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at_s, self._pushed, what, stage, number))

    # -- in and out -------------------------------------------------------------------------------------------------

    def _come(self, now_s: float) -> None:
        """The next request is known to come."""
        number = self._coming
        self._coming += 1
        at_s = now_s if self._coming_s is None else float(self._coming_s[number])
        self.arrived_s[number] = at_s
        self._push(at_s, "arrived", 0, number)

    def _arrive(self, number: int, now_s: float) -> None:
        self._outside.append(number)
        self._submit(now_s)

    def _submit(self, now_s: float) -> None:
        while self._outside and self._under_way < self._in_flight:
            number = self._outside.popleft()
            self._under_way += 1
            self.submitted_s[number] = now_s
            self.conditions_number[number] = self._conditions.number
            self._enqueue(number, now_s)

    def _enqueue(self, number: int, now_s: float) -> None:
        while self._block is None or self._block[0] < number // BLOCK:
            drawn = next(self._blocks)
            block = 0 if self._block is None else self._block[0] + 1
            self._block = block, drawn, self._world.noise.factors(drawn, ALONE)
        _, drawn, alone = self._block
        row, entered_s = number % BLOCK, now_s + self._send_s[0]
        self._queue.append(Request(number, drawn[row], alone[row], self._reach, entered_s))
        self._push(entered_s, "entered")

    def _answer(self, request: Request, left_s: float) -> None:
        number = request.number
        self.finished_s[number] = left_s + self._receive_s[-1]
        self._answered += 1
        self._over += 1
        self._under_way -= 1
        if self._conditions.next_unsettled <= self._answered:
            while self._conditions.next_unsettled <= self._answered:
                self._conditions.settle(left_s)
            self._change(left_s)
        if self._coming_s is None and self._coming < self._requests:
            self._come(float(self.finished_s[number]))
        self._submit(float(self.finished_s[number]))

    def _change(self, now_s: float) -> None:
        """Conditions may have changed: layers under way take their new times from now on."""
        if not self._conditions.advance(now_s):
            return
        before, self._layers_s = self._layers_s, np.minimum(self._conditions.true_s, DEAD_S).tolist()
        for index, (stage, old, new) in enumerate(zip(self._stages, before, self._layers_s, strict=True)):
            if old != new and stage.item is not None and stage.end_s < math.inf:
                from_s = max(now_s, stage.layer_began_s)
                cut = stage.item.cut
                stage.end_s = from_s + (stage.end_s - from_s) * (new[cut] / old[cut] if old[cut] > 0 else 1.0)
                stage.turn += 1
                self._push(stage.end_s, "layer", index, stage.turn)

    # -- stages -----------------------------------------------------------------------------------------------------

    def _offer(self, now_s: float) -> None:
        """Idle stages may take what waits; which of several is quicker is left open, as live."""
        for index in range(len(self._stages)) if self._reach.shares else (self._first,):
            if self._stages[index].item is None and self._takes_new(index, now_s):
                self._take(index, now_s)

    def _takes_new(self, index: int, now_s: float) -> bool:
        """Whether a stage that is about to begin with a request takes the one that has waited longest."""
        if not self._queue or self._queue[0].entered_s > now_s:
            return False
        if not self._reach.shares:
            return index == self._first
        if self._stages[index].taken:  # by one that is on its way
            return False
        others = []
        for other, stage in enumerate(self._stages):
            if stage.lost:
                continue
            chain_s, idle = stage.behind_s[0], stage.item is None
            slowdown = stage.slowdown
            if idle:
                slowdown = idle_slowdown(slowdown, idle_s=now_s - stage.since_s, chain_s=chain_s)
            if other == index:
                own_s = slowdown * chain_s
            else:
                others.append((idle, 0.0 if idle else is_expected_at(stage.free_s, now_s) - now_s, slowdown * chain_s))
        return not is_left_to_others(own_s, others, waiting=len(self._queue))

    def _take(self, index: int, now_s: float) -> None:
        """Begin with the next request, if one waits; whoever waits for the place may have it then."""
        stage = self._stages[index]
        request: Request | None = None
        if stage.waiting is not None:
            request, stage.waiting, stage.taken = stage.waiting, None, False
        elif self._takes_new(index, now_s):
            request = self._queue.popleft()
        stage.item, stage.end_s = request, math.inf
        if request is None:
            stage.free_s = stage.since_s = now_s
            return
        stage.slowdown = idle_slowdown(stage.slowdown, idle_s=now_s - stage.since_s, chain_s=stage.behind_s[0])
        stage.began_s, stage.first, stage.computed_s = now_s, request.cut, 0.0
        scenarios = self._conditions.scenarios.get(index)
        if scenarios:
            drawn = request.drawn[index : index + 1]
            stage.factor = float(self._world.noise.factors(drawn, scenarios[-1])[0])
        else:
            stage.factor = request.alone.item(index)
        received_s = now_s + self._receive_s[request.cut]
        if request.cut >= request.reach.windows[index][1]:
            self._leave(index, received_s)
        elif not self._pass_on(index, received_s):
            self._go_on(index, received_s)
        if index > 0:
            self._place_free(now_s)

    def _go_on(self, index: int, from_s: float) -> None:
        stage = self._stages[index]
        assert stage.item is not None
        cut, windows = stage.item.cut, stage.item.reach.windows
        stage.layer_began_s = from_s
        stage.end_s = from_s + self._layers_s[index][cut] * stage.factor
        stage.turn += 1
        self._push(stage.end_s, "layer", index, stage.turn)
        takes_over_s = math.inf
        if not stage.item.reach.shares and cut + 1 >= windows[index][0] and index + 1 < len(self._stages):
            after = self._stages[index + 1]
            takes_over_s = math.inf if after.taken else after.free_s if after.item is not None else from_s
        expected_s = from_s + stage.slowdown * stage.baseline_s[cut]
        rest_s = stage.slowdown * (stage.behind_s[cut + 1] - stage.behind_s[windows[index][1]])
        stage.free_s = free_at(expected_s, rest_s=rest_s, next_free_s=takes_over_s)

    def _layer_done(self, index: int, now_s: float) -> None:
        stage = self._stages[index]
        assert stage.item is not None
        cut = stage.item.cut
        took_s = now_s - stage.layer_began_s
        stage.slowdown = slowdown_after(stage.slowdown, took_s, stage.baseline_s[cut])
        stage.computed_s += took_s
        if stage.item.layer_s is not None:
            stage.item.layer_s[cut] = took_s
        stage.item.cut = cut + 1
        if not self._leave(index, now_s):
            self._go_on(index, now_s)

    def _leave(self, index: int, now_s: float) -> bool:
        """Answer, hand over, or wait for a place because it must: else the stage is to go on."""
        stage = self._stages[index]
        assert stage.item is not None
        stage.blocked, cut, reach = False, stage.item.cut, stage.item.reach
        if cut == reach.windows.layer_count:
            stage.end_s, stage.taker = math.inf, -1
            stage.turn += 1
            self._push(now_s + self._send_s[cut], "sent", index, stage.turn)
            return True
        last = reach.windows[index][1]
        must = cut >= last
        takers = reach.takers[index][cut]
        chosen: int | None = None
        if takers and reach.shares and not must:
            chosen = self._sooner(index, now_s)
        elif takers:
            behind_s, last_s = stage.behind_s, stage.behind_s[last]
            chosen = hand_over(
                now_s,
                self._seen(takers, cut, now_s),
                must=must,
                busy=stage.waiting is not None or (index == self._first and bool(self._queue)),
                layer_s=stage.slowdown * stage.baseline_s[cut],
                rest_s=stage.slowdown * (behind_s[cut] - last_s),
                cost_s=self._send_s[cut],
                saves_s=self._send_s[cut] - self._send_s[cut + 1],
            )
        if chosen is not None:
            self._send(index, takers[chosen], now_s)
            return True
        if must:
            stage.blocked, stage.end_s, stage.free_s = True, math.inf, math.inf
        return must

    def _pass_on(self, index: int, now_s: float) -> bool:
        """Send a request on as it came, if another stage is so much faster."""
        stage = self._stages[index]
        assert stage.item is not None
        takers, cut = stage.item.reach.takers[index][stage.item.cut], stage.item.cut
        if stage.item.reach.shares:
            chosen = self._sooner(index, now_s)
            if chosen is not None:
                self._send(index, takers[chosen], now_s)
            return chosen is not None
        layer_s = stage.slowdown * stage.baseline_s[cut]
        for taker, seen in zip(takers, self._seen(takers, cut, now_s), strict=True):
            if not seen.taken and is_much_sooner(now_s, seen.idle, seen.free_s, seen.layer_s, layer_s):
                self._send(index, taker, now_s)
                return True
        return False

    def _sooner(self, index: int, now_s: float) -> int | None:
        """Which of those who may take a stage's request would be done with the rest so much sooner that it gets it."""
        stage = self._stages[index]
        assert stage.item is not None
        cut, reach, mine = stage.item.cut, stage.item.reach, stage.slowdown
        last = reach.windows[index][1]
        layer_s, rest_s = mine * stage.baseline_s[cut], mine * (stage.behind_s[cut] - stage.behind_s[last])
        for number, taker in enumerate(reach.takers[index][cut]):
            other = self._stages[taker]
            if other.taken:
                continue
            idle, its = other.item is None, other.slowdown
            if idle:
                its = idle_slowdown(its, idle_s=now_s - other.since_s, chain_s=other.behind_s[0])
            its_rest_s = its * (other.behind_s[cut] - other.behind_s[last])
            if is_done_sooner(
                now_s, idle, other.free_s, its * other.baseline_s[cut], its_rest_s, layer_s, rest_s,
                self._send_s[cut], bool(self._queue),
            ):  # fmt: skip
                return number
        return None

    def _send(self, index: int, taker: int, now_s: float) -> None:
        stage = self._stages[index]
        assert stage.item is not None
        self._stages[taker].taken = True
        stage.end_s, stage.taker = math.inf, taker
        stage.free_s = now_s + self._send_s[stage.item.cut]
        stage.turn += 1
        self._push(stage.free_s, "sent", index, stage.turn)

    def _seen(self, takers: range, cut: int, now_s: float) -> Iterator[Later]:
        for index in takers:
            stage = self._stages[index]
            if stage.taken:
                yield Later(False, True, math.inf, math.inf)
                continue
            idle, slowdown = stage.item is None, stage.slowdown
            if idle:
                slowdown = idle_slowdown(slowdown, idle_s=now_s - stage.since_s, chain_s=stage.behind_s[0])
            yield Later(idle, False, stage.free_s, slowdown * stage.baseline_s[cut])

    def _sent(self, index: int, now_s: float) -> None:
        """A stage has sent its request on, or to the gateway (-1)."""
        stage = self._stages[index]
        request, taker, stage.taker = stage.item, stage.taker, -1
        assert request is not None
        self.parts.append(Part(request.number, index, stage.first, request.cut, stage.began_s, now_s))
        stage.since_s = now_s
        if taker < 0:
            self._answer(request, now_s)
        else:
            self._deliver(request, index, taker, now_s)
        self._take(index, now_s)
        if self._reach.shares:
            self._offer(now_s)

    def _deliver(self, request: Request, index: int, taker: int, now_s: float) -> None:
        assert self._stages[taker].waiting is None
        self._stages[taker].waiting = request
        if self._stages[taker].item is None:
            self._take(taker, now_s)

    def _place_free(self, now_s: float) -> None:
        """A place has become free: stages that had to wait try again, the nearest to the end first."""
        for index in range(len(self._stages) - 2, -1, -1):
            if self._stages[index].blocked:
                self._leave(index, now_s)
