"""Who computes which layers: carries out moves while requests flow, and spreads layers over the stages that live."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import ray

from odin.cluster.deployment import Deployment
from odin.control.instances import check_instances, taking_part
from odin.errors import StageLostError
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Policy, Setting, windows_of
from odin.partitioner.relay import Windows
from odin.requests.gateway import Gateway
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.readiness import SLOWDOWN
from odin.stages.device import Device

__all__ = ["Arrangement", "Supervises", "reach"]


class Supervises(Protocol):
    """What is told of moves; see :class:`odin.control.supervision.Supervision`."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""

    def on_migration(self, epoch: int, plan: Plan, windows: Windows | None, why: str, prepare_s: float) -> None:
        """Record a migration that the controller did not decide."""

    def pause(self, paused: bool) -> None:
        """Let the policy decide nothing for a while."""


def reach(plan: Plan, devices: Sequence[Device]) -> Windows:
    """Where boundaries may lie at once: anywhere between two CPUs, which have all weights."""
    on_cpu = [device.kind == "cpu" for device in devices]
    return Windows.around(plan, free=[before and after for before, after in itertools.pairwise(on_cpu)])


class Arrangement:
    """Switches a serving pipeline from one plan, or one set of stages, to another.

    Parameters
    ----------
    setting
        Baselines, costs of cuts, and the plan to return to.
    devices
        The stages'.
    gateway, inlet, inbox, deployment
        What it acts on.
    supervision
        Told of moves that it did not decide.
    in_flight_under
        Most requests in flight under given windows.
    why_no_ray
        Why Ray can start nothing now; None if it can.
    """

    def __init__(
        self,
        setting: Setting,
        devices: Sequence[Device],
        *,
        gateway: Gateway,
        inlet: Inlet,
        inbox: Inbox,
        deployment: Deployment,
        supervision: Supervises,
        in_flight_under: Callable[[Windows], int],
        why_no_ray: Callable[[], str | None],
        on_replaced: Callable[[int], None],
    ) -> None:
        self._setting, self._devices = setting, tuple(devices)
        self._gateway, self._inlet, self._inbox = gateway, inlet, inbox
        self._deployment, self._supervision = deployment, supervision
        self._in_flight_under = in_flight_under
        self._why_no_ray, self._on_replaced = why_no_ray, on_replaced
        self._switching = threading.Lock()  # held while stages prepare, which may take long
        self._epochs = 0
        self._instances = len(self._devices)
        self.live = tuple(range(len(self._devices)))
        """Stages that can take part; set by who follows them."""

    def switch(self, plan: Plan, windows: Windows | None = None, *, why: str = "") -> int:
        """Carry out a migration; report it unless the controller decided it (no ``why``). Returns the epoch.

        Raises
        ------
        StageLostError
            If a stage that is lost has layers by the plan, or one is lost meanwhile.
        """
        with self._switching:
            self._gateway.check_open()
            in_force, live = windows or Windows.of_plan(plan), self.live
            stages = tuple(range(len(plan)))
            if self._instances < len(stages):  # who says where requests change hands says it for all stages
                self._instances = len(stages)
                self._supervision.pause(live != stages)
            if live != stages and not self._shares_all(in_force):
                stages, in_force = live, self._without_lost(plan, in_force, live)
            try:
                return self._prepare_and_switch(plan, in_force, stages, told=windows, why=why)
            finally:
                self._gateway.check_open()  # if it was closed meanwhile, that is what is to be told

    def _prepare_and_switch(
        self, plan: Plan, in_force: Windows, stages: tuple[int, ...], *, told: Windows | None, why: str
    ) -> int:
        """Have stages prepared for windows with a row for each, and use them; the lock is held."""
        begin_s = time.perf_counter()
        # An epoch is never used twice, even if preparing fails: a stage may already have prepared for it.
        self._epochs += 1
        epoch, live = self._epochs, self.live
        try:
            hanging = [stage for stage in range(len(plan)) if stage not in live and self._gateway.sender(stage)]
            self._deployment.prepare(
                epoch,
                in_force,
                stages,
                live=live,
                others=hanging,
            )
        except ray.exceptions.RayActorError as error:
            raise StageLostError(f"a stage was lost while stages prepared for {in_force}; try again") from error
        limit = self._in_flight_under(in_force)
        self._gateway.switch(epoch, plan, in_force, stages=stages, max_in_flight=limit)
        if why:  # before the next switch can begin: the controller gets epochs in their order
            self._supervision.on_migration(epoch, plan, told, why, time.perf_counter() - begin_s)
        return epoch

    @property
    def instances(self) -> int:
        """How many stages are to take new requests: all of them, or as many as :meth:`set_instances` was told."""
        return self._instances

    def set_instances(self, asked: int) -> None:
        """Let so many stages take new requests from the next one on; see :mod:`odin.control.instances`.

        Raises
        ------
        ValueError
            If the number is not valid, or stages do not take requests by themselves.
        StageLostError
            If one does not answer.
        """
        with self._switching:
            self._gateway.check_open()
            policy = self._supervision.policy
            asked = check_instances(
                asked,
                stages=len(self._devices),
                policy=policy.name,
                relays=windows_of(policy, self._setting) is not None,
                shares_queue=self._inlet.queue is not None,
            )
            if asked == self._instances:
                return
            if not self.live:
                raise StageLostError("all stages are lost at the moment; try again when one is back")
            before, self._instances = self._instances, asked
            try:
                self._spread(taking_part(self.live, asked), f"{asked} of {len(self._devices)} instances were asked for")
            except BaseException:
                self._instances = before
                raise
            finally:
                self._gateway.check_open()

    def _shares_all(self, windows: Windows) -> bool:
        """Whether all stages take new requests from one queue: then it does not matter whether one is lost."""
        return self._inlet.queue is not None and windows.all_begin

    def _without_lost(self, plan: Plan, windows: Windows, live: tuple[int, ...]) -> Windows:
        for stage, layers in enumerate(plan):
            if layers and stage not in live:
                raise StageLostError(
                    f"stage {stage} ({self._devices[stage]}) is lost at the moment; give a plan without layers on it, "
                    "or wait until it is back",
                    stage,
                )
        return Windows((*[windows[stage] for stage in live[:-1]], windows[-1]))

    # -- what odin.control.recovery asks for ------------------------------------------------------------------------

    def name(self, stage: int) -> str:
        """Stage, device and process, for messages."""
        return f"stage {stage} ({self._devices[stage]}, process {self.pid(stage)})"

    def pid(self, stage: int) -> int:
        """Process of a stage."""
        return self._deployment.infos[stage].pid

    def wants_core(self, stage: int) -> bool:
        """Whether its process waits for its core or has it, as far as is known from here."""
        return self._deployment.wants_core(stage)

    def has_answered(self, stage: int) -> bool:
        """Whether a stage that did not answer has done so since then."""
        return self._deployment.has_answered(stage)

    def regroup(self, stages: tuple[int, ...]) -> None:
        """Spread all layers over these stages, or as many of them as are to take part, from the next request on.

        Raises
        ------
        StageLostError
            If one does not answer, which is its ``stage`` then.
        """
        with self._switching:
            self._gateway.check_serving()
            now, count = self._gateway.in_force, len(self._devices)
            if self._shares_all(now.windows) and len(now.stages) == self._instances == count:
                return
            taking = taking_part(stages, self._instances)
            if self._instances < count and taking == now.stages:  # those that take no part may come and go
                return
            self._spread(taking, f"{'all' if len(stages) == count else len(stages)} of {count} stages are there")

    def _spread(self, stages: tuple[int, ...], why: str) -> None:
        """Spread all layers over these stages, as fast as they now are; the lock is held."""
        count = len(self._devices)
        whole = len(stages) == count
        self._supervision.pause(not whole)
        plan = self._setting.plan if whole else self._plan_over(stages)
        own = Plan(plan[stage] for stage in stages)
        relays = windows_of(self._supervision.policy, self._setting) is not None
        windows = reach(own, [self._devices[stage] for stage in stages]) if relays else Windows.of_plan(own)
        told = windows.with_idle(stages, count) if windows.plan is None else None
        self._prepare_and_switch(plan, windows, stages, told=told, why=why)

    def _plan_over(self, stages: Sequence[int]) -> Plan:
        """The best plan if only these stages take part, as slow as they say they are."""
        setting, factors = self._setting, []
        for stage in stages:
            sender = self._gateway.sender(stage)
            factors.append(1.0 if sender is None else max(1.0, sender.readiness.words[SLOWDOWN]))
        times_s = setting.baseline_s[list(stages)] * np.array(factors)[:, None]
        best = balance(times_s, send_s=setting.send_s, receive_s=setting.receive_s).plan
        layers = dict(zip(stages, best, strict=True))
        return Plan(layers.get(stage, 0) for stage in range(len(self._devices)))

    def end(self, stage: int) -> None:
        """End a stage's process for good, also one that is stopped."""
        self._deployment.end(stage)

    def replace(self, stage: int) -> None:
        """Start another process in a stage's place and connect it, while requests flow; takes seconds."""
        self._deployment.start_again(stage)
        with self._switching:  # no epoch may begin that it does not know
            sender = self._deployment.join(
                stage, self._gateway.in_force, live=self.live, inlet=self._inlet, receive=self._inbox.add
            )
            self._gateway.connect(stage, sender)
        self._on_replaced(stage)

    @property
    def cannot_replace(self) -> str | None:
        """Why no process can be started now; None if one can."""
        return self._why_no_ray()
