"""Noticing that Ray's processes have died.

Every process connected to Ray depends on two others: the raylet of its machine, without which nothing can be started
there, and the control process (GCS) of the cluster, without which nothing can be started anywhere. What runs goes on
without them, as long as it stays connected: whoever disconnects ends its actors. The kernel says when a process of this
machine ends; a GCS that is not this program's own is asked for over TCP, and may be away for a while, since clusters
restart theirs.

Ray ends a process, and a raylet ends itself, when the GCS has been away for ``RAY_gcs_rpc_server_reconnect_timeout_s``.
ODIN sets that to days where it starts Ray. Where it does not, the connection has to be given up before. Likewise it has
workers go on without their raylet (:mod:`odin.cluster.ray_patience`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import ray

from odin.cluster.ray_patience import GCS_PATIENCE
from odin.stages.channel.peer import peer_process

__all__ = ["RayWatch"]

_DEFAULT_PATIENCE_S = 60.0
_PROBE_S = 5.0
_AWAY_S = 10.0
"""Seconds for which a GCS elsewhere must not have answered before that is told."""


class RayWatch:
    """Watches the Ray that this process is connected to, in a thread of its own.

    Parameters
    ----------
    on_trouble
        Called in that thread with what has happened: once when Ray is lost, and each time that the GCS goes away.
    on_leave
        Called in that thread when the connection has to be given up, since Ray would end this process.
    """

    def __init__(self, *, on_trouble: Callable[[str], None], on_leave: Callable[[str], None]) -> None:
        self._on_trouble, self._on_leave = on_trouble, on_leave
        self._lost: str | None = None
        self._away: str | None = None
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[str, bool]] = {}  # name, and whether calls are still possible without it
        self._open = ExitStack()
        self._gcs: tuple[str, int] | None = None
        self._gcs_seen_s = time.monotonic()
        self._leave_after_s = 0.5 * float(os.environ.get(GCS_PATIENCE) or _DEFAULT_PATIENCE_S)
        context = ray.get_runtime_context()
        for node in ray.nodes():
            if node["NodeID"] == context.get_node_id():
                self._watch_raylet(str(node["RayletSocketName"]))
        # A child is there only if this process has started that Ray.
        gcs = next((child for child in psutil.Process().children() if _is_gcs(child)), None)
        if gcs is None or not self._watch_process(gcs.pid, "Ray's control process (GCS)", vital=False):
            host, _, port = context.gcs_address.rpartition(":")
            self._gcs = (host.strip("[]"), int(port))
        self._ended, self._end = socket.socketpair()
        self._open.callback(self._ended.close)
        self._thread = threading.Thread(target=self._run, name="odin-ray-watch", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> str | None:
        """How Ray has failed for good; ``None`` if it is alive, as far as can be seen without waiting."""
        with self._lock:
            if self._lost is None and self._ended.fileno() >= 0:
                self._look(0.0)
        return self._lost

    @property
    def cannot_start(self) -> str | None:
        """Why Ray can start no process now; ``None`` if it can."""
        return self.lost or self._away

    def close(self) -> None:
        """Stop watching, and wait for a call of ``on_trouble`` or ``on_leave``. Idempotent."""
        self._end.close()
        self._thread.join()
        with self._lock:
            self._open.close()

    def _watch_raylet(self, path: str) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            pid = peer_process(connection)
        except OSError:
            connection.close()
            return
        if pid and self._watch_process(pid, "Ray's node process (raylet)", vital=True):
            connection.close()
        else:  # it runs where process ids mean something else: its socket ends with it
            self._open.callback(connection.close)
            self._watched[connection.fileno()] = "Ray's node process (raylet)", True

    def _watch_process(self, pid: int, name: str, *, vital: bool) -> bool:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        self._open.callback(os.close, descriptor)
        self._watched[descriptor] = f"{name}, process {pid},", vital
        return True

    def _look(self, timeout_s: float | None) -> bool:
        """Wait so long (``None``: as it takes) for the end of a process or of watching; whether watching is over."""
        poll = select.poll()
        for descriptor in (self._ended.fileno(), *self._watched):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if timeout_s is None else 1000 * timeout_s)}
        if self._ended.fileno() in ready:
            return True
        for descriptor in ready:
            name, vital = self._watched.pop(descriptor, ("", False))
            if not name:  # another thread has seen it as well
                continue
            if vital:
                self._lost = self._lost or f"{name} has ended: nothing can be started on this machine"
            else:
                self._away = self._away or f"{name} has ended: Ray can start nothing"
        return False

    def _run(self) -> None:
        told: set[str] = set()
        while not self._look(_PROBE_S if self._gcs else None):
            if self._gcs is not None:
                self._probe(self._gcs)
            if self._away is None:
                told.discard("away")
            if self._lost is not None and "lost" not in told:
                told.add("lost")
                self._on_trouble(self._lost)
            if self._away is not None and "away" not in told:
                told.add("away")
                self._on_trouble(self._away)
            if self._gcs is not None and self._away_s() >= self._leave_after_s and "leave" not in told:
                told.add("leave")
                self._lost = f"{self._away}, and before Ray ends this program for it, it has disconnected"
                self._on_leave(self._lost)
                return

    def _away_s(self) -> float:
        return time.monotonic() - self._gcs_seen_s

    def _probe(self, address: tuple[str, int]) -> None:
        """Ask whether a GCS elsewhere is there."""
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=_PROBE_S).close()
            self._gcs_seen_s = time.monotonic()
        if self._away_s() < min(_AWAY_S, self._leave_after_s):
            self._away = None
        elif self._away is None:
            host, port = address
            self._away = f"Ray's control process (GCS) at {host}:{port} does not answer: Ray can start nothing"


def _is_gcs(process: psutil.Process) -> bool:
    try:
        return process.name() == "gcs_server" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
