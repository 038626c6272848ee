"""A data plane whose models are made up: their pipelines have views of told stories, their answers come at once."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import uvicorn
from starlette.applications import Starlette

from odin.family.counts import VariantCounts
from odin.family.facts import Facts
from odin.family.views import FamilyView, VariantView
from odin.monitor.view.builder import Serving, ViewBuilder
from odin.server.config import Limits, parse_model
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.messages import InferResponse, Tensor
from odin.server.repository import Repository
from odin.server.served_family import ServedFamily
from odin.server.served_fleet import FleetModel
from odin.server.statistics import Statistics
from odin.testing import timeline


class FakeModel:
    """Stands in for ``ServedModel``; ``fails`` is raised instead of an answer."""

    takes_images = False

    def __init__(self, config, events, *, devices=("cpu:0", "cpu:1")):
        self.config, self.devices, self.statistics = config, devices, Statistics()
        self.under_way, self.fails, self.plan = 0, None, (9, 9)
        self._builder = ViewBuilder()
        self.tell(*events)
        self.pipeline = SimpleNamespace(view=self.view, engine="torch", policy="relay")

    def tell(self, *events):
        for event in events:
            self._builder.apply(event)
            self._now_s = event.at_s

    def view(self):
        view = self._builder.view(self._now_s)
        serving = Serving(view.completed, view.failed, 3, view.epoch, view.plan, view.windows, view.refused)
        return self._builder.view(self._now_s, serving)

    async def infer(self, request, begin_s, timelines):
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        timelines.append(timeline(1, begin_s + 0.25, (0.1, 0.05), plan=self.plan, latency_s=0.2))
        self.statistics.add(samples=2, input_s=0.0, compute_s=0.2, output_s=0.0)
        output = Tensor("output", DATATYPES["FP32"], np.zeros((2, 10), "f4"))
        return InferResponse(self.config.name, self.config.version, request.id, (output,))

    def samples(self, request):
        return 2

    def close(self, **options):
        pass


class FakeFamily(ServedFamily):
    """A family whose variants have gone through these events."""

    def __init__(self, config, stories):
        self.config, self.statistics, self.under_way = config, Statistics(), 0
        self.variants = {name: FakeModel(config, events) for name, events in stories.items()}
        told = tuple(VariantView(Facts(name, 1e-3, 0.0), "loaded", 0, VariantCounts()) for name in stories)
        self.family = SimpleNamespace(view=lambda: FamilyView("odin", math.inf, 0.0, 0, told))

    def views(self):
        return {name: model.view() for name, model in self.variants.items()}


class FakePacked(FleetModel):
    """A packed model that is not asked for anything."""

    def __init__(self, config):
        self.config, self.statistics, self.under_way = config, Statistics(), 0


def serve_made_up(repository, model):
    """Let a model serve a name that the repository has not yet."""
    repository._entries[model.config.name] = entry = copy.copy(next(iter(repository._entries.values())))
    entry.config, entry.served = model.config, model


def fake_dataplane(stories):
    """A data plane with a model of each name, which has gone through these events."""
    configs = [parse_model({"source": "resnet50"}, name=name, folder=Path(), where="test") for name in stories]
    repository = Repository(configs=configs)
    for config in configs:
        serve_fake(repository, config.name, stories[config.name])
    return DataPlane(repository, Limits())


def serve_fake(repository, name, events, **options):
    """Let a made-up model serve a name that the repository has."""
    entry = repository._entries[name]
    entry.served = FakeModel(entry.config, events, **options)
    entry.state, entry.reason = "READY", ""
    return entry.served


@contextlib.contextmanager
def served_http(routes):
    """Serve routes on a port of the kernel's choice, in a thread; yields the address and the server."""
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes), loop="asyncio", log_level="critical", timeout_graceful_shutdown=10)
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.listen(128)  # so that who connects before the server accepts waits
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield address, server
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
