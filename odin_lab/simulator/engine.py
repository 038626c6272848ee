"""The simulation's loop: request by request, with whatever finished before its submission looked at first.

Requests are prepared in chunks under one plan and the same conditions, for which everything but the running maximum
of :mod:`odin_lab.simulator.queueing` is computed at once; a new plan ends the chunk.

A request is submitted when it has come, and fewer than ``in_flight`` are under way. Before that the controller has
looked at every request finished until then, one after the other: so it runs under the plan that it would live.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.compiled import Loops, loops
from odin_lab.simulator.conditions import Conditions
from odin_lab.simulator.control import Control
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.noise import ALONE, BLOCK
from odin_lab.simulator.passing import Gate
from odin_lab.simulator.queueing import Line
from odin_lab.simulator.serving import Serving
from odin_lab.simulator.world import World

__all__ = ["Engine", "Truth"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Truth = Literal["now", "finished", "hidden"]

_FIRST_CHUNK, _LARGEST_CHUNK = 16, 512


class _Layout:
    """What follows from a plan alone."""

    __slots__ = (
        *("plan", "number", "cuts", "first", "last", "holder", "receive_s", "send_s", "transfer_s"),
        *("before", "behind", "places"),
    )

    def __init__(self, plan: Plan, number: int, world: World) -> None:
        self.plan, self.number = plan, number
        bounds = np.cumsum([0, *plan])
        self.cuts: tuple[int, ...] = tuple(bounds.tolist())
        self.first, self.last = bounds[:-1], bounds[1:]
        self.holder = np.repeat(np.arange(len(plan)), plan)
        self.receive_s, self.send_s = world.receive_s[self.first], world.send_s[self.last]
        self.transfer_s = self.receive_s + self.send_s
        # Where what belongs to the plan is in flat arrays: by stages and cuts, and by stages and layers.
        stages, layers = np.arange(len(plan)), np.arange(len(self.holder))
        self.before = stages * (len(layers) + 1) + self.first
        self.behind = stages * (len(layers) + 1) + self.last
        self.places = self.holder * len(layers) + layers


@dataclass
class _Chunk:
    """Requests prepared to run under one plan and the same conditions, and what their stages will tell of them."""

    begin: int
    layout: _Layout
    trial: bool
    drawn: NDArray[np.generic]
    stage_s: FloatArray
    layer_s: FloatArray
    true_s: FloatArray
    conditions_number: int
    bottleneck_s: float
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.begin + len(self.stage_s)  # fewer if a new plan comes in between


class Engine:
    """One run. For the parameters see :func:`odin_lab.simulator.simulate`."""

    def __init__(
        self,
        world: World,
        control: Control,
        *,
        plan: Plan,
        requests: int,
        interference: Interference,
        arrivals: Arrivals,
        in_flight: int,
        slots: int,
        serial_trials: bool,
        truth: Truth,
        seed: int,
    ) -> None:
        self.control = control
        self._world, self._requests = world, requests
        self._in_flight, self._serial, self._truth = in_flight, serial_trials, truth
        self._clients = arrivals.clients or in_flight
        self._coming_s = arrivals.times_s(requests, np.random.default_rng([seed, 2]))
        self._random = np.random.default_rng([seed, 1])
        self._line = Line(world.device_count, slots=slots)
        known = interference.unit == "seconds"
        self._conditions = Conditions(world, interference, known=known)
        self._now = Conditions(world, interference, known=known) if truth == "now" else self._conditions
        self._serving = Serving(self._conditions, interference)
        self._layouts: dict[Plan, _Layout] = {}
        self.plans: list[Plan] = []
        self._block_begin = -BLOCK
        self._blocks = world.noise.blocks(self._random, requests=BLOCK, devices=world.device_count)
        self._drawn: NDArray[np.generic] = np.empty((0, 0))
        self._factors: FloatArray = np.empty((0, 0))
        self._disturbed_factors: dict[tuple[int, str], FloatArray] = {}
        self._layout, self._trying = self._layout_of(plan), False
        self._chunks: deque[_Chunk] = deque()  # those with requests that are not looked at yet
        self._latest_s = 0.0
        self._looked = 0
        self._loops = loops()
        self._passes = self._loops is not None and not control.moves  # many requests at once
        self._served = 0
        self.arrived_s: FloatArray = np.empty(requests)
        self.submitted_s: FloatArray = np.empty(requests)
        self.finished_s: FloatArray = np.empty(requests)
        self._gate = Gate(
            np.empty(0) if self._coming_s is None else self._coming_s,
            *(self._clients, in_flight, float(world.send_s[0]), float(world.receive_s[-1])),
            *(self.arrived_s, self.submitted_s, self.finished_s),
        )
        self.plan_index: IntArray = np.empty(requests, dtype=np.int64)
        self.conditions_number: IntArray = np.empty(requests, dtype=np.int64)
        self.bottleneck_s: FloatArray = np.empty(requests)
        self.trial: NDArray[np.bool_] = np.zeros(requests, dtype=np.bool_)

    def run(self) -> None:
        """Serve all requests, and let the controller look at the last ones."""
        size = _FIRST_CHUNK
        while self._conditions.next_unsettled <= 0:
            self._settle(0.0)
        while (request := self._served) < self._requests:
            moved = self._serve(request, size)
            size = _FIRST_CHUNK if moved else max(_FIRST_CHUNK, min(2 * (self._served - request), _LARGEST_CHUNK))
        self._look_until(math.inf)

    # -- requests ---------------------------------------------------------------------------------------------------

    def _serve(self, request: int, size: int) -> bool:
        """Prepare and serve requests under the plan in force, until it or the conditions change."""
        coming_s, entering_s = self._coming_s, float(self._world.send_s[0])
        leaving_s = float(self._world.receive_s[-1])
        arrived_s, submitted_s, finished_s = self.arrived_s, self.submitted_s, self.finished_s
        control, line, in_flight, clients = self.control, self._line, self._in_flight, self._clients
        chunk: _Chunk | None = None
        begin = end = request
        moved = False
        conditions = self._conditions
        while True:
            if coming_s is not None:
                arrives_s = coming_s.item(request)
            else:
                arrives_s = finished_s.item(request - clients) if request >= clients else 0.0
            at_s = arrives_s
            if request >= in_flight:
                at_s = max(at_s, finished_s.item(request - in_flight))
            if at_s < self._latest_s:  # behind one that had to wait
                at_s = self._latest_s
            if request > self._looked and not self._passes:
                if self._serial:
                    at_s = self._wait_for_trials(request, at_s)
                else:
                    self._look_until(at_s)
            self._latest_s = at_s
            while control.switches and control.switches[0].at_s <= at_s:
                switch = control.switches.popleft()
                self._layout, self._trying, moved = self._layout_of(switch.plan), switch.trial, True
            if conditions.advance(at_s) and chunk is not None:
                break
            if chunk is None:
                chunk = self._prepare(request, size)
                end = chunk.end
                moved = False
            elif moved:
                break
            left_s = line.step(request - begin, at_s + entering_s)
            if left_s > self._serving.next_s and self._correct(chunk, request - begin, at_s + entering_s):
                left_s, end = line.left_s.item(-1), request + 1
            arrived_s[request], submitted_s[request], finished_s[request] = arrives_s, at_s, left_s + leaving_s
            request += 1
            if self._loops is not None and self._passes and request < end:
                request = self._pass(chunk, request, end, self._loops)
            self._served = request
            while request >= conditions.next_unsettled:
                self._settle(finished_s.item(request - 1))
            if request == end:
                break
        assert chunk is not None
        chunk.end = request
        if self._passes and not control.idle:
            self._look_all(chunk)
        self.plan_index[begin:request] = chunk.layout.number
        self.trial[begin:request] = chunk.trial
        self.conditions_number[begin:request] = chunk.conditions_number
        self.bottleneck_s[begin:request] = chunk.bottleneck_s
        return moved

    def _pass(self, chunk: _Chunk, request: int, end: int, loops: Loops) -> int:
        """Let requests pass as long as nothing happens between them; returns the one that is next."""
        conditions, serving = self._conditions, self._serving
        end = int(min(end, conditions.next_unsettled))
        if request >= end:
            return request
        now, self._latest_s = loops.pass_requests(
            *(request, end, self._gate, self._line.prepared(chunk.begin), self._latest_s),
            *(conditions.next_edge, serving.next_upcoming_s, *serving.pending),
        )
        self._line.passed(now - request)
        return now

    def _settle(self, at_s: float) -> None:
        """What was to change when so many requests had been answered as now have been changes at this moment."""
        requests = self._conditions.next_unsettled
        for conditions in {self._conditions, self._now}:
            conditions.settle(at_s)
        self._serving.settle(requests, at_s)

    def _wait_for_trials(self, request: int, at_s: float) -> float:
        """When a request goes if those under trial plans go alone, each once the controller is done with the last."""
        while True:
            trying = self.control.exploring
            self._look_until(at_s)
            later_s = at_s
            if trying or self.control.exploring:
                later_s = max(at_s, self.control.free_s)
            if self.control.exploring:
                later_s = max(later_s, self.finished_s.item(request - 1))
            if later_s == at_s:
                return at_s
            at_s = later_s

    def _correct(self, chunk: _Chunk, index: int, entry_s: float) -> bool:
        """Correct the last step, and what is told of the request, if conditions change beneath it: do they?

        Devices in their order: what one takes longer comes too late for those before it, and may bring those after it
        into conditions that are still to come.
        """
        line, serving = self._line, self._serving
        done: set[int] = set()
        while devices := serving.changed(line.left_s) - done:
            stage = min(devices)
            done.add(stage)
            begin_s = line.began_s(stage, entry_s)
            scenario = serving.scenario_at(stage, begin_s)
            factor = float(self._world.noise.factors(chunk.drawn[index, stage : stage + 1], scenario)[0])
            first, last = chunk.layout.cuts[stage : stage + 2]
            layer_s = serving.take(stage, first, last, begin_s, factor)
            added_s = sum(layer_s) - chunk.stage_s.item(index, stage)
            chunk.stage_s[index, stage] += added_s
            if not self.control.idle:
                chunk.layer_s[index, first:last] = layer_s
            line.lengthen(index, stage, added_s, entry_s)
        for stage in done:
            serving.catch_up(stage, line.left_s.item(stage))
        return bool(done)

    # -- what is prepared -------------------------------------------------------------------------------------------

    def _prepare(self, request: int, size: int) -> _Chunk:
        """Draw noise, and compute everything that does not depend on when requests come."""
        if request >= self._block_begin + BLOCK:
            self._draw(request // BLOCK * BLOCK)
        conditions, serving, layout = self._conditions, self._serving, self._layout
        end = min(request + size, self._block_begin + BLOCK, self._requests)
        rows = slice(request - self._block_begin, end - self._block_begin)
        drawn, factors = self._drawn[rows], self._factors[rows]
        if serving.scenarios:
            factors = factors.copy()
            for device, scenario in serving.scenarios.items():
                factors[:, device] = self._factors_under(device, scenario)[rows]
        stage_s = (serving.prefix_s.take(layout.behind) - serving.prefix_s.take(layout.before)) * factors
        if self.control.idle:
            layer_s = np.empty((end - request, 0))
        else:
            layer_s = serving.layers_s.take(layout.places) * factors.take(layout.holder, axis=1)
        usual_s = conditions.prefix_s.take(layout.behind) - conditions.prefix_s.take(layout.before)
        self._line.load(stage_s, layout.receive_s, layout.send_s)
        chunk = _Chunk(
            request,
            layout,
            trial=self._trying,
            drawn=drawn,
            stage_s=stage_s,
            layer_s=layer_s,
            true_s=conditions.true_s,
            conditions_number=conditions.number,
            bottleneck_s=max((usual_s + layout.transfer_s).tolist()),
        )
        if not self.control.idle:
            self._chunks.append(chunk)
        return chunk

    def _draw(self, begin: int) -> None:
        while self._block_begin < begin:
            self._drawn = next(self._blocks)
            self._block_begin += BLOCK
        self._factors = self._world.noise.factors(self._drawn, ALONE)
        self._disturbed_factors.clear()

    def _factors_under(self, device: int, scenario: str) -> FloatArray:
        """Noise of a device under a scenario in the present block, shape (requests,)."""
        factors = self._disturbed_factors.get((device, scenario))
        if factors is None:
            factors = self._world.noise.factors(self._drawn[:, device], scenario)
            self._disturbed_factors[device, scenario] = factors
        return factors

    def _layout_of(self, plan: Plan) -> _Layout:
        layout = self._layouts.get(plan)
        if layout is None:
            layout = self._layouts[plan] = _Layout(plan, len(self.plans), self._world)
            self.plans.append(plan)
        return layout

    # -- the controller ---------------------------------------------------------------------------------------------

    def _look_all(self, chunk: _Chunk) -> None:
        """Let the controller look at the requests of a chunk, which leads to nothing: at any time, then."""
        rows, layout = slice(0, chunk.end - chunk.begin), chunk.layout
        if self._loops is not None and self.control.looks_ahead:
            self.control.look_all(layout.cuts, chunk.stage_s[rows], chunk.layer_s[rows], self._loops.watch)
            self._looked = chunk.end
            self._chunks.clear()
        else:
            self._look_until(math.inf)

    def _look_until(self, at_s: float) -> None:
        """Let the controller look at the requests that are finished, and that it has time for, until ``at_s``."""
        control, finished_s = self.control, self.finished_s
        if control.idle:
            self._looked = self._served
            return
        while self._looked < self._served:
            done_s = finished_s.item(self._looked)
            now_s = done_s if done_s > control.free_s else control.free_s
            if now_s > at_s:
                return
            while self._chunks[0].end <= self._looked:
                self._chunks.popleft()
            chunk = self._chunks[0]
            index = self._looked - chunk.begin
            self._looked += 1
            true_s: FloatArray | None = None
            if self._truth == "now":
                self._now.advance(now_s)
                true_s = self._now.true_s
            elif self._truth == "finished":
                true_s = chunk.true_s
            layout = chunk.layout
            if self._loops is not None and control.looks_ahead:
                rows = slice(index, min(chunk.end, self._served) - chunk.begin)
                control.look_ahead(layout.cuts, chunk.stage_s[rows], chunk.layer_s[rows], self._loops.watch)
            control.look(layout.plan, layout.cuts, chunk.stage_s[index], chunk.layer_s[index], true_s, done_s, now_s)
