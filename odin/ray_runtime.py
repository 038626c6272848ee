"""Connecting to Ray: a cluster by address, or an embedded local Ray that is stopped afterwards."""

from __future__ import annotations

import os
from typing import Any

import ray

from odin.ray_token import use_token
from stages.device import usable_cores

__all__ = ["RayRuntime"]

_MIN_STORE_NBYTES = 128 * 2**20


class RayRuntime:
    """A connection to Ray for the life of one pipeline.

    A process that is connected already keeps its connection (``address`` must then be ``None``). With an address the
    cluster is used and left running. Otherwise a local Ray is started, without dashboard, and stopped by
    :meth:`close`.

    Parameters
    ----------
    address
        ``HOST:PORT`` of a cluster's head, ``"auto"`` for one running on this machine, or ``None``.
    weight_nbytes
        Bytes of weights that the object store of an embedded Ray must hold; it gets a quarter more, for packed forms
        are a little larger.

    Raises
    ------
    ConnectionError
        If there is no cluster at the address.
    """

    def __init__(self, *, address: str | None = None, weight_nbytes: int = 0) -> None:
        self._owned = False
        if ray.is_initialized():
            if address is not None:
                raise ValueError(f"this process is connected to a Ray cluster already; leave out address={address!r}")
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray runs workers at nice 15 unless told otherwise: a program beside a stage would take nearly all of its core.
        os.environ.setdefault("RAY_worker_niceness", "0")
        common: dict[str, Any] = {"namespace": "odin", "log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            use_token()
            try:
                ray.init(address=address, **common)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise ConnectionError(
                    f"no Ray cluster at {address}: {error}; start one with scripts/cluster.sh up, or leave it out"
                ) from error
        else:
            ray.init(
                address="local",
                num_cpus=len(usable_cores()),
                include_dashboard=False,
                object_store_memory=_MIN_STORE_NBYTES + int(1.25 * weight_nbytes),
                **common,
            )
        self._owned = True

    def close(self) -> None:
        """Disconnect, stopping an embedded Ray. Idempotent."""
        if self._owned:
            self._owned = False
            ray.shutdown()
