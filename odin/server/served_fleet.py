"""Packed models of a server's folder, which one fleet serves: with the same face as models that have a pipeline."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from odin.fleet.fleet import Fleet
from odin.fleet.packed import SUFFIX, Head, PackedFolder
from odin.models.images import Preprocess
from odin.monitor.timing import RequestTimeline
from odin.server.config import ModelConfig
from odin.server.served import ServedModel
from odin.server.signature import Signature
from odin.server.statistics import Statistics
from odin.stages.device import allowed_core_count, usable_cores

__all__ = ["FleetFamilies", "FleetModel", "ServedFleet"]


class ServedFleet:
    """The packed models of a folder; its fleet starts with the first that is asked for.

    Parameters
    ----------
    folder
        Where ``NAME.packed`` lie.
    memory_mib
        That models in memory may take.
    stages
        Cores of the executors, shared with other models' stages; ``"auto"``: all that may be used.
    """

    def __init__(self, folder: Path, *, memory_mib: float, stages: str = "auto") -> None:
        self._folder, self._memory_mib = folder, memory_mib
        cores = usable_cores()[: allowed_core_count()]
        self._stages = ",".join(f"cpu:{core}" for core in cores) if stages == "auto" else stages
        self._lock = threading.Lock()
        self.fleet: Fleet | None = None

    def names(self) -> list[str]:
        """Names of all packed models.

        Raises
        ------
        ValueError, OSError
            If the folder is not to be trusted.
        """
        if not any(path.suffix == SUFFIX for path in self._folder.iterdir()):
            return []
        folder = PackedFolder(self._folder)
        try:
            return folder.names()
        finally:
            folder.close()

    def model(self, config: ModelConfig) -> FleetModel:
        """Make one of them ready to be asked for; the first one starts the fleet, in some seconds."""
        with self._lock:
            if self.fleet is None:
                self.fleet = Fleet(self._folder, stages=self._stages, memory_mib=self._memory_mib, share_devices=True)
            else:
                self.fleet.refresh([config.name])  # it is new, or may have been packed anew
        return FleetModel(config, self.fleet)

    def close(self, *, drain: bool = True) -> None:
        """End the fleet. Idempotent."""
        if self.fleet is not None:
            self.fleet.close(drain=drain)


class FleetModel(ServedModel):
    """A packed model; ready at once, loaded into memory when it is asked for.

    Parameters
    ----------
    config
        Its name is that of the packed model.
    fleet
        Which serves it.
    """

    def __init__(self, config: ModelConfig, fleet: Fleet) -> None:
        self.config, self.statistics = config, Statistics()
        self.under_way = 0
        head, call = fleet.head(config.name), fleet.model_call(config.name)
        self.labels, self.random_weights = head.labels, head.random_weights
        self.preprocess = _preprocess(head)
        self.pipeline: Any = _OfFleet(fleet, config.name)
        self.devices = tuple(map(str, fleet.devices))
        example = call.zeros(call.example_samples)
        self.signature = Signature.of(call, example, call.unpack(call.output_zeros()))

    def close(self, *, drain: bool = True, timeout_s: float = 60.0) -> None:
        """Nothing to end: the fleet goes on."""


class _OfFleet:
    """What a served model asks of its pipeline."""

    engine, policy = "torch", "fleet"

    def __init__(self, fleet: Fleet, name: str) -> None:
        self._fleet, self._name = fleet, name

    async def asubmit(
        self, *inputs: Any, timeout_s: float | None = None, timelines: list[RequestTimeline] | None = None
    ) -> Any:
        """See :meth:`odin.Fleet.asubmit`."""
        return await self._fleet.asubmit(self._name, *inputs, timeout_s=timeout_s)


def _preprocess(head: Head) -> Preprocess | None:
    if head.preprocess is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in head.preprocess.items()
    }
    return Preprocess(**fields)


class FleetFamilies:
    """Metrics of a fleet."""

    def __init__(self) -> None:
        self.requests = CounterMetricFamily(
            "odin_fleet_requests",
            "Requests for packed models that were taken; memory is hit if the model was there, else cold.",
            labels=["memory"],
        )
        self.loads = CounterMetricFamily("odin_fleet_loads", "Times that an executor loaded a model.")
        self.evictions = CounterMetricFamily("odin_fleet_evictions", "Times that an executor gave up a model.")
        self.load_seconds = CounterMetricFamily(
            "odin_fleet_load_seconds", "Seconds of loads, as predicted and as they were.", labels=["time"]
        )
        self.models = GaugeMetricFamily(
            "odin_fleet_models", "Packed models; state is resident or all.", labels=["state"]
        )
        self.memory = GaugeMetricFamily(
            "odin_fleet_memory_bytes", "Memory of packed models; state is resident or limit.", labels=["state"]
        )
        self.slowdown = GaugeMetricFamily(
            "odin_fleet_executor_slowdown", "An executor's time now / baseline.", labels=["executor", "device"]
        )

    def add(self, fleet: Fleet) -> None:
        """Add the samples of this moment."""
        view = fleet.view()
        counts = view.counts
        self.requests.add_metric(["hit"], counts.hits)
        self.requests.add_metric(["cold"], counts.cold)
        self.loads.add_metric([], counts.loads)
        self.evictions.add_metric([], counts.evictions)
        self.load_seconds.add_metric(["predicted"], counts.load_predicted_s)
        self.load_seconds.add_metric(["actual"], counts.load_actual_s)
        self.models.add_metric(["resident"], len(view.resident))
        self.models.add_metric(["all"], view.models)
        self.memory.add_metric(["resident"], view.resident_mib * 2**20)
        self.memory.add_metric(["limit"], view.memory_mib * 2**20)
        for number, executor in enumerate(view.executors):
            self.slowdown.add_metric([str(number), executor.device], executor.slowdown)

    def families(self) -> list[Metric]:
        """All, with the samples that were added."""
        return list(vars(self).values())
