"""A line of stages whose requests have deadlines: what comes too late is refused, or dropped on its way."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.exits import Exits, LineExits, SharedExits, left_line
from odin.partitioner.relay import Windows, idle_slowdown, is_expected_at
from odin.requests.admission import Forecast
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.door import Door, Never
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.relay import RelayLine, Request
from odin_lab.simulator.world import World

__all__ = ["ANSWERED", "DROPPED", "FAILED", "REFUSED", "DeadlineLine"]

FloatArray = NDArray[np.float64]

ANSWERED, REFUSED, DROPPED, FAILED = 1, 2, 3, 4
"""What became of a request: answered; refused when it came; taken on, and given up later; lost with all stages, or with
two stages that died while they worked on it."""


class DeadlineLine(RelayLine):
    """One run. For the parameters see :func:`odin_lab.simulator.simulate`.

    Attributes
    ----------
    outcome
        By request; see :data:`ANSWERED`.
    deadline_s
        When each was to be answered at the latest, infinite without deadlines.
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
        deadline_s: float,
        admission: str,
        seed: int,
    ) -> None:
        super().__init__(
            world,
            windows=windows,
            requests=requests,
            interference=interference,
            arrivals=arrivals,
            in_flight=in_flight,
            seed=seed,
        )
        self._door = Door(admission, stages=world.device_count)
        self._time_s = deadline_s
        self._predicts = self._door.predicts and deadline_s < math.inf
        self._ready_s = 0.0  # before that nothing is sent
        self._forecasts: dict[int, Forecast] = {}
        self._sent_s: dict[int, float] = {}  # those under way, oldest first
        self._left_s: FloatArray = np.full((requests, world.device_count), -np.inf)
        self._last_left_s = [-math.inf] * world.device_count
        self.outcome: NDArray[np.int8] = np.zeros(requests, dtype=np.int8)
        self.deadline_s: FloatArray = np.full(requests, np.inf)

    # -- in and out -------------------------------------------------------------------------------------------------

    def _arrive(self, number: int, now_s: float) -> None:
        self.deadline_s[number] = now_s + self._time_s
        if self._predicts:
            alone = self._under_way == 0 and not self._outside
            deadline_s = self.deadline_s.item(number)
            seen = self._door.judge(
                self._exits(now_s), now_s, deadline_s=deadline_s, ahead=len(self._outside), alone=alone
            )
            if seen.late:
                self._give_up(number, REFUSED, now_s)
                return
            if seen.forecast is not None:
                self._forecasts[number] = seen.forecast
        super()._arrive(number, now_s)

    def _submit(self, now_s: float) -> None:
        if self._predicts and self._under_way < self._in_flight:
            while self._outside and self._door.is_hopeless(
                self._exits(now_s), now_s, self.deadline_s.item(self._outside[0])
            ):
                self._give_up(self._outside.popleft(), DROPPED, now_s)
        super()._submit(now_s)

    def _enqueue(self, number: int, now_s: float) -> None:
        super()._enqueue(number, now_s)
        self._sent_s[number] = now_s

    def _answer(self, request: Request, left_s: float) -> None:
        number = request.number
        if self.outcome[number]:  # another attempt was first
            return
        self.outcome[number] = ANSWERED
        self._completed(request, left_s + self._receive_s[-1])
        super()._answer(request, left_s)

    def _completed(self, request: Request, done_s: float) -> None:
        """Learn from a request that has been answered."""
        forecast = self._forecasts.pop(request.number, None)
        if forecast is not None:
            deadline_s = self.deadline_s.item(request.number)
            self._door.answered(forecast, done_s)
            self._door.ended(forecast, deadline_s, in_time=done_s <= deadline_s)
        del self._sent_s[request.number]
        self._last_left_s = np.maximum(self._last_left_s, self._left_s[request.number]).tolist()

    def _give_up(self, number: int, outcome: int, now_s: float) -> None:
        self.outcome[number] = outcome
        self._over += 1
        forecast = self._forecasts.pop(number, None)
        if forecast is not None:
            self._door.ended(forecast, self.deadline_s.item(number), in_time=False)
        sent = self._sent_s.pop(number, None) is not None
        if self._coming_s is None and self._coming < self._requests:
            self._come(now_s)
        if sent:
            self._under_way -= 1
            self._submit(now_s)

    # -- stages -----------------------------------------------------------------------------------------------------

    def _live(self) -> list[int]:
        return [index for index, stage in enumerate(self._stages) if not stage.lost]

    def _take(self, index: int, now_s: float) -> None:
        stage, dropped = self._stages[index], False
        while stage.waiting is not None and self._is_in_vain(stage.waiting, index, now_s):
            stage.waiting, stage.taken, dropped = None, False, True
        while self._queue and self._is_in_vain(self._queue[0], index, now_s):
            self._queue.popleft()
        super()._take(index, now_s)
        if dropped and stage.item is None:
            self._place_free(now_s)

    def _sent(self, index: int, now_s: float) -> None:
        stage = self._stages[index]
        assert stage.item is not None
        self._left_s[stage.item.number, index] = now_s
        baseline_s = stage.behind_s[stage.first] - stage.behind_s[stage.item.cut]
        if baseline_s > 0:
            self._door.measured(index, stage.computed_s / baseline_s, now_s)
        super()._sent(index, now_s)

    # -- what is too late -------------------------------------------------------------------------------------------

    def _is_over(self, request: Request) -> bool:
        """Whether nobody waits for this attempt any more."""
        return bool(self.outcome[request.number])

    def _is_in_vain(self, request: Request, index: int, now_s: float) -> bool:
        """Whether nobody waits for this attempt any more, or it cannot be in time; then it is given up."""
        number = request.number
        if self._is_over(request):
            return True
        if self._door.name == "none" or self.deadline_s[number] == math.inf:
            return False
        least_s = now_s
        if self._door.predicts:
            least_s += self._least_s(request, index, now_s)
        if least_s <= self.deadline_s[number]:
            return False
        self._give_up(number, DROPPED, now_s)
        return True

    def _least_s(self, request: Request, index: int, now_s: float) -> float:
        """Seconds that the rest of a request takes at the least, without any waiting."""
        cut, reach = request.cut, request.reach
        if reach.shares:
            live = (k for k in self._live() if k >= index or cut == 0)
            return min(self._slowdown(k, now_s) * self._stages[k].behind_s[cut] for k in live)
        rest_s = 0.0
        for k in range(index, len(self._stages)):
            last = max(cut, reach.windows[k][1])
            behind_s = self._stages[k].behind_s
            rest_s += self._slowdown(k, now_s) * (behind_s[cut] - behind_s[last])
            cut = last
        return rest_s

    def _exits(self, now_s: float) -> Exits:
        """The stages as the gateway sees them: :mod:`odin.partitioner.exits`."""
        live = self._live()
        if not live:
            return Never()
        if self._reach.shares:
            seen = [self._seen_from_outside(index, now_s) for index in live]
            return SharedExits([free_s for free_s, _ in seen], [chain_s for _, chain_s in seen], len(self._queue))
        cuts = (0, *(last for _, last in self._reach.windows))
        stage_s = []
        for k in live:
            behind_s = self._stages[k].behind_s
            layers_s = self._slowdown(k, now_s) * (behind_s[cuts[k]] - behind_s[cuts[k + 1]])
            stage_s.append(self._receive_s[cuts[k]] + layers_s + self._send_s[cuts[k + 1]])
        begin_s = [self._last_left_s[k] for k in live]
        left_s = left_line(begin_s, ((sent_s, stage_s, ()) for sent_s in self._sent_s.values()), now_s=now_s)
        return LineExits(max(now_s, self._ready_s), left_s, stage_s)

    def _seen_from_outside(self, index: int, now_s: float) -> tuple[float, float]:
        """When a stage is free, as it published, and seconds of a whole request there."""
        stage = self._stages[index]
        free_s = now_s if stage.item is None else is_expected_at(stage.free_s, now_s)
        return free_s, max(self._slowdown(index, now_s) * stage.behind_s[0], 1e-9)

    def _slowdown(self, index: int, now_s: float) -> float:
        """What a stage is expected to take, over what it takes undisturbed; where all share a queue it says so."""
        stage, chain_s = self._stages[index], self._stages[index].behind_s[0]
        if not self._reach.shares or self._door.name == "clockwork":
            return self._door.slowdown(index, now_s, chain_s=chain_s)
        if stage.item is not None:
            return stage.slowdown
        return idle_slowdown(stage.slowdown, idle_s=now_s - stage.since_s, chain_s=chain_s)
