"""How another terminal sees a running pipeline: a server in the pipeline's process, and its client.

Within a machine: an abstract Unix socket, which leaves no file and ends with its process; only the same user (and root)
is answered. Between machines of a cluster: TCP, where both sides prove that they know the pipeline's key, which Ray
hands out to members of the cluster. One question, one answer: the state as JSON. Nothing is computed unless somebody
asks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple, Self

from stages.peer import is_trusted, peer_user

__all__ = ["RemoteStatus", "StatusClient", "StatusServer", "local_pipelines"]

_PREFIX = "odin-status"
_QUESTION = b"view"
_JOIN_S = 2.0
_LARGEST_NBYTES = 64 * 2**20
_LISTENING = "00010000"
"""Flags of a listening socket in /proc/net/unix; accepted connections bear the same name."""


class RemoteStatus(NamedTuple):
    """Where a pipeline answers members of its cluster, and the key that it asks for."""

    host: str
    port: int
    key: bytes


class StatusServer:
    """Answers what the pipeline's state is, in threads of its own.

    Parameters
    ----------
    answer
        Gives the state as JSON; called for each question.
    host
        Address of this machine to answer other members of a cluster on; empty for none.
    """

    def __init__(self, answer: Callable[[], str], *, host: str = "") -> None:
        self._answer = answer
        self._closed = False
        self._listeners: list[Any] = []
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self.remote: RemoteStatus | None = None
        self._listeners.append(_listen_locally())
        if host:
            key = secrets.token_bytes(32)
            listener = Listener((host, 0), "AF_INET", authkey=key)
            self._listeners.append(listener)
            self.remote = RemoteStatus(host, int(listener.address[1]), key)
        self._threads = [
            threading.Thread(target=self._accept, args=(listener,), name="odin-status", daemon=True)
            for listener in self._listeners
        ]
        for thread in self._threads:
            thread.start()

    def _accept(self, listener: Any) -> None:
        while not self._closed:
            try:
                connection = listener.accept()
                if self._closed:
                    connection.close()
                    return
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # somebody without the key, or who went away
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), name="odin-status", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connections.add(connection)
        try:
            if _same_user(connection):
                while connection.recv_bytes(len(_QUESTION)) == _QUESTION:
                    connection.send_bytes(self._answer().encode())
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def abandon(self) -> None:
        """In a forked child: let go of the sockets, or callers would find them open after the pipeline's end."""
        for listener in self._listeners:
            listener.close()

    def close(self) -> None:
        """Hang up. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        for listener in self._listeners:
            _wake(listener.address)  # closing alone does not wake a thread that waits in accept
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                _shut_down(connection)
        for thread in self._threads:
            thread.join(_JOIN_S)


class StatusClient:
    """Asks a pipeline for its state.

    Parameters
    ----------
    where
        Process id of a pipeline on this machine, or where one elsewhere answers.

    Raises
    ------
    ConnectionError
        If nobody answers there, or refuses.
    """

    def __init__(self, where: int | RemoteStatus) -> None:
        try:
            if isinstance(where, int):
                names = [name for pid, name in _local_names() if pid == where]
                if not names:
                    raise ConnectionError(f"process {where} serves no pipeline here")
                self._connection = Client("\0" + names[0], "AF_UNIX")
            else:
                self._connection = Client((where.host, where.port), "AF_INET", authkey=where.key)
        except (AuthenticationError, EOFError, OSError) as error:
            if isinstance(error, ConnectionError) and error.errno is None:
                raise
            raise ConnectionError(f"the pipeline does not answer: {error}") from error

    def ask(self) -> str:
        """The state as JSON.

        Raises
        ------
        ConnectionError
            If the pipeline is gone.
        """
        try:
            self._connection.send_bytes(_QUESTION)
            return self._connection.recv_bytes(_LARGEST_NBYTES).decode()
        except (EOFError, OSError) as error:
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
    return tuple(sorted({pid for pid, _ in _local_names()}))


def _local_names() -> list[tuple[int, str]]:
    """Process id and name of each status socket of this machine."""
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return []
    listening = [line.split() for line in lines if f" {_LISTENING} " in line and f" @{_PREFIX}-" in line]
    names = {fields[-1].removeprefix("@") for fields in listening}
    return sorted((int(name.split("-")[2]), name) for name in names)


def _listen_locally() -> Any:
    for number in range(1000):
        try:
            return Listener(f"\0{_PREFIX}-{os.getpid()}-{number}", "AF_UNIX")
        except OSError:  # another pipeline of this process
            continue
    raise OSError("no name is left for this pipeline's status socket: close some of this process's pipelines")


def _same_user(connection: Connection) -> bool:
    """Whether the peer of a local connection is this user or root; TCP peers have shown the key."""
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        return is_trusted(peer_user(peer))


def _wake(address: str | tuple[str, int]) -> None:
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX if isinstance(address, str | bytes) else socket.AF_INET) as caller,
    ):
        caller.settimeout(1.0)
        caller.connect(address)


def _shut_down(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        peer.shutdown(socket.SHUT_RDWR)
