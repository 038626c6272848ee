"""The REST application on uvicorn, within an event loop that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from email.utils import formatdate
from pathlib import Path

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from odin.server.config import Limits
from odin.server.http_connection import HttpConnection

__all__ = ["HttpServer"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
_BACKLOG = 1024
_LAST_WORD_S = 0.5


class HttpServer:
    """Serves an application over HTTP/1.1.

    It handles no signals and writes no access log: whoever starts it does.

    Parameters
    ----------
    app
        What it serves.
    host, port
        Where; port 0: a free one.
    limits
        Most connections, and how long a client may take.
    tls
        Files in PEM form: the certificate, with its chain, and its private key. None: no encryption.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._limits = limits or Limits()
        self._state = ServerState()
        self._config = Config(
            app,
            http=HttpConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what is no HTTP is the client's affair
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_certfile=None if tls is None else tls[0],
            ssl_keyfile=None if tls is None else tls[1],
        )
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._state.connections)

    async def start(self) -> int:
        """Open the port, and return its number.

        Raises
        ------
        OSError
            If it cannot be had, or a certificate cannot be read.
        """
        try:
            self._config.load()
        except OSError as error:  # it does not say which file it is about
            files = f"{self._config.ssl_certfile}, {self._config.ssl_keyfile}"
            raise OSError(f"{files}: no certificate and its key in PEM form: {error}") from None
        limit = self._limits.connections

        class Connection(HttpConnection):
            connections_limit = limit

        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._config, self._state, {}, loop),
                host=self._host,
                port=self._port,
                ssl=self._config.ssl,
                backlog=_BACKLOG,
            )
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot listen on {self._host} port {self._port} for REST: {reason}") from None
        self._looking = loop.create_task(self._look())
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self, drain_s: float) -> None:
        """Take no more connections, let requests under way be answered for so long, and close all.

        Parameters
        ----------
        drain_s
            Seconds.
        """
        if self._server is None or self._looking is None:
            return
        self._server.close()
        state = self._state
        loop = asyncio.get_running_loop()
        end_s = loop.time() + drain_s
        while state.connections and loop.time() < end_s:
            for connection in list(state.connections):
                connection.shutdown()  # at once if it is idle, or else after its answer
            await asyncio.sleep(min(0.02, max(0.0, end_s - loop.time())))
        if state.connections:
            _log.warning("%d connections are cut: they took longer than %g s", len(state.connections), drain_s)
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORD_S)  # each tells its client, who may not read
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking
        await self._server.wait_closed()
        self._server = None

    async def _look(self) -> None:
        """Give up connections whose clients take too long, and keep the time of answers."""
        loop = asyncio.get_running_loop()
        limit_s = self._limits.idle_s
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            now_s = loop.time()
            for connection in list(self._state.connections):
                assert isinstance(connection, HttpConnection)
                if connection.is_overdue(now_s, limit_s):
                    connection.give_up()
            await asyncio.sleep(min(_LOOK_S, limit_s / 4))
