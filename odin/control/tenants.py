"""Pipelines of one process know each other: their stages on the same cores are named by their models."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Protocol

from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.events import Culprit

__all__ = ["Tenant", "Tenants"]


class Tenant(Protocol):
    """What a pipeline says of itself."""

    def stage_names(self) -> Mapping[tuple[str, int], str]:
        """What its stages are called, by node id and process."""


class Tenants:
    """The pipelines of this process, as long as they live."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: weakref.WeakSet[Tenant] = weakref.WeakSet()

    def add(self, tenant: Tenant) -> None:
        """A pipeline was started."""
        with self._lock:
            self._all.add(tenant)

    def remove(self, tenant: Tenant) -> None:
        """A pipeline was closed, or is about to be."""
        with self._lock:
            self._all.discard(tenant)

    def name(self, found: Neighbours, node_id: str) -> Neighbours:
        """Name the stages of these pipelines among the neighbours of one on a node."""
        with self._lock:
            tenants = list(self._all)
        names = {key: name for tenant in tenants for key, name in tenant.stage_names().items()}

        def named(culprit: Culprit) -> Culprit:
            return Culprit(culprit.pid, names.get((node_id, culprit.pid), culprit.name), culprit.share)

        report = found.report
        return found._replace(
            report=report._replace(
                culprits=tuple(map(named, report.culprits)),
                suspects=tuple(suspect._replace(culprit=named(suspect.culprit)) for suspect in report.suspects),
            )
        )
