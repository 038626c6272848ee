"""A family of variants in simulated time: the policies that serve, on a trace, with and without interference.

Policies, predictions and their margins (:mod:`odin.family`) are those that serve; only devices and clock are simulated.
Each loaded variant has a stage on each of its devices, and each stage takes whole requests from the variant's queue,
earliest deadline first; of several idle ones the one on whose device the fewest compute: as a relay does, but for the
layers at which requests change hands. With fixed layers a request passes all stages in order instead, and each does the
same part of it. A device gives each that computes there the same part of its time, be it a variant's stage, a program
from outside (:class:`~odin_lab.simulator.tenants.Outsider`), or a variant that is being loaded, which computes on the
first of its devices. What a request takes by the profile beyond its device seconds (``cost_s``) passes after them, on
no device::

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

from odin.family.devices import Begun, SharedDevices
from odin.family.facts import Choice, Facts, Prediction, Seen, VariantPolicy, Want
from odin_lab.simulator.tenants import Outsider

__all__ = ["Asked", "FamilyResult", "WantClass", "mixed_trace", "run_family"]

_LOOK_S = 1.0


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
    latency_s, predicted_s
        Of the answered ones; the latter as expected when they were given to their variants.
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
    predicted_s: tuple[float, ...] = ()

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
    def __init__(self, number: int, want: Want, at_s: float, begun: Begun) -> None:
        self.number, self.want, self.at_s, self.begun = number, want, at_s, begun
        self.deadline_s = at_s + want.latency_s

    def __lt__(self, other: _Request) -> bool:
        return (self.deadline_s, self.number) < (other.deadline_s, other.number)


class _Stage:
    """Of a variant on a device: what it computes, and what waits for it."""

    def __init__(self, device: int, queue: list[_Request]) -> None:
        self.device, self.queue = device, queue
        self.request: _Request | None = None
        self.left_s = self.own_s = 0.0


class _Variant:
    """A variant that is loaded, or not."""

    def __init__(self, devices: Sequence[int], *, instances: int, fixed_layers: bool) -> None:
        self.queue: list[_Request] = []
        self.stages = [
            _Stage(device, [] if fixed_layers and place else self.queue) for place, device in enumerate(devices)
        ]
        self.part = 1.0 / len(devices) if fixed_layers else 1.0  # of a request, that a stage computes
        self.instances = instances
        self.loaded = False
        self.ready_s = math.inf
        self.closing = False

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
                instances=1 if policy.starts_with_one and not fixed_layers else len(own),
                fixed_layers=fixed_layers,
            )
            for own in devices
        ]
        self.shared = SharedDevices([[str(device) for device in own] for own in devices], refuses=policy.refuses)
        free_mib = memory_mib
        for one, variant in zip(facts, self.variants, strict=True):
            if one.memory_mib <= free_mib:
                free_mib -= one.memory_mib
                variant.loaded = True
        self.now_s = 0.0
        self.latency_s: list[float] = []
        self.predicted_s: list[float] = []
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
        begun = self.shared.begun(
            chosen.variant,
            facts.latency_s(want.samples),
            facts.cost_s * want.samples,
            self.now_s,
            deadline_s=self.now_s + want.latency_s,
        )
        self.number += 1
        insort(variant.queue, _Request(self.number, want, self.now_s, begun))

    def _predict(self, number: int, want: Want, *, loaded: bool) -> Prediction:
        variant = self.variants[number]
        forecast = self.shared.predict(number, self.facts[number].latency_s(want.samples), self.now_s)
        load_s = 0.0
        if not (variant.loaded or loaded):
            load_s = variant.ready_s - self.now_s if variant.ready_s < math.inf else self.facts[number].load_s
        return Prediction(load_s + forecast.expected_s - self.now_s, load_s + forecast.latest_s - self.now_s)

    def begin(self) -> None:
        """Stages that are free take what waits; what is too late is dropped."""
        for number, variant in enumerate(self.variants):
            taking = variant.stages[: variant.instances] if variant.loaded or variant.closing else []
            while idle := [stage for stage in taking if stage.request is None and stage.queue]:
                stage = min(idle, key=lambda one: (self._beside(one), self.random.random()))
                request = stage.queue.pop(0)
                if request.deadline_s <= self.now_s and stage.queue is variant.queue:
                    self.shared.ended(request.begun, self.now_s, late=True)
                    self.counts["late"] += 1
                    continue
                stage.request, stage.own_s = request, 0.0
                takes_s = self.facts[number].cost_s * request.want.samples * variant.part
                stage.left_s = takes_s * float(self.random.lognormal(0.0, self.noise))
            if variant.closing and not variant.under_way:
                variant.closing = False

    def _beside(self, stage: _Stage) -> int:
        """How many stages compute on a stage's device."""
        all_stages = (other for variant in self.variants for other in variant.stages)
        return sum(other.request is not None and other.device == stage.device for other in all_stages)

    def finish(self, number: int, stage: _Stage) -> None:
        """A stage has done with its request."""
        request, stage.request = stage.request, None
        assert request is not None
        variant, facts, samples = self.variants[number], self.facts[number], request.want.samples
        self.used_s += stage.own_s
        if variant.part < 1.0 and stage is not variant.stages[-1]:
            insort(variant.stages[variant.stages.index(stage) + 1].queue, request)
            return
        done_s = self.now_s + max(0.0, facts.latency_s(samples) - facts.cost_s * samples)
        in_time = done_s <= request.deadline_s
        self.shared.answered(request.begun, done_s)
        latency_s = done_s - request.at_s
        self.latency_s.append(latency_s)
        self.predicted_s.append(request.begun.forecast.expected_s - request.at_s)
        self.by_variant[facts.name] += 1
        self.sums_s[number] += latency_s
        self._note(number, answered=1, samples=samples)
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
    if isinstance(devices, int):  # in another order for each, where only the first stage serves at the beginning
        shifts = [number if policy.starts_with_one else 0 for number in range(len(facts))]
        devices = [[(shift + device) % devices for device in range(devices)] for shift in shifts]
    simulation = _Simulation(
        facts, policy, devices, outsiders, memory_mib=memory_mib, noise=noise, seed=seed, fixed_layers=fixed_layers
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
        tuple(simulation.predicted_s),
    )
