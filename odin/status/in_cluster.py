"""Finding the pipelines of a Ray cluster: their first stages have names, and know where the gateway answers."""

from __future__ import annotations

from typing import Any, NamedTuple

import ray

from odin.cluster.actors import ACTOR_PREFIX
from odin.cluster.ray_runtime import RayRuntime
from odin.status.server import RemoteStatus

__all__ = ["FoundPipeline", "find_pipelines"]

_TIMEOUT_S = 10.0


class FoundPipeline(NamedTuple):
    """A pipeline of the cluster: its gateway's process id and where that answers."""

    pid: int
    status: RemoteStatus


def find_pipelines(address: str) -> list[FoundPipeline]:
    """Return the pipelines that serve in the cluster at ``address``.

    Raises
    ------
    ConnectionError
        If there is no cluster.
    """
    runtime = RayRuntime(address=address)
    try:
        named = [
            item for item in ray.util.list_named_actors(all_namespaces=True) if item["name"].startswith(ACTOR_PREFIX)
        ]
        calls: list[Any] = [ray.get_actor(item["name"], item["namespace"]).status.remote() for item in named]
        ready = ray.wait(calls, num_returns=len(calls), timeout=_TIMEOUT_S)[0] if calls else []
        found: list[FoundPipeline] = []
        for call in ready:
            try:
                status = ray.get(call)
            except ray.exceptions.RayActorError:  # it ended meanwhile
                continue
            if status is not None:
                found.append(FoundPipeline(*status))
        return sorted(found)
    finally:
        runtime.close()
