"""Plans of a line whose devices come and go, and the policy that moves layers between those that live."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin.control.detectors import make_detector
from odin.monitor.watch import StageWatch
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Policy, Setting, windows_of
from odin.partitioner.relay import Windows
from odin_lab.simulator.conditions import DEAD_S
from odin_lab.simulator.control import Control
from odin_lab.simulator.relay import Reach

__all__ = ["Epoch", "Steering"]

FloatArray = NDArray[np.float64]


class Epoch(Reach):
    """A plan, or windows, over some devices, one row each; for all devices, those that are lost have no layers.

    Attributes
    ----------
    plan, live
        Over the devices ``live`` only.
    number
        Of the plan over all devices among :attr:`Steering.plans`.
    era
        How many times there had been other devices before.
    trial
        Whether the plan is tried out.
    """

    def __init__(
        self, windows: Windows, *, plan: Plan, live: Sequence[int], devices: int, number: int, era: int, trial: bool
    ) -> None:
        rows = dict(zip(live, windows, strict=True))
        whole = list(accumulate(range(devices), lambda before, device: rows.get(device, before), initial=(0, 0)))[1:]
        super().__init__(Windows(whole))
        self.shares = windows.all_begin
        self.plan, self.live, self.number, self.era, self.trial = plan, tuple(live), number, era, trial
        self.cuts = (0, *(last for _, last in plan.ranges))


class _Done(NamedTuple):
    epoch: Epoch
    layer_s: list[float]
    done_s: float


class Steering:
    """The controller in simulated time, started anew whenever devices are lost or back.

    Parameters
    ----------
    setting
        What the policy is told of all devices.
    policy
        Decides; one that sets windows is asked for them only.
    detector
        Text form; ``none`` detects nothing.
    prepare_s
        Seconds from a decision to the first request that can be submitted under the new plan.

    Attributes
    ----------
    epoch
        In force for new requests.
    plans
        Over all devices, each once.
    decisions, changes
        As :class:`~odin_lab.simulator.Run` has them; plans over all devices.
    """

    def __init__(self, setting: Setting, policy: Policy, *, detector: str, prepare_s: float) -> None:
        self._setting, self._policy, self._detector, self._prepare_s = setting, policy, detector, prepare_s
        self._control: Control | None = None
        self._done: deque[_Done] = deque()
        self._era = -1
        self.plans: list[Plan] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.changes: list[tuple[int, int]] = []
        self._answered = self._before = 0
        self.epoch = self.start(range(setting.stage_count), setting.plan)

    def start(self, live: Sequence[int], plan: Plan) -> Epoch:
        """Start anew over the devices that live, with a plan over them."""
        rows, setting = list(live), self._setting
        if len(rows) < setting.stage_count:
            baseline_s, reach = setting.baseline_s[rows], setting.reach
            if reach is not None:
                reach = Windows.whole(stage_count=len(rows), layer_count=setting.layer_count)
            setting = setting._replace(baseline_s=baseline_s, reach=reach)
        setting = setting._replace(plan=plan)
        self._era += 1
        self._done.clear()
        self._collect()
        self._control, self._before = None, self._answered
        windows = windows_of(self._policy, setting)
        if windows is None:
            watch = None
            if self._detector != "none":
                watch = StageWatch(setting.baseline_s, make_detector(self._detector, len(rows)))
            self._control = Control(setting, self._policy, watch, prepare_s=self._prepare_s)
        self.epoch = self._epoch(plan, rows, windows, trial=False)
        return self.epoch

    @property
    def observes(self) -> bool:
        """Whether anybody looks at finished requests."""
        return self._control is not None and not self._control.idle

    def best_plan(self, live: Sequence[int], true_s: FloatArray) -> Plan:
        """The exact best plan over the devices that live."""
        times_s = true_s[list(live)]
        if np.isinf(times_s).all(axis=0).any():  # no device can run the layer: it takes its time, but it ends
            times_s = np.minimum(times_s, DEAD_S)
        return balance(times_s, send_s=self._setting.send_s, receive_s=self._setting.receive_s).plan

    def finished(self, epoch: Epoch, layer_s: list[float], done_s: float) -> None:
        """A request that began under an epoch has been answered."""
        self._answered += 1
        if self.observes and epoch.era == self._era:
            self._done.append(_Done(epoch, layer_s, done_s))

    def look_until(self, at_s: float, true_s: FloatArray | None) -> None:
        """Look at finished requests, and switch plans, as far as there is time for until ``at_s``."""
        control = self._control
        if control is None:
            return
        while self._done:
            epoch, layer_s, done_s = self._done[0]
            now_s = max(done_s, control.free_s)
            if now_s > at_s:
                break
            self._done.popleft()
            layers = np.array(layer_s)
            stage_s = np.array([layers[first:last].sum() for first, last in epoch.plan.ranges])
            live_s = None if true_s is None else true_s[list(epoch.live)]
            control.look(epoch.plan, epoch.cuts, stage_s, layers, live_s, done_s, now_s)
        while control.switches and control.switches[0].at_s <= at_s:
            switch = control.switches.popleft()
            self.epoch = self._epoch(switch.plan, self.epoch.live, None, trial=switch.trial)

    def stop(self, true_s: FloatArray | None) -> None:
        """Collect what was decided until the end."""
        self.look_until(math.inf, true_s)
        self._collect()

    def _epoch(self, plan: Plan, live: Sequence[int], windows: Windows | None, *, trial: bool) -> Epoch:
        whole = self._over_all(plan, live)
        if whole not in self.plans:
            self.plans.append(whole)
        return Epoch(
            windows or Windows.of_plan(plan),
            plan=plan,
            live=live,
            devices=self._setting.stage_count,
            number=self.plans.index(whole),
            era=self._era,
            trial=trial,
        )

    def _over_all(self, plan: Plan, live: Sequence[int]) -> Plan:
        layers = dict(zip(live, plan, strict=True))
        return Plan(layers.get(device, 0) for device in range(self._setting.stage_count))

    def _collect(self) -> None:
        """Decisions of the controller that ends, with plans over all devices."""
        if self._control is None:
            return
        live, first = self.epoch.live, self._before
        for request, decision in self._control.decisions:
            self.decisions.append((first + request, decision._replace(plan=self._over_all(decision.plan, live))))
        self.changes += [(first + request, live[stage]) for request, stage in self._control.changes]
