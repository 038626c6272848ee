"""The server's gRPC side: the Open Inference Protocol with Triton's extensions, and gRPC's own health protocol.

Methods take and return a message's bytes: the data plane (:mod:`odin.server.dataplane`) does the work, and
:mod:`odin.server.grpc_form` says how often bytes are copied. Methods that are not here are answered ``UNIMPLEMENTED``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from secrets import compare_digest
from typing import Any

import grpc
import grpc.aio

from odin.server.config import Limits
from odin.server.dataplane import DataPlane
from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_failures import abort, guarded
from odin.server.grpc_health import HealthService
from odin.server.grpc_messages import HEALTH_SERVICE, INFERENCE_SERVICE
from odin.server.grpc_methods import InferenceService, metadata_of

__all__ = ["GrpcServer"]

_OPEN = {"ServerLive", "ServerReady"}
"""Methods that need no token, as those of gRPC's health protocol: probes have none."""


class GrpcServer:
    """Serves a data plane by gRPC.

    Parameters
    ----------
    dataplane
        What it serves.
    host, port
        Where it listens; port 0: any that is free.
    limits
        ``request_mib`` bounds messages both ways (gRPC's own default is 4 MiB, less than seven images of 224x224);
        after ``idle_s`` without a call a connection is closed, and clients open it again by themselves.
    token
        What clients have to send as ``authorization: Bearer TOKEN``; health is told without it. None: nothing.
    tls
        Files in PEM form: the certificate, with its chain, and its private key. None: no encryption.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits,
        token: str | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self._dataplane, self._limits, self._tls = dataplane, limits, tls
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._token = None if token is None else f"Bearer {token}".encode()
        self._server: Any = None
        self._ending = asyncio.Event()
        self._handlers = self._all_handlers()

    async def start(self) -> int:
        """Begin to serve; returns the port.

        Raises
        ------
        OSError
            If the port is taken, or a TLS file cannot be read.
        ValueError
            If the TLS files are no certificate and its key.
        """
        most_nbytes = min(self._limits.request_nbytes, 2**31 - 1)
        idle_ms = max(1, int(self._limits.idle_s * 1e3))
        options = [
            ("grpc.max_receive_message_length", most_nbytes),
            ("grpc.max_send_message_length", most_nbytes),
            ("grpc.max_connection_idle_ms", idle_ms),
            ("grpc.keepalive_time_ms", idle_ms),  # finds clients whose machine or network has gone
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients may ask whether we are there
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),  # or else two servers share a port, and each gets half of the connections
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((self,))
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._address)
            else:
                certificate, key = (path.read_bytes() for path in self._tls)
                port = server.add_secure_port(self._address, _credentials(certificate, key, self._tls))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address} for gRPC: {error}; choose another port") from None
        await server.start()
        self._server = server
        return int(port)

    async def stop(self, drain_s: float) -> None:
        """Take no more calls, let those under way finish for so many seconds, and end.

        Streams between two requests are ended at once. Clients are told to go elsewhere; a call that comes in that
        very moment is answered ``CANCELLED`` by gRPC itself, later ones ``UNAVAILABLE``.
        """
        self._ending.set()
        if self._server is not None:
            await self._server.stop(drain_s)

    # -- which method a call is for -----------------------------------------------------------------------------------

    def service(self, call: Any) -> Any:
        """Find a call's method, before any of its messages is received; gRPC asks this, see ``GenericRpcHandler``."""
        handler = self._handlers.get(call.method)
        if handler is None or self._token is None:
            return handler
        service, _, method = call.method.rpartition("/")
        if service == f"/{HEALTH_SERVICE}" or method in _OPEN:
            return handler
        given = metadata_of(call.invocation_metadata, "authorization")
        if compare_digest(given.encode(errors="replace"), self._token):
            return handler
        return grpc.stream_stream_rpc_method_handler(_refuse)  # which awaits no message, whatever the method is

    def _all_handlers(self) -> dict[str, Any]:
        service = InferenceService(self._dataplane, self._limits, self._ending)
        health = HealthService(self._dataplane, self._ending)
        inference_methods = {
            **{name: grpc.unary_unary_rpc_method_handler(guarded(method)) for name, method in service.unary().items()},
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(guarded(service.model_stream_infer)),
        }
        health_methods = {
            "Check": grpc.unary_unary_rpc_method_handler(guarded(health.check)),
            "Watch": grpc.unary_stream_rpc_method_handler(guarded(health.watch)),
        }
        return {
            **{f"/{INFERENCE_SERVICE}/{name}": handler for name, handler in inference_methods.items()},
            **{f"/{HEALTH_SERVICE}/{name}": handler for name, handler in health_methods.items()},
        }


def _credentials(certificate: bytes, key: bytes, files: tuple[Path, Path]) -> Any:
    for data, marker, path in zip((certificate, key), (b"CERTIFICATE", b"PRIVATE KEY"), files, strict=True):
        if marker not in data:
            raise ValueError(f"{path} holds no {marker.decode()} in PEM form")
    return grpc.ssl_server_credentials([(key, certificate)])


async def _refuse(messages: Any, context: Any) -> None:
    await abort(
        context,
        RequestError(FailureKind.UNAUTHENTICATED, "send the server's token as metadata 'authorization: Bearer TOKEN'"),
    )
