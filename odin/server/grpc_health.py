"""gRPC's health protocol, ``grpc.health.v1``, by which Kubernetes' probes and load balancers ask.

Asked for ``readiness``, for the inference service, or for nothing, it tells whether requests are taken; asked for
``liveness``, that the server runs: a probe that restarts what is not ready would restart a server that loads a model.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from odin.server.dataplane import DataPlane
from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_messages import INFERENCE_SERVICE, health, parse

__all__ = ["HealthService"]

_READY = ("", "readiness", INFERENCE_SERVICE)
_LIVE = "liveness"
_LOOK_EVERY_S = 1.0


class HealthService:
    """Methods of the health service, from and to bytes.

    Parameters
    ----------
    dataplane
        Whose health it tells.
    ending
        Set when the server ends.
    """

    def __init__(self, dataplane: DataPlane, ending: asyncio.Event) -> None:
        self._dataplane, self._ending = dataplane, ending

    async def check(self, message: bytes, context: Any) -> bytes:
        """Tell how it is now."""
        service = parse(health.HealthCheckRequest, message).service
        status = self._status(service)
        if status == "SERVICE_UNKNOWN":
            known = ", ".join(map(repr, (*_READY, _LIVE)))
            raise RequestError(FailureKind.NOT_FOUND, f"there is no service {service!r}; there are {known}")
        return _answer(status)

    async def watch(self, message: bytes, context: Any) -> None:
        """Tell how it is now, and whenever that changes; looks every second."""
        service = parse(health.HealthCheckRequest, message).service
        told = ""
        while True:
            status = self._status(service)
            if status != told:
                await context.write(_answer(status))
                told = status
            if self._ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _LOOK_EVERY_S)

    def _status(self, service: str) -> str:
        if service == _LIVE:
            return "SERVING"
        if service not in _READY:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._dataplane.is_ready() and not self._ending.is_set() else "NOT_SERVING"


def _answer(status: str) -> bytes:
    written: bytes = health.HealthCheckResponse(status=health.ServingStatus[status]).SerializeToString()
    return written
