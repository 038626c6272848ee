"""Who is overloaded: ODIN with and without admission, and Ray Serve by its handle and by HTTP.

Each is started the same way and takes requests by number, with the seconds that they have left. Ray Serve gets what its
documentation advises for load shedding and high throughput: a small ``max_queued_requests``, so that what is let in can
still be in time, and RAY_SERVE_THROUGHPUT_OPTIMIZED=1 (direct ingress, gRPC, router and model in one event loop), for
HTTP also its HAProxy. Its replicas compute in one thread beside their event loop, which would otherwise refuse nothing
while an image is computed. Images are with the replicas, so that requests and their refusals carry no data: an
advantage that ODIN does not have.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.open_loop import Send
from odin.monitor.events import LoadChanged
from odin_lab.live.ray_serve import Replica
from odin_lab.live.server import Array

__all__ = ["CONTENDERS", "Contender", "Expired", "Refused", "Task", "admission_options"]


class Task(NamedTuple):
    """What a contender is to serve.

    Attributes
    ----------
    images
        ``(n, 3, height, width)``, each one request in turn.
    deadline_s
        Deadline of all requests; 0 while it is not known.
    ongoing, queued
        Ray Serve's ``max_ongoing_requests`` and ``max_queued_requests``.
    """

    model: str
    cores: tuple[int, ...]
    images: Array
    deadline_s: float
    ongoing: int
    queued: int


class Refused(Exception):  # noqa: N818  # an outcome that was asked for, not a defect
    """The server let a request in not at all."""


class Expired(Exception):  # noqa: N818  # likewise
    """The server gave a request up, as its time was over."""


class Contender(NamedTuple):
    """One that serves.

    Attributes
    ----------
    send
        Used in one event loop, within ``connected``.
    connected
        Entered in that event loop before the first request, left after the last.
    tell
        Whether requests have a deadline there; otherwise being late is only counted.
    refusals, expiries
        See :func:`benchmarks.open_loop.open_loop`.
    settings
        What it was told, in words, for the result.
    note_load
        Told of loads beside it.
    """

    send: Send
    connected: Callable[[], AbstractAsyncContextManager[None]]
    tell: bool
    refusals: tuple[type[BaseException], ...]
    expiries: tuple[type[BaseException], ...]
    settings: str
    note_load: Callable[[LoadChanged], None] = lambda event: None


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


# ---------------------------------------------------------------- ODIN
def admission_options(admission: str, known: Callable[..., Any]) -> dict[str, Any]:
    """Options of a pipeline for an admission; none where ODIN does not have that option yet.

    Examples
    --------
    >>> admission_options("none", lambda model: None)
    {}
    """
    return {"admission": admission} if "admission" in inspect.signature(known).parameters else {}


@contextmanager
def odin_pipeline(task: Task, *, admission: str, deadlines: bool) -> Iterator[Contender]:
    """A stage on each core, with the policy that is the default."""
    import torch

    import odin

    torch.set_num_threads(1)
    options = admission_options(admission, odin.Pipeline)
    images = [torch.from_numpy(task.images[row : row + 1]) for row in range(len(task.images))]
    with odin.Pipeline(task.model, stages=[f"cpu:{core}" for core in task.cores], **options) as pipe:

        async def send(index: int, left_s: float | None) -> object:
            return await pipe.asubmit(images[index % len(images)], timeout_s=left_s)

        said = f"policy {pipe.policy}, {options or 'without the option admission'}"
        late = (odin.DeadlineExceededError,)
        yield Contender(send, _nothing, deadlines, (), late, said, pipe.note_load)


# ---------------------------------------------------------------- Ray Serve
class ServeReplica(Replica):
    """One replica on one core: one image at a time in a thread of its own, so that its event loop stays free."""

    def __init__(self, model: str, cores: tuple[int, ...], claims: str, images: Array) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(int).result()  # it exists before all threads are bound to the core
        self._images = images
        super().__init__(model, None, cores, claims)
        import torch

        self._thread.submit(torch.set_num_threads, 1).result()

    def compute(self, number: int) -> Array:
        """Run the model on the image of that number."""
        row = number % len(self._images)
        return self.infer(self._images[row : row + 1])

    async def __call__(self, request: Any) -> Any:
        """Serve an image by its number: a call through a handle, or an HTTP request with the number as its body."""
        by_handle = isinstance(request, int)
        number = request if by_handle else int(await request.body())
        output = await asyncio.get_running_loop().run_in_executor(self._thread, self.compute, number)
        if by_handle:
            return output
        from starlette.responses import Response

        return Response(output.tobytes(), media_type="application/octet-stream")


@contextmanager
def _serve(task: Task, *, http_port: int = 0) -> Iterator[Any]:
    """Start Ray and Serve with a replica per core; yields the handle."""
    # Read by Serve when it is imported, here and in all of its processes.
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1" if http_port else "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from odin.cluster.ray_signals import kept

    with kept(starting=True):
        ray.init(num_cpus=len(task.cores) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")  # type: ignore[arg-type]
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells of each refusal
    try:
        with tempfile.TemporaryDirectory() as claims:
            options = HTTPOptions(host="127.0.0.1", port=http_port, request_timeout_s=task.deadline_s or None)
            quiet = {"log_level": "ERROR", "enable_access_log": False}
            if http_port:
                serve.start(http_options=options, logging_config=quiet)
            else:
                serve.start(proxy_location="Disabled", logging_config=quiet)
            deployment = serve.deployment(
                name="model",
                num_replicas=len(task.cores),
                max_ongoing_requests=task.ongoing,
                max_queued_requests=task.queued,
                logging_config=quiet,
                ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
            )(ServeReplica)
            application = deployment.bind(task.model, task.cores, claims, task.images)
            yield serve.run(application, name="benchmark", route_prefix="/" if http_port else None)
    finally:
        with kept():
            ray.shutdown()


def _settings(task: Task, more: str) -> str:
    return (
        f"{len(task.cores)} replicas, max_ongoing_requests {task.ongoing}, max_queued_requests {task.queued}, "
        f"RAY_SERVE_THROUGHPUT_OPTIMIZED=1, {more}"
    )


@asynccontextmanager
async def _serve_loop() -> AsyncIterator[None]:
    """Serve's router lives in this event loop, and must end with it."""
    from ray import serve

    try:
        yield
    finally:
        await serve.shutdown_async()


@contextmanager
def serve_handle(task: Task) -> Iterator[Contender]:
    """Ray Serve by its handle; ``request_timeout_s`` is for HTTP, so the caller cancels when the time is over."""
    with _serve(task) as handle:
        from ray.serve.exceptions import BackPressureError

        async def send(index: int, left_s: float | None) -> object:
            response = handle.remote(index)
            try:
                return await asyncio.wait_for(_outcome(response), left_s)
            except TimeoutError:
                response.cancel()
                raise Expired from None

        settings = _settings(task, "by handle, cancelled at the deadline")
        yield Contender(send, _serve_loop, True, (BackPressureError,), (Expired,), settings)


async def _outcome(response: Any) -> object:
    return await response


@contextmanager
def serve_http(task: Task) -> Iterator[Contender]:
    """Ray Serve by HTTP: HAProxy, direct ingress, and ``request_timeout_s``, which each request also names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with _serve(task, http_port=port):
        import aiohttp

        sessions: list[aiohttp.ClientSession] = []

        @asynccontextmanager
        async def connected() -> AsyncIterator[None]:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, _serve_loop():
                sessions.append(session)
                yield

        async def send(index: int, left_s: float | None) -> object:
            # Zero or less means no timeout to Serve.
            timeout = "0" if left_s is None else f"{max(left_s, 0.001):.4f}"
            headers = {"x-request-timeout-seconds": timeout}
            url = f"http://127.0.0.1:{port}/"
            async with sessions[-1].post(url, data=b"%d" % index, headers=headers) as answer:
                body = await answer.read()
                if answer.status == 503:
                    raise Refused
                if answer.status == 408:
                    raise Expired
                if answer.status != 200:
                    raise RuntimeError(f"status {answer.status}: {body[:200]!r}")
                return np.frombuffer(body, dtype=np.float32)

        settings = _settings(task, "by HTTP through HAProxy, request_timeout_s")
        yield Contender(send, connected, True, (Refused,), (Expired,), settings)


CONTENDERS: dict[str, Callable[[Task], AbstractContextManager[Contender]]] = {
    "odin-predict": partial(odin_pipeline, admission="predict", deadlines=True),
    "odin-none": partial(odin_pipeline, admission="none", deadlines=True),
    "odin-fifo": partial(odin_pipeline, admission="none", deadlines=False),
    "ray-serve": serve_handle,
    "ray-serve-http": serve_http,
}
"""Name -> how it is started. ``odin-fifo``: no deadlines at all, lateness is counted afterwards."""
