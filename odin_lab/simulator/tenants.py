"""Several pipelines on the same devices, in simulation: who computes there takes turns with all who do.

Processor sharing: a device gives each of the ``n`` that compute on it 1/n of its time, be it a tenant's stage or a
program from outside (:class:`Outsider`). Where several tenants compute at once, each needs a part more (``mixing``).
Each pipeline has a controller as in serving, which sees what its own stages measured::

    tenant A   request -> stage on device 0 -> stage on device 1 -> done -> its policy -> a plan
    tenant B   request -> stage on device 0 -> stage on device 1 -> done -> its policy -> a plan
                                 turns with A                      both of one planner, if "together"

Under ``relay`` each stage takes a whole request from one queue when it is free; that requests change hands between
layers is left out, which matters little where they queue. Moves take effect with the next request that is submitted. A
tenant that may use only a share of a device pauses as its stages do live (:mod:`odin.stages.pacer`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from odin.control.decision_core import DecisionCore, Finished, PolicyFault
from odin.monitor.detectors.base import Detector
from odin.monitor.watch import StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Policy, RelayPolicy, TenantSetting, make_policy
from odin.partitioner.policies.joint_planner import JointPlanner
from odin.partitioner.policies.together import TogetherPolicy
from odin.stages.pacer import Pacer
from odin_lab.simulator.world import World

__all__ = ["Outsider", "Tenant", "TenantRun", "alone_hz", "simulate_tenants"]

FloatArray = NDArray[np.float64]

_WARM_UP = 0.2
"""Part of a tenant's time that is left out of its figures: moves take place then."""


@dataclass(frozen=True)
class Tenant:
    """One pipeline, with a stage on each device of its world.

    Attributes
    ----------
    name
        Of its model.
    world
        Its layers' seconds on the devices, and transfers.
    policy
        ``together``, ``static``, ``relay``, ``filter`` or another name.
    rate_hz
        Requests per second, at random times; None: ``in_flight`` are always under way.
    share
        Largest part of a device's time for each stage.
    begin_s, end_s
        When it is there.
    plan
        To begin with; default: the best one without others.
    """

    name: str
    world: World
    policy: str = "together"
    rate_hz: float | None = None
    in_flight: int = 4
    share: float = 1.0
    begin_s: float = 0.0
    end_s: float = math.inf
    plan: Plan | None = None


@dataclass(frozen=True)
class Outsider:
    """A program on a device that computes all the time, as ``weight`` tenants would."""

    device: int
    begin_s: float = 0.0
    end_s: float = math.inf
    weight: float = 1.0


@dataclass
class TenantRun:
    """What came of a tenant.

    Attributes
    ----------
    throughput_hz
        Requests per second, without the first fifth of its time.
    latency_s
        Of these requests, from arrival to answer.
    used_s
        Seconds that each device computed for it, over all its time.
    moves
        When it moved, where to, and why.
    answers
        When each request was answered, and how long it took; all of them, in order.
    unanswered_s
        When those came that were not answered in the end.
    """

    name: str
    throughput_hz: float = 0.0
    latency_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    used_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    moves: list[tuple[float, Plan, str]] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)
    unanswered_s: list[float] = field(default_factory=list)

    @property
    def p99_s(self) -> float:
        """99th percentile of the latency; nan without requests."""
        return float(np.percentile(self.latency_s, 99)) if len(self.latency_s) else math.nan


@dataclass
class _Request:
    arrived_s: float
    plan: Plan
    wall_s: list[float]
    delay_s: list[float]


@dataclass
class _Server:
    """A tenant's stage."""

    device: int
    pacer: Pacer
    waiting: deque[_Request] = field(default_factory=deque)
    request: _Request | None = None
    left_s: float = 0.0
    own_s: float = 0.0
    began_s: float = 0.0
    paused_until_s: float = -math.inf


class _Pipeline:
    """A tenant with its stages and its controller."""

    def __init__(self, tenant: Tenant, planner: JointPlanner, noise: float, random: np.random.Generator) -> None:
        self.tenant, self.noise, self.random = tenant, noise, random
        world = tenant.world
        devices = tuple(f"cpu:{device}" for device in range(world.device_count))
        setting = world.setting(tenant.plan)._replace(tenant=TenantSetting(tenant.name, devices, tenant.share))
        policy = make_policy(tenant.policy)
        if isinstance(policy, TogetherPolicy):
            options = {name: getattr(policy, name) for name in ("min_gain", "certainty", "weight")}
            policy = TogetherPolicy(**options, planner=planner)
        self.relays = isinstance(policy, RelayPolicy)
        self.core = _core(policy, setting, StageWatch(setting.baseline_s))
        self.setting = setting
        self.servers = [_Server(device, Pacer(tenant.share)) for device in range(world.device_count)]
        self.shared: deque[_Request] = deque()
        self.run = TenantRun(tenant.name, used_s=np.zeros(world.device_count))
        self.done: list[tuple[float, float]] = []  # when, and how long it took
        self.finished = self.under_way = 0
        self.next_arrival_s = tenant.begin_s
        self.ended = False

    # -- requests ---------------------------------------------------------------------------------------------------

    def arrive(self, now_s: float) -> None:
        """Let in what comes now."""
        tenant = self.tenant
        if tenant.rate_hz is None:
            while self.under_way < tenant.in_flight:
                self._submit(now_s)
            self.next_arrival_s = math.inf
        else:
            self._submit(now_s)
            self.next_arrival_s = now_s + float(self.random.exponential(1 / tenant.rate_hz))

    def _submit(self, now_s: float) -> None:
        stages = len(self.servers)
        request = _Request(now_s, self.core.plan, [0.0] * stages, [0.0] * stages)
        self.under_way += 1
        if self.relays:
            self.shared.append(request)
        else:
            self._send(request, 0, now_s)

    def _send(self, request: _Request, stage: int, now_s: float) -> None:
        """To the next stage with layers; from the last one it is answered."""
        while stage < len(self.servers) and request.plan[stage] == 0:
            stage += 1
        if stage < len(self.servers):
            self.servers[stage].waiting.append(request)
        else:
            self._answer(request, now_s)

    def begin(self, now_s: float) -> None:
        """Each stage that is free takes what waits for it."""
        for stage, server in enumerate(self.servers):
            waiting = self.shared if self.relays else server.waiting
            if server.request is not None or server.paused_until_s > now_s or not waiting:
                continue
            request = server.request = waiting.popleft()
            if self.relays:
                count = self.setting.layer_count
                request.plan = Plan(count if stage == other else 0 for other in range(len(self.servers)))
            first, last = request.plan.ranges[stage]
            setting = self.setting
            seconds = float(
                setting.baseline_s[stage, first:last].sum() + setting.receive_s[first] + setting.send_s[last]
            )
            server.left_s = seconds * float(self.random.lognormal(0.0, self.noise))
            server.own_s, server.began_s = 0.0, now_s
            server.pacer.begin(now_s)

    def finish(self, stage: int, now_s: float) -> None:
        """A stage has done with its request."""
        server = self.servers[stage]
        request, server.request = server.request, None
        assert request is not None
        request.wall_s[stage] = now_s - server.began_s
        request.delay_s[stage] = max(0.0, now_s - server.began_s - server.own_s)
        self.run.used_s[stage] += server.own_s
        server.paused_until_s = now_s + server.pacer.done(now_s, server.own_s)
        if self.relays:
            self._answer(request, now_s)
        else:
            self._send(request, stage + 1, now_s)

    def _answer(self, request: _Request, now_s: float) -> None:
        self.finished += 1
        self.under_way -= 1
        self.done.append((now_s, now_s - request.arrived_s))
        if self.tenant.rate_hz is None and not self.ended:
            self.next_arrival_s = now_s
        if self.relays:
            return
        stage_s = np.array(request.wall_s)
        layer_s = np.concatenate(
            [
                wall_s * row[first:last] / max(float(row[first:last].sum()), 1e-12)
                for wall_s, row, (first, last) in zip(
                    request.wall_s, self.setting.baseline_s, request.plan.ranges, strict=True
                )
            ]
        )
        cuts = (0, *(last for _, last in request.plan.ranges))
        finished = Finished(
            *(self.finished, request.plan, cuts, stage_s, layer_s, now_s), delay_s=np.array(request.delay_s)
        )
        _, observation = self.core.observe(finished)
        decision = self.core.decide(observation)
        if decision is not None:
            self.core.carried_out(decision.plan)
            self.run.moves.append((now_s, decision.plan, decision.why))

    def end(self) -> None:
        """It goes: what waits is dropped."""
        self.ended = True
        self.next_arrival_s = math.inf
        self.core.end()
        self.shared.clear()
        for server in self.servers:
            server.waiting.clear()
            server.request = None

    def sum_up(self, until_s: float) -> TenantRun:
        """Its figures."""
        begin_s, end_s = self.tenant.begin_s, min(self.tenant.end_s, until_s)
        from_s = begin_s + _WARM_UP * (end_s - begin_s)
        latency_s = [took_s for at_s, took_s in self.done if from_s <= at_s <= end_s]
        self.run.latency_s = np.array(latency_s)
        self.run.throughput_hz = len(latency_s) / (end_s - from_s)
        self.run.answers = self.done
        waiting = [*self.shared, *(one for server in self.servers for one in server.waiting)]
        waiting += [server.request for server in self.servers if server.request is not None]
        self.run.unanswered_s = sorted(request.arrived_s for request in waiting)
        return self.run


def _core(policy: Policy, setting: object, watch: StageWatch) -> DecisionCore:
    def fault(fault: PolicyFault) -> None:
        raise fault.error

    def replaced(detector: Detector, error: BaseException) -> None:
        raise error

    return DecisionCore(setting, policy, watch, on_policy_fault=fault, on_detector_fault=replaced)  # type: ignore[arg-type]


def simulate_tenants(
    tenants: Sequence[Tenant],
    *,
    seconds: float,
    outsiders: Sequence[Outsider] = (),
    mixing: float = 0.05,
    noise: float = 0.05,
    seed: int = 0,
) -> list[TenantRun]:
    """Run tenants side by side.

    Parameters
    ----------
    tenants
        All have the same devices.
    seconds
        For how long.
    outsiders
        Programs beside them.
    mixing
        Part more that a request needs of a device while stages of several tenants compute there.
    noise
        Standard deviation of the logarithm of what a request needs of a stage.

    Raises
    ------
    ValueError
        If the tenants have different numbers of devices.
    """
    counts = {tenant.world.device_count for tenant in tenants}
    if len(counts) != 1:
        raise ValueError(f"tenants with {sorted(counts)} devices: all have the same ones")
    (devices,) = counts
    planner = JointPlanner()
    pipelines: list[_Pipeline] = []
    coming = sorted(range(len(tenants)), key=lambda index: tenants[index].begin_s)
    by_index: dict[int, _Pipeline] = {}
    now_s = 0.0
    while True:
        while coming and tenants[coming[0]].begin_s <= now_s:
            index = coming.pop(0)
            random = np.random.default_rng([seed, index])
            by_index[index] = pipeline = _Pipeline(tenants[index], planner, noise, random)
            pipelines.append(pipeline)
        for pipeline in pipelines:
            if not pipeline.ended and pipeline.tenant.end_s <= now_s:
                pipeline.end()
            while pipeline.next_arrival_s <= now_s:
                pipeline.arrive(now_s)
            pipeline.begin(now_s)
        if now_s >= seconds:
            break
        changes_s = [tenants[index].begin_s for index in coming[:1]]
        changes_s += [one.tenant.end_s for one in pipelines if not one.ended]
        changes_s += [one.next_arrival_s for one in pipelines]
        changes_s += [at_s for one in outsiders for at_s in (one.begin_s, one.end_s)]
        changes_s += [server.paused_until_s for one in pipelines for server in one.servers]
        until_s = min([seconds, *(at_s for at_s in changes_s if at_s > now_s)])
        now_s = _compute(pipelines, outsiders, devices, mixing, now_s, until_s)
    return [
        by_index[index].sum_up(seconds) if index in by_index else TenantRun(tenants[index].name)
        for index in range(len(tenants))
    ]


def _compute(
    pipelines: Sequence[_Pipeline],
    outsiders: Sequence[Outsider],
    devices: int,
    mixing: float,
    now_s: float,
    until_s: float,
) -> float:
    """Let all compute until one has done with its request, at most until a given time; returns the time."""
    busy = [
        (pipeline, stage, server)
        for pipeline in pipelines
        for stage, server in enumerate(pipeline.servers)
        if server.request is not None
    ]
    part, slower = [1.0] * devices, [1.0] * devices
    for device in range(devices):
        own = sum(server.device == device for _, _, server in busy)
        outside = sum(one.weight for one in outsiders if one.device == device and one.begin_s <= now_s < one.end_s)
        part[device] = 1.0 / max(1.0, own + outside)
        slower[device] = 1.0 + mixing * (own > 1)
    ends_s = [now_s + server.left_s * slower[server.device] / part[server.device] for _, _, server in busy]
    at_s = min([until_s, *ends_s])
    for (_, _, server), end_s in zip(busy, ends_s, strict=True):
        device = server.device
        used_s = (at_s - now_s) * part[device]
        server.own_s += used_s
        server.left_s = 0.0 if end_s <= at_s else server.left_s - used_s / slower[device]
    for (pipeline, stage, _), end_s in zip(busy, ends_s, strict=True):
        if end_s <= at_s:
            pipeline.finish(stage, at_s)
    return at_s


def alone_hz(tenant: Tenant, *, seconds: float, run: Callable[..., list[TenantRun]] = simulate_tenants) -> float:
    """Throughput of a tenant that has the devices for itself, with as many requests as it takes."""
    (alone,) = run(
        [Tenant(tenant.name, tenant.world, "static", in_flight=2 * tenant.world.device_count)], seconds=seconds
    )
    return alone.throughput_hz
