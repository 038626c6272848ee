"""The server's gRPC side: the Open Inference Protocol with Triton's extensions, and gRPC's own health protocol.

Methods take and return a message's bytes: the data plane (:mod:`odin.server.dataplane`) does the work, and
:mod:`odin.server.grpc_form` says how often bytes are copied. Methods that are not here are answered ``UNIMPLEMENTED``.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from odin.server.config import Limits
from odin.server.dataplane import DataPlane
from odin.server.failures import SERVER_ENDS, FailureKind, RequestError
from odin.server.grpc_failures import Method, abort, guarded
from odin.server.grpc_health import HealthService
from odin.server.grpc_messages import HEALTH_SERVICE, INFERENCE_SERVICE
from odin.server.grpc_methods import InferenceService, metadata_of
from odin.server.messages import Caller, InferRequest
from odin.server.token import ASK_FOR_TOKEN, has_token

__all__ = ["GrpcServer"]

_OPEN = {"ServerLive", "ServerReady"}
"""Methods that need no token, as those of gRPC's health protocol: probes have none."""


_LAST_WORD_S = 1.0
"""At the very end: for answers that are on their way."""


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
        self._token = token
        self._server: Any = None
        self._ending = asyncio.Event()
        self._under_way, self._one_less = 0, asyncio.Event()
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
        """Refuse further calls, let those under way finish for so many seconds, and end.

        Health is told until the end; streams between two requests are ended at once. Refusing is done here, because
        gRPC's own way of stopping forgets a call now and then that comes in that moment, and then waits for it.
        """
        self._ending.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self._under_way:
                    self._one_less.clear()
                    await self._one_less.wait()
        if self._server is not None:
            await self._server.stop(_LAST_WORD_S if drain_s else 0.0)

    def _counted(self, method: Method) -> Method:
        """The method, guarded; its calls are under way until their last answer is sent."""
        call = guarded(method)

        def is_done(_: Any) -> None:
            self._under_way -= 1
            self._one_less.set()

        async def counted(given: Any, context: Any) -> Any:
            self._under_way += 1
            context.add_done_callback(is_done)
            return await call(given, context)

        return counted

    # -- which method a call is for -----------------------------------------------------------------------------------

    def service(self, call: Any) -> Any:
        """Find a call's method, before any of its messages is received; gRPC asks this, see ``GenericRpcHandler``."""
        handler = self._handlers.get(call.method)
        service, _, method = call.method.rpartition("/")
        if handler is None or service == f"/{HEALTH_SERVICE}" or method in _OPEN:
            return handler
        given = metadata_of(call.invocation_metadata, "authorization")
        if self._token is not None and not has_token(given.encode(errors="replace"), self._token):
            return self._without_token(method)
        return _refusal(RequestError(FailureKind.NOT_READY, SERVER_ENDS)) if self._ending.is_set() else handler

    def _without_token(self, method: str) -> Any:
        error = RequestError(FailureKind.UNAUTHENTICATED, ASK_FOR_TOKEN)
        if method in ("ModelInfer", "ModelStreamInfer"):
            unread = InferRequest("", "", "", {}, (), caller=Caller("grpc"))
            self._dataplane.observers.failed(unread, error)
        return _refusal(error)

    def _all_handlers(self) -> dict[str, Any]:
        service = InferenceService(self._dataplane, self._limits, self._ending)
        health = HealthService(self._dataplane, self._ending)
        inference_methods = {
            **{
                name: grpc.unary_unary_rpc_method_handler(self._counted(method))
                for name, method in service.unary().items()
            },
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._counted(service.model_stream_infer)),
        }
        health_methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._counted(health.check)),
            "Watch": grpc.unary_stream_rpc_method_handler(self._counted(health.watch)),
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


def _refusal(error: RequestError) -> Any:
    """A handler that refuses a call of any method, before a message of it has come."""

    async def refuse(messages: Any, context: Any) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
