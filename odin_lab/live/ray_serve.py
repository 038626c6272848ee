"""Single-core Ray Serve replicas of the prepared model, called through a handle (no HTTP)."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from odin_lab.live.server import Array, Server, Setup

__all__ = ["ray_serve"]


class Replica:
    """One replica: the prepared model on one core."""

    def __init__(self, model: str, weights: Path | None, cores: tuple[int, ...], claims: str) -> None:
        import torch

        from odin.stages.device import bind_threads
        from odin_lab.live.machine import release_memory
        from odin_lab.live.plain_models import folded_model

        torch.set_num_threads(1)
        self.infer = folded_model(model, weights)
        self.core = claim(cores, Path(claims))
        bind_threads([self.core])
        release_memory()

    async def __call__(self, image: Array) -> Array:
        """Serve one image. Async but never awaiting: one is computed at a time, the next waits in the queue."""
        return self.infer(image)

    async def whoami(self) -> tuple[int, int]:
        """Process id and core."""
        return os.getpid(), self.core


def claim(cores: tuple[int, ...], folder: Path) -> int:
    """A core that no other replica has; creating a file is what decides."""
    for core in cores:
        try:
            (folder / str(core)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return core
    raise RuntimeError(f"all of the cores {cores} are taken: a replica was restarted")


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ray-serve", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def ray_serve(setup: Setup) -> Iterator[Server]:
    """Start Ray and Serve with one replica per core; two requests may be with a replica, one computing, one waiting.

    With the settings that Serve's documentation advises for throughput. With these a handle lives in an event loop.
    """
    # Read by Serve when it is imported, here and in all of its processes.
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    import ray
    from ray import serve

    from odin.cluster.ray_signals import kept

    # As for ODIN's stages: at Ray's nice 15, a program beside a replica would take nearly all of its core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with kept(starting=True):
        ray.init(num_cpus=len(setup.cores) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")  # type: ignore[arg-type]
    try:
        with tempfile.TemporaryDirectory() as claims, running_loop() as loop:
            quiet = {"log_level": "ERROR", "enable_access_log": False}
            serve.start(proxy_location="Disabled", logging_config=quiet)
            deployment = serve.deployment(
                name="model",
                num_replicas=len(setup.cores),
                max_ongoing_requests=2,
                logging_config=quiet,
                ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
            )(Replica)
            application = deployment.bind(setup.model, setup.weights, setup.cores, claims)
            handle: Any = serve.run(application, name="benchmark", route_prefix=None)

            async def ask(image: Array) -> object:
                return await handle.remote(image)

            async def whoami() -> tuple[int, int]:
                pid, core = await handle.whoami.remote()
                return pid, core

            def infer(image: Array) -> Array:
                return np.asarray(asyncio.run_coroutine_threadsafe(ask(image), loop).result(), dtype=np.float32)

            def submit(index: int) -> Future[object]:
                row = index % len(setup.images)
                return asyncio.run_coroutine_threadsafe(ask(setup.images[row : row + 1]), loop)

            replicas: set[tuple[int, int]] = set()
            while len(replicas) < len(setup.cores):  # the router chooses, so ask until each has answered
                replicas.add(asyncio.run_coroutine_threadsafe(whoami(), loop).result())
            yield Server(infer, submit, tuple(pid for pid, _ in sorted(replicas)))
            asyncio.run_coroutine_threadsafe(serve.shutdown_async(), loop).result()
    finally:
        with kept():
            ray.shutdown()
