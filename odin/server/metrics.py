"""What a server counts and measures, for Prometheus.

A request costs some additions. All else is made when it is asked for: from the models' counts, and from what
``odin top`` shows. A model that is unloaded takes its series along.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from odin.monitor.events import Event, PlanChanged, StageBack, StageLost
from odin.server.answered import Answered, BackgroundObserver
from odin.server.dataplane import DataPlane
from odin.server.metric_families import ModelCounts, PipelineFamilies, RequestFamilies
from odin.server.served import ServedModel
from odin.server.served_family import ServedFamily, VariantFamilies
from odin.server.served_fleet import FleetFamilies, FleetModel
from odin.server.views import views_of

__all__ = ["Metrics", "metrics_route"]

_UNKNOWN = ""
"""Label of requests for models that there are not: what clients make up must not become series."""


class Metrics:
    """Adds up what is observed, and is a collector of a registry of its own.

    Parameters
    ----------
    background
        Observers whose left-out requests are counted, by name.
    """

    def __init__(self, background: Mapping[str, BackgroundObserver] | None = None) -> None:
        self._background = background or {}
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._dataplane: DataPlane | None = None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def watch(self, dataplane: DataPlane) -> None:
        """Observe a data plane's requests, and show its models."""
        self._dataplane = dataplane
        dataplane.observers.add(self.observe)

    # -- observing ----------------------------------------------------------------------------------------------------

    def observe(self, answered: Answered) -> None:
        """Count a request."""
        name = answered.request.model if answered.request.model in self._served() else _UNKNOWN
        with self._lock:
            counts = self._counts(name)
            counts.outcomes[answered.outcome] += 1
            if answered.failure is not None:
                return
            counts.samples += answered.samples
            counts.latency.add(answered.latency_s)
            counts.waiting.add(answered.waiting_s)
            of_stages = self._counts(f"{name}/{answered.variant}") if answered.variant and name else counts
            for timeline in answered.timelines:
                of_stages.add_timeline(timeline)

    def on_event(self, name: str, event: Event) -> None:
        """Count what a model's pipeline tells; from any thread, see :class:`odin.server.repository.Repository`."""
        match event:
            case PlanChanged():
                with self._lock:
                    self._counts(name).plan_changes += 1
            case StageLost():
                with self._lock:
                    self._counts(name).lost["hung" if event.hangs else "lost"] += 1
            case StageBack():
                with self._lock:
                    self._counts(name).back["replaced" if event.replaced else "answers"] += 1
            case _:
                pass

    def _counts(self, name: str) -> ModelCounts:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelCounts()
        return found

    def _served(self) -> Mapping[str, ServedModel]:
        return {} if self._dataplane is None else self._dataplane.repository.all_served()

    # -- telling ------------------------------------------------------------------------------------------------------

    def describe(self) -> Iterable[Metric]:
        """Without samples: a registry checks names by it."""
        return [
            family
            for part in (RequestFamilies(), PipelineFamilies(), FleetFamilies(), VariantFamilies())
            for family in part.families()
        ] + self._of_server()

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        served = dict(self._served())
        views = views_of(served)
        requests, pipelines = RequestFamilies(), PipelineFamilies()
        with self._lock:
            for name in [name for name in self._models if name not in {*served, *views, _UNKNOWN}]:
                del self._models[name]
            for name in (*served, _UNKNOWN):
                # of packed models, which may be thousands, those that were asked for
                if name in self._models or (name in served and not isinstance(served[name], FleetModel)):
                    requests.add(name, self._counts(name), served.get(name))
            for name, view in views.items():
                pipelines.add(name, view, self._counts(name))
        yield from requests.families()
        yield from pipelines.families()
        fleet = None if self._dataplane is None else self._dataplane.repository.fleet
        if fleet is not None:
            families = FleetFamilies()
            families.add(fleet)
            yield from families.families()
        variants = VariantFamilies()
        for name, model in served.items():
            if isinstance(model, ServedFamily):
                variants.add(name, model.family.view())
        if any(isinstance(model, ServedFamily) for model in served.values()):
            yield from variants.families()
        yield from self._of_server()

    def _of_server(self) -> list[Metric]:
        dataplane = self._dataplane
        ready = GaugeMetricFamily("odin_ready", "1 if the server takes requests.")
        ready.add_metric([], float(dataplane is not None and dataplane.is_ready()))
        dropped = CounterMetricFamily(
            "odin_observations_dropped", "Requests that the access log or traces left out.", labels=["observer"]
        )
        for name, observer in self._background.items():
            dropped.add_metric([name], observer.left_out + observer.failures)
        return [ready, dropped]


def metrics_route(metrics: Metrics) -> Route:
    """``GET /metrics``, in Prometheus' or OpenMetrics' text, as the client accepts."""

    async def answer(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(encode, metrics.registry)
        return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    return Route("/metrics", answer, methods=["GET"])
