"""A family of variants in simulated time: the policies that serve, on a trace, with and without interference.

Policies (:mod:`odin.family`), admission and its margins are those that serve; only devices and clock are simulated.
Each loaded variant has a stage on each of its devices, and each stage takes whole requests from the variant's queue,
earliest deadline first: as a relay does, but for the layers at which requests change hands. With fixed layers a
request passes all stages in order instead, and each does the same part of it. A device gives each that computes there
the same part of its time, be it a variant's stage, a program from outside (:class:`~odin_lab.simulator.tenants.
Outsider`), or a variant that is being loaded, which computes on the first of its devices. What a request takes by the
profile beyond its device seconds (``cost_s``) passes after them, on no device::

    trace --choose--> variant A   queue -> stage on device 0, stage on device 1
                      variant B   queue -> stage on device 0, stage on device 1    turns with A's
    each second       policy.look -> load, unload, instances
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from odin.family.devices import SharedDevices
from odin.family.facts import Choice, Facts, Prediction, Seen, VariantPolicy, Want
from odin.partitioner.exits import Exits, LineExits, SharedExits
from odin.partitioner.relay import idle_slowdown
from odin.requests.admission import Admission, Forecast
from odin_lab.simulator.tenants import Outsider

__all__ = ["Asked", "FamilyResult", "WantClass", "mixed_trace", "run_family"]

_WEIGHT = 0.3
"""Of the last request in a stage's slowdown, as live."""
_LOOK_S = 1.0
_FORGETS = 10.0


class WantClass(NamedTuple):
    """Requests of one kind: what they ask for, and their part of all."""

    accuracy: float
    latency_s: float
    share: float
    budget: float = 0.0


class Asked(NamedTuple):
    """A request comes."""

    at_s: float
    want: Want


class FamilyResult(NamedTuple):
    """What became of a trace.

    Attributes
    ----------
    requests, kept
        All; answered in time by a variant that is as accurate as asked for.
    late, refused, inaccurate
        Answered, or dropped, too late; refused; answered in time by a variant that is not accurate enough.
    used_s
        Seconds that devices computed for them.
    by_variant
        Answered requests of each.
    reduced, loads, unloads
        Answered by reduced forms; variants loaded and unloaded after the start.
    latency_s
        Of the answered ones.
    """

    requests: int
    kept: int
    late: int
    refused: int
    inaccurate: int
    used_s: float
    by_variant: dict[str, int]
    reduced: int
    loads: int
    unloads: int
    latency_s: tuple[float, ...]

    @property
    def violations(self) -> float:
        """Share of the requests that did not get what they asked for."""
        return 1.0 - self.kept / self.requests if self.requests else 0.0

    @property
    def cost_s(self) -> float:
        """Device seconds for each request that got what it asked for."""
        return self.used_s / self.kept if self.kept else math.inf


def mixed_trace(classes: Sequence[WantClass], *, rate_hz: float, seconds: float, seed: int = 0) -> list[Asked]:
    """Requests at random times (Poisson), each of a class that is drawn by its share."""
    random = np.random.default_rng(seed)
    shares = np.array([one.share for one in classes])
    shares = shares / shares.sum()
    trace, at_s = [], 0.0
    while (at_s := at_s + float(random.exponential(1.0 / rate_hz))) < seconds:
        one = classes[int(random.choice(len(classes), p=shares))]
        trace.append(Asked(at_s, Want(one.accuracy, one.latency_s, one.budget)))
    return trace


class _Request:
    def __init__(self, number: int, want: Want, at_s: float, choice: Choice, forecast: Forecast) -> None:
        self.number, self.want, self.at_s, self.choice, self.forecast = number, want, at_s, choice, forecast
        self.deadline_s = at_s + want.latency_s

    def __lt__(self, other: _Request) -> bool:
        return (self.deadline_s, self.number) < (other.deadline_s, other.number)


class _Stage:
    """Of a variant on a device: what it computes, what waits for it, and how slow it has found itself."""

    def __init__(self, device: int, queue: list[_Request]) -> None:
        self.device, self.queue = device, queue
        self.request: _Request | None = None
        self.left_s = self.took_s = self.own_s = self.began_s = 0.0
        self.slowdown, self.seen_s = 1.0, -math.inf


class _Variant:
    """A variant that is loaded, or not."""

    def __init__(self, devices: Sequence[int], *, refuses: bool, instances: int, fixed_layers: bool) -> None:
        self.queue: list[_Request] = []
        self.stages = [
            _Stage(device, [] if fixed_layers and place else self.queue) for place, device in enumerate(devices)
        ]
        self.admission = Admission(refuses=refuses)
        self.part = 1.0 / len(devices) if fixed_layers else 1.0  # of a request, that a stage computes
        self.instances = instances
        self.loaded = False
        self.ready_s = math.inf
        self.closing = False

    def forecast(self, own_s: float, now_s: float) -> Forecast:
        """As a pipeline's, from how slow its stages were and what they have."""
        free_s, takes_s = [], []
        for stage in self.stages[: self.instances]:
            idle_s = max(0.0, now_s - stage.seen_s) / _FORGETS
            slowdown = idle_slowdown(stage.slowdown, idle_s=idle_s, chain_s=own_s)
            takes_s.append(max(1e-9, slowdown * own_s * self.part))
            free_s.append(now_s if stage.request is None else max(now_s, stage.began_s + slowdown * stage.took_s))
        exits: Exits = SharedExits(free_s, takes_s)
        if self.part < 1.0:
            between = [0, *(len(stage.queue) for stage in self.stages[1:])]
            left_s = [at_s + sent * one_s for at_s, sent, one_s in zip(free_s, between, takes_s, strict=True)]
            exits = LineExits(now_s, left_s, takes_s)
        forecast = self.admission.forecast(exits, now_s, len(self.queue))
        return forecast if self.under_way else self.admission.lenient(forecast)

    @property
    def under_way(self) -> int:
        """Requests that it has."""
        waiting = {id(stage.queue): len(stage.queue) for stage in self.stages}
        return sum(waiting.values()) + sum(stage.request is not None for stage in self.stages)


class _Simulation:
    def __init__(
        self,
        facts: Sequence[Facts],
        policy: VariantPolicy,
        devices: Sequence[Sequence[int]],
        outsiders: Sequence[Outsider],
        *,
        memory_mib: float,
        noise: float,
        seed: int,
        fixed_layers: bool,
    ) -> None:
        self.facts, self.policy, self.outsiders, self.memory_mib = facts, policy, outsiders, memory_mib
        self.noise, self.random = noise, np.random.default_rng([seed, 1])
        self.variants = [
            _Variant(
                own,
                refuses=policy.refuses,
                instances=1 if policy.starts_with_one and not fixed_layers else len(own),
                fixed_layers=fixed_layers,
            )
            for own in devices
        ]
        self.shared = SharedDevices([[str(device) for device in own] for own in devices])
        free_mib = memory_mib
        for one, variant in zip(facts, self.variants, strict=True):
            if one.memory_mib <= free_mib:
                free_mib -= one.memory_mib
                variant.loaded = True
        self.now_s = 0.0
        self.latency_s: list[float] = []
        self.by_variant: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.used_s = 0.0
        self.number = 0
        self._take()

    def _take(self) -> None:
        self.seen = [Seen(False) for _ in self.facts]
        self.sums_s = [0.0] * len(self.facts)

    # -- requests ------------------------------------------------------------------------------------------------------

    def arrive(self, want: Want) -> None:
        """A request comes: it gets a variant, or is refused."""
        loaded = {number for number, variant in enumerate(self.variants) if variant.loaded}

        def predict(variant: int, *, loaded: bool = False) -> Prediction:
            return self._predict(variant, want, loaded=loaded)

        chosen = self.policy.choose(self.facts, loaded, want, predict)
        if chosen.missed >= 0:
            self._note(chosen.missed, missed=1)
        if not isinstance(chosen, Choice):
            self.counts["refused"] += 1
            return
        variant = self.variants[chosen.variant]
        if not variant.loaded:
            self._load(chosen.variant)
        facts = self.facts[chosen.variant]
        forecast = variant.forecast(facts.cost_s * want.samples, self.now_s)
        self.number += 1
        insort(variant.queue, _Request(self.number, want, self.now_s, chosen, forecast))
        self.shared.begun(chosen.variant, facts.cost_s * want.samples)

    def _predict(self, number: int, want: Want, *, loaded: bool) -> Prediction:
        variant, own_s = self.variants[number], self.facts[number].latency_s(want.samples)
        shared_s = self.shared.predict_s(number, own_s, self.now_s)
        if not variant.loaded:
            ready_s = variant.ready_s if variant.ready_s < math.inf else self.now_s + self.facts[number].load_s
            load_s = 0.0 if loaded else ready_s - self.now_s
            return Prediction(load_s + shared_s, load_s + shared_s)
        forecast = variant.forecast(self.facts[number].cost_s * want.samples, self.now_s)
        return Prediction(
            max(forecast.expected_s - self.now_s, shared_s), max(forecast.latest_s - self.now_s, shared_s)
        )

    def begin(self) -> None:
        """Stages that are free take what waits; what is too late is dropped."""
        for number, variant in enumerate(self.variants):
            for stage in variant.stages[: variant.instances] if variant.loaded or variant.closing else ():
                while stage.request is None and stage.queue:
                    request = stage.queue.pop(0)
                    if request.deadline_s <= self.now_s and stage.queue is variant.queue:
                        self._over(number, request)
                        self.counts["late"] += 1
                        continue
                    stage.request, stage.began_s, stage.own_s = request, self.now_s, 0.0
                    stage.took_s = self.facts[number].cost_s * request.want.samples * variant.part
                    stage.left_s = stage.took_s * float(self.random.lognormal(0.0, self.noise))
            if variant.closing and not variant.under_way:
                variant.closing = False

    def _over(self, number: int, request: _Request) -> None:
        self.shared.ended(number, self.facts[number].cost_s * request.want.samples)

    def finish(self, number: int, stage: _Stage) -> None:
        """A stage has done with its request."""
        request, stage.request = stage.request, None
        assert request is not None
        variant, facts = self.variants[number], self.facts[number]
        stage.slowdown += _WEIGHT * ((self.now_s - stage.began_s) / stage.took_s - stage.slowdown)
        stage.seen_s = self.now_s
        self.used_s += stage.own_s
        if variant.part < 1.0 and stage is not variant.stages[-1]:
            insort(variant.stages[variant.stages.index(stage) + 1].queue, request)
            return
        samples = request.want.samples
        done_s = self.now_s + max(0.0, facts.latency_s(samples) - facts.cost_s * samples)
        variant.admission.learn(request.forecast, done_s)
        in_time = done_s <= request.deadline_s
        variant.admission.ended(request.forecast, request.deadline_s, in_time=in_time)
        self._over(number, request)
        self.shared.told(number, [(one.slowdown, one.seen_s) for one in variant.stages])
        latency_s = done_s - request.at_s
        self.latency_s.append(latency_s)
        self.by_variant[facts.name] += 1
        self.sums_s[number] += latency_s
        self._note(number, answered=1, samples=request.want.samples)
        accurate = facts.is_accurate(request.want.accuracy)
        self.counts["kept" if in_time and accurate else "inaccurate" if in_time else "late"] += 1
        self.counts["reduced"] += facts.reduced

    def _note(self, number: int, *, answered: int = 0, missed: int = 0, samples: int = 0) -> None:
        now = self.seen[number]
        self.seen[number] = now._replace(
            answered=now.answered + answered, missed=now.missed + missed, samples=now.samples + samples
        )

    # -- what is loaded ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Once a second."""
        seen = [
            now._replace(
                loaded=variant.loaded,
                loading=variant.ready_s < math.inf,
                latency_s=sum_s / now.answered if now.answered else math.nan,
                under_way=variant.under_way,
                instances=variant.instances,
                most_instances=len(variant.stages),
            )
            for variant, now, sum_s in zip(self.variants, self.seen, self.sums_s, strict=True)
        ]
        self._take()
        for step in self.policy.look(self.facts, seen, memory_mib=self.memory_mib):
            if step.action == "load":
                self._load(step.variant)
            elif step.action == "unload":
                self._unload(step.variant)
            elif self.variants[step.variant].part == 1.0:  # with fixed layers each stage is needed
                self.variants[step.variant].instances = step.instances

    def _load(self, number: int) -> None:
        variant = self.variants[number]
        if variant.ready_s < math.inf:
            return
        used_mib = self.facts[number].memory_mib + sum(
            facts.memory_mib
            for facts, other in zip(self.facts, self.variants, strict=True)
            if other.loaded or other.ready_s < math.inf
        )
        idle = sorted((one.under_way, other) for other, one in enumerate(self.variants) if one.loaded)
        for _, other in idle:
            if used_mib <= self.memory_mib:
                break
            used_mib -= self.facts[other].memory_mib
            self._unload(other)
        variant.ready_s = self.now_s + self.facts[number].load_s
        self.counts["loads"] += 1

    def _unload(self, number: int) -> None:
        variant = self.variants[number]
        if variant.loaded:
            variant.loaded, variant.closing = False, variant.under_way > 0
            self.counts["unloads"] += 1

    def become_ready(self) -> None:
        """Variants whose loading is over."""
        for variant in self.variants:
            if variant.ready_s <= self.now_s:
                variant.loaded, variant.ready_s = True, math.inf

    # -- time ----------------------------------------------------------------------------------------------------------

    def compute(self, until_s: float) -> None:
        """Let all compute until one has done with its request, at most until then."""
        busy = [
            (number, stage)
            for number, variant in enumerate(self.variants)
            for stage in variant.stages
            if stage.request is not None
        ]
        users: Counter[int] = Counter(stage.device for _, stage in busy)
        weight: dict[int, float] = {}
        for one in self.outsiders:
            if one.begin_s <= self.now_s < one.end_s:
                weight[one.device] = weight.get(one.device, 0.0) + one.weight
        for variant in self.variants:
            if variant.ready_s < math.inf:
                device = variant.stages[0].device
                weight[device] = weight.get(device, 0.0) + 1.0
        parts = {device: 1.0 / max(1.0, users[device] + weight.get(device, 0.0)) for device in users}
        ends_s = [self.now_s + stage.left_s / parts[stage.device] for _, stage in busy]
        at_s = min([until_s, *ends_s])
        for (_, stage), end_s in zip(busy, ends_s, strict=True):
            used_s = (at_s - self.now_s) * parts[stage.device]
            stage.own_s += used_s
            stage.left_s = 0.0 if end_s <= at_s else stage.left_s - used_s
        self.now_s = at_s
        for (number, stage), end_s in zip(busy, ends_s, strict=True):
            if end_s <= at_s:
                self.finish(number, stage)

    @property
    def under_way(self) -> bool:
        """Whether requests are left."""
        return any(variant.under_way for variant in self.variants)


def run_family(
    facts: Sequence[Facts],
    policy: VariantPolicy,
    trace: Sequence[Asked],
    *,
    devices: int | Sequence[Sequence[int]],
    outsiders: Sequence[Outsider] = (),
    memory_mib: float = math.inf,
    noise: float = 0.05,
    seed: int = 0,
    fixed_layers: bool = False,
) -> FamilyResult:
    """Serve a trace.

    Parameters
    ----------
    facts
        The variants; those that fit into the memory are loaded at the start, in their order.
    policy
        A new one: it remembers what it has seen.
    trace
        In the order of time.
    devices
        How many there are, and all variants are on all of them; or the devices of each variant.
    outsiders
        Programs beside them.
    noise
        Standard deviation of the logarithm of what a request takes.
    fixed_layers
        Whether each stage does its own part of every request, rather than all of some.
    """
    own = [tuple(range(devices))] * len(facts) if isinstance(devices, int) else devices
    simulation = _Simulation(
        facts, policy, own, outsiders, memory_mib=memory_mib, noise=noise, seed=seed, fixed_layers=fixed_layers
    )
    coming, look_s = 0, _LOOK_S
    while coming < len(trace) or simulation.under_way:
        now_s = simulation.now_s
        simulation.become_ready()
        while coming < len(trace) and trace[coming].at_s <= now_s:
            simulation.arrive(trace[coming].want)
            coming += 1
        if look_s <= now_s:
            simulation.look()
            look_s += _LOOK_S
        simulation.begin()
        moments_s = [look_s, *(variant.ready_s for variant in simulation.variants)]
        moments_s += [at_s for one in outsiders for at_s in (one.begin_s, one.end_s)]
        moments_s += [trace[coming].at_s] if coming < len(trace) else []
        simulation.compute(min(at_s for at_s in moments_s if at_s > now_s))
    counts = simulation.counts
    return FamilyResult(
        len(trace),
        counts["kept"],
        counts["late"],
        counts["refused"],
        counts["inaccurate"],
        simulation.used_s,
        dict(simulation.by_variant),
        counts["reduced"],
        counts["loads"],
        counts["unloads"],
        tuple(simulation.latency_s),
    )
