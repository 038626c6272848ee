"""A server's life: ports first, then the models, and an end in which nothing that was accepted is lost.

::

    ports open          live, not ready
    models loaded       ready, once an inference went through each
    stop is asked for   not ready; no new requests; those under way finish, within a limit
    ports closed        models end
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from odin.cluster.ray_runtime import RayRuntime
from odin.server.dataplane import DataPlane
from odin.server.failures import RequestError
from odin.stages.host import available_nbytes

__all__ = ["Ports", "Server", "Telling", "ray_kept", "serve"]

_LOOK_S = 0.05
_LEAST_STORE_NBYTES, _STORE_PART = 256 * 2**20, 0.5
_SHARED_MEMORY = Path("/dev/shm")


class Server(Protocol):
    """One protocol's server."""

    async def start(self) -> int:
        """Open the port; returns its number."""

    async def stop(self, drain_s: float) -> None:
        """Take no more connections, let what is under way be answered for so long, and close."""


class Ports(NamedTuple):
    """Where the server listens; None: that protocol is not served."""

    http: int | None
    grpc: int | None


class Telling(Protocol):
    """Who is told of a server's life."""

    def opened(self, ports: Ports) -> None:
        """The ports are open, the models not loaded yet."""

    def loading(self, name: str) -> None:
        """A model is being loaded."""

    def loaded(self, name: str, error: str) -> None:
        """A model is there, or is not, for which reason."""

    def ready(self) -> None:
        """Every model that can be served is."""

    def draining(self, under_way: int) -> None:
        """No new requests are taken."""


@contextmanager
def ray_kept(address: str | None) -> Iterator[None]:
    """Stay connected to Ray in this block, so that models can come and go.

    An embedded Ray's store is to hold all weights; half of the memory that there is, which nothing takes before it is
    needed.
    """
    room = min(available_nbytes(), shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0)
    runtime = RayRuntime(address=address, weight_nbytes=max(_LEAST_STORE_NBYTES, int(_STORE_PART * room / 1.25)))
    try:
        yield
    finally:
        runtime.close()


async def serve(
    dataplane: DataPlane,
    *,
    http: Server | None,
    grpc: Server | None,
    names: Sequence[str],
    stop: Callable[[], bool],
    telling: Telling,
) -> bool:
    """Serve until ``stop`` says so.

    Parameters
    ----------
    dataplane
        What is served.
    http, grpc
        The protocols' servers.
    names
        Models to load first.
    stop
        Asked now and then.
    telling
        Is told what happens.

    Returns
    -------
    bool
        Whether at least one model was served.
    """
    opened: list[Server] = []
    served = False
    try:
        ports = []
        for server in (http, grpc):
            ports.append(None if server is None else await server.start())
            if server is not None:
                opened.append(server)
        telling.opened(Ports(*ports))
        served = await _until(stop, _load(dataplane, names, telling))
        if served:
            telling.ready()
            while not stop():
                await asyncio.sleep(_LOOK_S)
    finally:
        dataplane.draining = True
        telling.draining(dataplane.under_way)
        limit_s = dataplane.limits.drain_s
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(server.stop(limit_s) for server in opened), return_exceptions=True)
        await dataplane.repository.close()
    return served


async def _load(dataplane: DataPlane, names: Sequence[str], telling: Telling) -> bool:
    """Load models one after the other; whether one of them is served then, or none was asked for."""
    repository = dataplane.repository
    packed = [name for name in names if repository.is_packed(name)]
    others = [name for name in names if not repository.is_packed(name)]
    for name in packed:
        if name == packed[0]:  # the others are ready at once
            telling.loading(f"{len(packed)} packed models")
        try:
            await dataplane.load(name)
        except RequestError as error:
            telling.loaded(name, str(error))
    if packed:
        telling.loaded(packed[-1], "")
    for name in others:
        telling.loading(name)
        try:
            await dataplane.load(name, log=False)  # who is told says so
        except RequestError as error:
            telling.loaded(name, str(error))
        else:
            telling.loaded(name, "")
    return not names or bool(dataplane.repository.all_served())


async def _until(stop: Callable[[], bool], loading: Coroutine[Any, Any, bool]) -> bool:
    """Wait for what is being loaded, unless a stop is asked for: then for the model that is just being loaded."""
    task = asyncio.ensure_future(loading)
    while not task.done() and not stop():
        await asyncio.wait([task], timeout=_LOOK_S)
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False
    return task.result()
