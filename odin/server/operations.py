"""All that tells operators of a server, put together: metrics, the page, the access log and traces."""

from __future__ import annotations

from pathlib import Path

from starlette.routing import Route

from odin.monitor.events import Event
from odin.server.access_log import AccessLog
from odin.server.answered import BackgroundObserver
from odin.server.dataplane import DataPlane
from odin.server.metrics import Metrics, metrics_route
from odin.server.page import page_routes
from odin.server.traces import Traces, wants_traces

__all__ = ["STDERR", "Operations"]

STDERR = "-"
"""Instead of a path: standard error."""


class Operations:
    """Made before the repository, which tells it of events; then it is given the data plane.

    Parameters
    ----------
    access_log
        File for a line of each request, ``"-"`` for standard error; None: there is no such log.
    traces
        OTLP endpoint for traces; None: as OpenTelemetry's environment variables say, which may be none.

    Raises
    ------
    OSError
        If the log cannot be written.
    ValueError
        If traces are wanted, and what they need is not installed.

    Examples
    --------
    ::

        operations = Operations(access_log="requests.jsonl")
        repository = Repository(folder, on_event=operations.on_event)
        dataplane = DataPlane(repository, limits)
        app = make_app(dataplane, extra_routes=operations.routes(dataplane))
        ...
        operations.close()
    """

    def __init__(self, *, access_log: str | None = None, traces: str | None = None) -> None:
        self._log = None if access_log is None else AccessLog(None if access_log == STDERR else Path(access_log))
        self._traces = Traces(traces) if traces or wants_traces() else None
        self._background: dict[str, BackgroundObserver] = {}
        if self._log is not None:
            self._background["access log"] = BackgroundObserver(self._log, name="odin-access-log")
        if self._traces is not None:
            self._background["traces"] = BackgroundObserver(self._traces, name="odin-traces")
        self.metrics = Metrics(self._background)

    def on_event(self, name: str, event: Event) -> None:
        """Take in what a model's pipeline tells; for :class:`odin.server.repository.Repository`."""
        self.metrics.on_event(name, event)

    def routes(self, dataplane: DataPlane) -> list[Route]:
        """Observe a data plane; returns ``/metrics``, ``/`` and ``/events``."""
        self.metrics.watch(dataplane)
        for observer in self._background.values():
            dataplane.observers.add(observer)
        return [metrics_route(self.metrics), *page_routes(dataplane)]

    def close(self) -> None:
        """Write and send what waits, for some seconds at most."""
        for observer in self._background.values():
            observer.close()
        if self._log is not None:
            self._log.close()
        if self._traces is not None:
            self._traces.close()
