"""Connecting to Ray: a cluster by address, or an embedded local Ray that is stopped afterwards."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import ray

from odin.cluster.ray_calls import allow_calls, refuse_calls
from odin.cluster.ray_folder import EmbeddedFolder
from odin.cluster.ray_helpers import without_helpers
from odin.cluster.ray_loopback import LOOPBACK, loopback_kept
from odin.cluster.ray_messages import log_messages
from odin.cluster.ray_patience import be_patient
from odin.cluster.ray_processes import LongLivedThread, RayProcesses
from odin.cluster.ray_random import own_random_numbers
from odin.cluster.ray_signals import kept
from odin.cluster.ray_token import use_own_token, use_token
from odin.cluster.ray_watch import RayWatch
from odin.cluster.reachable import check_address
from odin.process.forks import check_ray_is_ours, ray_was_here
from odin.stages.device import usable_cores

__all__ = ["RayRuntime"]

_MIN_STORE_NBYTES = 128 * 2**20


class RayRuntime:
    """A connection to Ray for the life of one pipeline.

    A process that is connected already keeps its connection (``address`` must then be ``None``). With an address the
    cluster is used and left running. Otherwise a local Ray is started, without helpers, and stopped by
    :meth:`close`, which removes its folder as well. It listens on the loopback address only, and asks for the token.
    Pipelines of one process share the connection; the last to close gives it up.

    When Ray's processes die, what runs goes on as long as this process stays connected, which it does until the last
    pipeline has been closed, unless Ray would end it before.

    Parameters
    ----------
    address
        ``HOST:PORT`` of a cluster's head, ``"auto"`` for one running on this machine, or ``None``.
    weight_nbytes
        Bytes of weights that the object store of an embedded Ray must hold; it gets a quarter more, for packed forms
        are a little larger.
    on_trouble
        Called from another thread with what has happened when processes of Ray have died.

    Raises
    ------
    ConnectionError
        If there is no cluster at the address.
    ForkedProcessError
        If this process was forked from one that is connected.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        weight_nbytes: int = 0,
        on_trouble: Callable[[str], None] = lambda why: None,
    ) -> None:
        global _connection
        check_ray_is_ours()
        self.on_trouble = on_trouble
        with _starting_or_ending:  # Ray is one for the whole process
            if ray.is_initialized() and address is not None:
                raise ValueError(f"this process is connected to a Ray cluster already; leave out address={address!r}")
            if _connection is not None and _connection.users and (why := _connection.watch.cannot_start) is not None:
                raise ConnectionError(f"{why}; close the pipelines of this process that still serve, then start anew")
            if _connection is None or not _connection.lives:
                _connection = _Connection(address, weight_nbytes)
            self._connection = _connection
            self._connection.users.append(self)

    @property
    def embedded(self) -> bool:
        """Whether it is a Ray of this process's own: its one node sees this machine as this process does."""
        return self._connection.embedded

    @property
    def lost(self) -> str | None:
        """How Ray has failed for good; None if it is alive."""
        return self._connection.watch.lost

    @property
    def cannot_start(self) -> str | None:
        """Why Ray can start no process now, if it cannot; looked up at once."""
        return self._connection.watch.cannot_start

    def close(self) -> None:
        """Disconnect, stopping an embedded Ray, if nobody else uses it. Idempotent."""
        with _starting_or_ending:
            if self in self._connection.users:
                self._connection.users.remove(self)
                if not self._connection.users:
                    self._connection.close()


class _Connection:
    """The connection of this process to Ray, made here unless there was one."""

    def __init__(self, address: str | None, weight_nbytes: int) -> None:
        self.users: list[RayRuntime] = []
        self._owned = not ray.is_initialized()
        self._folder: EmbeddedFolder | None = None
        self._processes = RayProcesses()
        self._starter: LongLivedThread | None = None
        try:
            if self._owned:
                self._connect(address, weight_nbytes)
            allow_calls()
            ray_was_here()
            self._gcs_address = ray.get_runtime_context().gcs_address
            self.watch = RayWatch(on_trouble=self._tell, on_leave=self._give_up)
        except BaseException:
            if self._owned:
                with kept():
                    ray.shutdown()
            self._end_embedded()
            raise

    def _connect(self, address: str | None, weight_nbytes: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray runs workers at nice 15 unless told otherwise: a program beside a stage would take nearly all of its core.
        os.environ.setdefault("RAY_worker_niceness", "0")
        be_patient()
        log_messages()
        common: dict[str, Any] = {"namespace": "odin", "log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            use_token()
            check_address(address)
            try:
                with loopback_kept(), own_random_numbers(), kept(starting=True):
                    ray.init(address=address, **common)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise ConnectionError(
                    f"no Ray cluster at {address}: {error}; start one with scripts/cluster.sh up, or leave it out"
                ) from error
            return
        use_own_token()
        self._folder = EmbeddedFolder()
        if threading.current_thread() is threading.main_thread():
            self._start_embedded(weight_nbytes, common)
        else:
            # The kernel ends Ray's processes when the thread that has started them ends (PR_SET_PDEATHSIG).
            self._starter = LongLivedThread(
                lambda: self._start_embedded(weight_nbytes, common), name="odin-ray-starter"
            )

    def _start_embedded(self, weight_nbytes: int, common: dict[str, Any]) -> None:
        assert self._folder is not None
        with loopback_kept(), own_random_numbers(), without_helpers(), kept(starting=True), self._processes.starting():
            ray.init(
                address="local",
                num_cpus=len(usable_cores()),
                include_dashboard=False,
                object_store_memory=_MIN_STORE_NBYTES + int(1.25 * weight_nbytes),
                _node_ip_address=LOOPBACK,
                _temp_dir=str(self._folder.path),
                **common,
            )
        if ray.util.get_node_ip_address() != LOOPBACK:
            warnings.warn(
                f"this version of Ray ({ray.__version__}) listens on {ray.util.get_node_ip_address()}, not only on "
                "this machine; it asks for its token",
                stacklevel=1,
            )

    @property
    def embedded(self) -> bool:
        """Whether it was started here."""
        return self._folder is not None

    @property
    def lives(self) -> bool:
        """Whether pipelines that are started now can use it, too."""
        return bool(self.users) and self.watch.lost is None and self._is_current()

    def _is_current(self) -> bool:
        # Not a later connection of the program's own, after it has shut down this one.
        return ray.is_initialized() and ray.get_runtime_context().gcs_address == self._gcs_address

    def _tell(self, why: str) -> None:
        if self.watch.lost is not None:
            refuse_calls(self.watch.lost)
        for user in tuple(self.users):
            user.on_trouble(why)

    def _give_up(self, why: str) -> None:
        """Disconnect before Ray ends this process, with which the stages end."""
        try:
            for user in tuple(self.users):
                user.on_trouble(why)
        finally:
            self._disconnect(why)

    def _disconnect(self, why: str) -> None:
        refuse_calls(why)
        if self._is_current():
            self._processes.wake()
            with kept():
                ray.shutdown()
        self._end_embedded()

    def _end_embedded(self) -> None:
        """End what is left of an embedded Ray's processes, and remove its folder."""
        self._processes.end()
        if self._starter is not None:
            self._starter.end()
        if self._folder is not None:
            self._folder.remove()

    def close(self) -> None:
        """Stop watching, and disconnect if the connection was made here."""
        self.watch.close()
        if self._owned or self.watch.lost is not None:
            self._disconnect("the pipeline that had started Ray was closed")


_starting_or_ending = threading.RLock()
_connection: _Connection | None = None
