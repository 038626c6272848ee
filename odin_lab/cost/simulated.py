"""The trials of costs in simulated time, from recorded layer times: nothing is served, nothing is sent.

The models share the devices as in :mod:`odin_lab.simulator.tenants`, requests come at random, and a request takes what
its layers were recorded to take. The way over the network, decoding, and caches that models take from each other are
not in it, so that sharing looks better than it is. The search, the rule and the figures are those of measured trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from odin.stages.device import Device, parse_devices
from odin_lab.load.client import Input, ModelFace, Target
from odin_lab.load.introduction import Introduction
from odin_lab.load.task import Outcome, Task
from odin_lab.load.trial import Trial
from odin_lab.simulator.tenants import Tenant, TenantRun, simulate_tenants
from odin_lab.simulator.world import World
from odin_lab.timings import TimingTable, load_timings

__all__ = ["SECONDS", "SimulatedDevices"]

SECONDS = 60.0
"""Of each trial: longer than one that is waited for, so that chance moves the result less."""
_PATIENCE_LIMITS = 4.0
"""A trial goes on until the last requests have had so many times their limit."""
_UNANSWERED = "late"


class SimulatedDevices:
    """Devices that serve models as they were recorded.

    Parameters
    ----------
    models
        Names of shipped timings, or files of ``odin record``, by name.
    stages
        The devices, such as ``cpu:0,cpu:1``, each like the one that was recorded.
    policy
        Of each model's pipeline.

    Raises
    ------
    ValueError
        If there are no timings, or they were recorded on a device of another size.
    """

    def __init__(self, models: Mapping[str, str], stages: str, *, policy: str = "relay") -> None:
        devices = parse_devices(stages)
        self._policy = policy
        tables = {name: load_timings(source) for name, source in models.items()}
        for table in tables.values():
            _check_size(table, devices)
        self._worlds = {
            name: World.from_timings(table, devices=len(devices), noise="none") for name, table in tables.items()
        }
        self._noise = float(np.mean([np.std(table.residuals()) for table in tables.values()]))

    @contextmanager
    def serve(self, models: Mapping[str, str]) -> Iterator[dict[str, Introduction]]:
        """As :class:`odin_lab.cost.study.Study` wants it."""
        face = ModelFace("simulated", "", (), True)
        yield {name: Introduction(Target("http://simulated", name), face, _INPUTS) for name in models}

    def lone_s(self, known: Introduction) -> float:
        """Seconds of a request alone, without noise."""
        world = self._worlds[known.target.model]
        return float(world.baseline_s[0].sum() + world.receive_s[0] + world.send_s[-1])

    def run(self, tasks: Mapping[str, Task], look: Callable[[str, Trial], bool]) -> dict[str, Trial]:
        """Carry out trials at once."""
        seconds = max(task.seconds for task in tasks.values())
        after_s = _PATIENCE_LIMITS * max(task.bound_ms / 1e3 for task in tasks.values())
        runs = simulate_tenants(
            [self._tenant(name, task) for name, task in tasks.items()],
            seconds=seconds + after_s,
            noise=self._noise,
            seed=min(task.seed for task in tasks.values()),
        )
        trials = {}
        for (name, task), run in zip(tasks.items(), runs, strict=True):
            trial = trials[name] = Trial(task)
            trial.outcomes = _outcomes(run, within_s=task.seconds, ended_s=seconds + after_s)
            trial.asked = len(trial.outcomes)
            look(name, trial)
        return trials

    def _tenant(self, name: str, task: Task) -> Tenant:
        if task.scenario == "clients":
            return Tenant(name, self._worlds[name], self._policy, in_flight=task.clients)
        return Tenant(name, self._worlds[name], self._policy, rate_hz=task.rate_hz)


_INPUTS: tuple[Input, ...] = ()


def _outcomes(run: TenantRun, *, within_s: float, ended_s: float) -> list[Outcome]:
    """Of the requests that came within a time, in the order in which they came."""
    came = [(over_s - took_s, over_s, "") for over_s, took_s in run.answers]
    came += [(arrived_s, ended_s, _UNANSWERED) for arrived_s in run.unanswered_s]
    came = sorted(one for one in came if one[0] <= within_s)
    return [Outcome(number, at_s, at_s, over_s, failure) for number, (at_s, over_s, failure) in enumerate(came)]


def _check_size(table: TimingTable, devices: tuple[Device, ...]) -> None:
    recorded = Device.parse(table.device)
    for device in devices:
        if (device.kind, device.threads) != (recorded.kind, recorded.threads):
            raise ValueError(
                f"--stages {device}: {table.model} was recorded on {table.device}; name devices of that kind and size, "
                "or record the model on such a one with odin record"
            )
