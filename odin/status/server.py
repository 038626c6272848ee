"""How another terminal sees a running pipeline: a server in the pipeline's process, and its client.

Within a machine: an abstract Unix socket, which leaves no file and ends with its process; only the same user (and root)
is answered. Between machines of a cluster: TCP, where both sides prove that they know the pipeline's key, which Ray
hands out to members of the cluster; nothing is encrypted. One question, one answer: the state as JSON. Nothing is
computed unless somebody asks.

::

    server                                              client
    challenge (32 bytes)                      -->                                         over TCP only
                                              <--       challenge (32), proof (32)        over TCP only
    proof (32)                                -->                                         over TCP only
                                              <--       "view"                            again and again
    size (4 bytes, big endian), JSON          -->

A proof is the HMAC-SHA256 of who gives it and both challenges. A peer can at most hold one connection, of a bounded
number, for a bounded time: all connections are served by one thread that never waits for any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from odin.stages.channel.peer import is_trusted, peer_user

__all__ = ["LocalStatus", "RemoteStatus", "StatusClient", "StatusServer", "local_pipelines", "local_statuses"]

_PREFIX = "odin-status"
_NAME = re.compile(rf"@({_PREFIX}-(\d+)-\d+)")
_QUESTION = b"view"
_SIZE = struct.Struct(">I")
_PROOF_NBYTES = 32
_LARGEST_NBYTES = 64 * 2**20
_BACKLOG = 64
_MOST_CONNECTIONS = 64
"""Most connections per listener; beyond it the longest idle one is closed, unauthenticated ones first."""
_PATIENCE_S = 5.0
"""For a step of the handshake, and for an answer to be taken."""
_ANSWER_PATIENCE_S = 10.0
"""For the pipeline to answer a client."""
_JOIN_S = 2.0
_LISTENING = "00010000"
"""Flags of a listening socket in /proc/net/unix; accepted connections bear the same name."""


class RemoteStatus(NamedTuple):
    """Address of a pipeline's status server for members of its cluster, and its key."""

    host: str
    port: int
    key: bytes


class LocalStatus(NamedTuple):
    """The socket on which a pipeline of this machine answers; a process has one for each of its pipelines."""

    pid: int
    name: str


class StatusServer:
    """Answers what the pipeline's state is, in a thread of its own.

    Parameters
    ----------
    answer
        Gives the state as JSON; called for each question.
    host
        Address of this machine to answer other members of a cluster on; empty for none.
    patience_s
        Seconds that a peer has for its part of the handshake, and to take an answer.
    """

    def __init__(self, answer: Callable[[], str], *, host: str = "", patience_s: float = _PATIENCE_S) -> None:
        self._answer = answer
        self._patience_s = patience_s
        self._closed = False
        self._lock = threading.Lock()
        self.remote: RemoteStatus | None = None
        self._doors = doors = [_Door(_listen_locally(), b"")]
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
            self.remote = RemoteStatus(host, int(listener.getsockname()[1]), secrets.token_bytes(32))
            doors.append(_Door(listener, self.remote.key))
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # a peer's failure is no concern of the pipeline's log
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(doors,), name="odin-status", daemon=True)
        self._thread.start()

    def _run(self, doors: list[_Door]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # ends what is left of connections
            runner.run(self._serve(doors))

    async def _serve(self, doors: list[_Door]) -> None:
        # Without free file descriptors asyncio stops accepting for a second, and goes on.
        servers = [
            await asyncio.start_server(
                lambda reader, writer, door=door: self._attend(door, reader, writer),  # type: ignore[misc]
                sock=door.listener,
                backlog=_BACKLOG,
                limit=1024,
            )
            for door in doors
        ]
        await self._over.wait()
        for server in servers:
            server.close()
        for door in doors:
            for visitor in tuple(door.visitors):
                visitor.transport.abort()

    async def _attend(self, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        door.let_in(writer)
        try:
            connection: socket.socket = writer.get_extra_info("socket")
            if door.key:
                _keep_alive(connection)
                async with asyncio.timeout(self._patience_s):
                    await _prove_to_client(door.key, reader, writer)
            elif not is_trusted(peer_user(connection)):
                return
            writer.transport.set_write_buffer_limits(high=0)  # drained means taken
            while True:
                door.note(writer)
                if await reader.readexactly(len(_QUESTION)) != _QUESTION:
                    return
                data = self._answer().encode()
                writer.write(_SIZE.pack(len(data)) + data)
                async with asyncio.timeout(self._patience_s):
                    await writer.drain()
        except (EOFError, OSError, TimeoutError):  # it went away, is no client of ours, or takes no answer
            pass
        finally:
            door.let_out(writer)
            writer.transport.abort()

    def abandon(self) -> None:
        """In a forked child: close the sockets; otherwise they would stay open after the pipeline's end."""
        for door in self._doors:
            door.listener.close()
            for visitor in door.visitors:
                with contextlib.suppress(OSError):
                    os.close(visitor.get_extra_info("socket").fileno())

    def close(self) -> None:
        """Hang up. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(RuntimeError):  # the thread has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(_JOIN_S)


class _Door:
    """A listening socket, the key that clients must prove to know (empty for none), and its connections."""

    def __init__(self, listener: socket.socket, key: bytes) -> None:
        self.listener = listener
        self.key = key
        self.visitors: dict[asyncio.StreamWriter, bool] = {}
        """Connections and whether each is authenticated, in the order of their last request."""

    def let_in(self, visitor: asyncio.StreamWriter) -> None:
        """Accept a connection; close another if there are too many, so that strangers cannot block others."""
        if len(self.visitors) >= _MOST_CONNECTIONS:
            longest = min(self.visitors, key=lambda other: self.visitors[other])  # the first of the unproven, if any
            self.let_out(longest)
            longest.transport.abort()
        self.visitors[visitor] = False

    def note(self, visitor: asyncio.StreamWriter) -> None:
        """Record that a connection is authenticated, or has sent a request."""
        if self.visitors.pop(visitor, None) is None:
            raise ConnectionAbortedError("it was turned out meanwhile")
        self.visitors[visitor] = True

    def let_out(self, visitor: asyncio.StreamWriter) -> None:
        """Forget one."""
        self.visitors.pop(visitor, None)


class StatusClient:
    """Asks a pipeline for its state.

    Parameters
    ----------
    where
        Process id of a pipeline on this machine (the first of several), its socket, or where one elsewhere answers.
    patience_s
        Seconds for the connection, and for each answer.

    Raises
    ------
    ConnectionError
        If nobody answers there in time, or refuses.
    """

    def __init__(self, where: int | LocalStatus | RemoteStatus, *, patience_s: float = _ANSWER_PATIENCE_S) -> None:
        self._patience_s = patience_s
        try:
            if not isinstance(where, RemoteStatus):
                self._connection = _connect_locally(where, patience_s)
            else:
                self._connection = socket.create_connection((where.host, where.port), timeout=_PATIENCE_S)
                try:
                    _prove_to_server(self._connection, where.key, deadline_s=time.monotonic() + patience_s)
                except BaseException:
                    self._connection.close()
                    raise
        except TimeoutError as error:
            raise ConnectionError(f"the pipeline does not answer within {patience_s:g} s") from error
        except (EOFError, OSError) as error:
            if isinstance(error, ConnectionError) and error.errno is None:
                raise
            raise ConnectionError(f"the pipeline does not answer: {error}") from error

    def ask(self) -> str:
        """The state as JSON.

        Raises
        ------
        ConnectionError
            If the pipeline is gone, or does not answer in time.
        """
        deadline_s = time.monotonic() + self._patience_s
        try:
            self._connection.settimeout(self._patience_s)
            self._connection.sendall(_QUESTION)
            (nbytes,) = _SIZE.unpack(_receive(self._connection, _SIZE.size, deadline_s))
            if nbytes > _LARGEST_NBYTES:
                raise ConnectionError(f"what answers is no pipeline: it announces {nbytes} bytes")
            return _receive(self._connection, nbytes, deadline_s).decode()
        except TimeoutError as error:
            raise ConnectionError(
                f"the pipeline has not answered for {self._patience_s:g} s; is it stopped, or its machine unreachable?"
            ) from error
        except (EOFError, OSError) as error:
            if isinstance(error, ConnectionError) and error.errno is None:
                raise
            raise ConnectionError("the pipeline is gone, or belongs to another user") from error

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def local_pipelines() -> tuple[int, ...]:
    """Process ids on this machine that serve a pipeline, each once, ascending."""
    return tuple(sorted({status.pid for status in local_statuses()}))


def local_statuses() -> tuple[LocalStatus, ...]:
    """Where the pipelines on this machine answer, by process."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split()[-1] for line in lines if f" {_LISTENING} " in line]
    return tuple(sorted({LocalStatus(int(match[2]), match[1]) for word in words if (match := _NAME.fullmatch(word))}))


def _listen_locally() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    for number in range(1000):
        try:
            listener.bind(f"\0{_PREFIX}-{os.getpid()}-{number}")
        except OSError:  # another pipeline of this process
            continue
        listener.listen(_BACKLOG)
        return listener
    listener.close()
    raise OSError("no name is left for this pipeline's status socket: close some of this process's pipelines")


def _connect_locally(where: int | LocalStatus, patience_s: float) -> socket.socket:
    if isinstance(where, LocalStatus):
        pid, names = where.pid, [where.name]
    else:
        pid, names = where, [status.name for status in local_statuses() if status.pid == where]
    if not names:
        raise ConnectionError(f"process {pid} serves no pipeline here")
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(patience_s)
        connection.connect("\0" + names[0])
        if os.getuid() != 0 and not is_trusted(peer_user(connection)):  # anybody may take such a name
            raise ConnectionError(f"the pipeline of process {pid} belongs to another user")
    except BaseException:
        connection.close()
        raise
    return connection


# ---------------------------------------------------------------- who knows the key
def _proof(key: bytes, who: bytes, challenges: bytes) -> bytes:
    return hmac.digest(key, b"odin-status " + who + challenges, "sha256")


async def _prove_to_client(key: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Handshake of the server; ``ConnectionRefusedError`` if the client does not know the key."""
    challenges = secrets.token_bytes(_PROOF_NBYTES)
    writer.write(challenges)
    challenges += await reader.readexactly(_PROOF_NBYTES)
    shown = await reader.readexactly(_PROOF_NBYTES)
    if not hmac.compare_digest(shown, _proof(key, b"client", challenges)):
        raise ConnectionRefusedError("somebody without the key")
    writer.write(_proof(key, b"server", challenges))


def _prove_to_server(connection: socket.socket, key: bytes, *, deadline_s: float) -> None:
    """Handshake of the client; ``ConnectionRefusedError`` if the server does not know the key."""
    challenges = _receive(connection, _PROOF_NBYTES, deadline_s) + secrets.token_bytes(_PROOF_NBYTES)
    connection.sendall(challenges[_PROOF_NBYTES:] + _proof(key, b"client", challenges))
    shown = _receive(connection, _PROOF_NBYTES, deadline_s)
    if not hmac.compare_digest(shown, _proof(key, b"server", challenges)):
        raise ConnectionRefusedError("what answers there does not know the pipeline's key")


# ---------------------------------------------------------------- sockets
def _receive(connection: socket.socket, nbytes: int, deadline_s: float) -> bytes:
    """Receive exactly so many bytes by a time of the monotonic clock."""
    data = bytearray()
    while len(data) < nbytes:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        part = connection.recv(min(nbytes - len(data), 2**20))
        if not part:
            raise EOFError("it hung up")
        data += part
    return bytes(data)


def _keep_alive(connection: socket.socket) -> None:
    """Notice within a minute that the machine of a silent client is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
