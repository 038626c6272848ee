"""Noticing that Ray's processes have died, before Ray ends this process for it.

Every process connected to Ray depends on two others: the raylet of its machine, without which the machine's stages
end, and the control process (GCS) of the cluster. The kernel says when a process of this machine ends; a GCS that is
not this program's own is asked for over TCP, and may be away for a while, since clusters restart theirs.
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

from odin.stages.channel.peer import peer_process

__all__ = ["RayWatch"]

_PROBE_S = 5.0
_GCS_AWAY_S = 0.5 * float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s") or 60)  # noqa: SIM112  # Ray's name
"""Half of what Ray itself waits for before it ends the process."""


class RayWatch:
    """Watches the Ray that this process is connected to, in a thread of its own.

    Parameters
    ----------
    on_lost
        Called once, in that thread, with what has happened.
    """

    def __init__(self, *, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._watched: dict[int, str] = {}
        self._open = ExitStack()
        self._gcs: tuple[str, int] | None = None
        self._gcs_seen_s = time.monotonic()
        context = ray.get_runtime_context()
        for node in ray.nodes():
            if node["NodeID"] == context.get_node_id():
                self._watch_raylet(str(node["RayletSocketName"]))
        # A child is there only if this process has started that Ray.
        gcs = next((child for child in psutil.Process().children() if _is_gcs(child)), None)
        if gcs is None or not self._watch_process(gcs.pid, "Ray's control process (GCS)"):
            host, _, port = context.gcs_address.rpartition(":")
            self._gcs = (host.strip("[]"), int(port))
        self._ended, self._end = socket.socketpair()
        self._open.callback(self._ended.close)
        self._thread = threading.Thread(target=self._run, name="odin-ray-watch", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> str | None:
        """How Ray has failed; ``None`` if it is alive, as far as can be seen without waiting."""
        with self._lock:
            if self._lost is None and self._ended.fileno() >= 0:
                self._look(0.0)
        return self._lost

    def close(self) -> None:
        """Stop watching, and wait for a call of ``on_lost``. Idempotent."""
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
        if pid and self._watch_process(pid, "Ray's node process (raylet)"):
            connection.close()
        else:  # it runs where process ids mean something else: its socket ends with it
            self._open.callback(connection.close)
            self._watched[connection.fileno()] = "Ray's node process (raylet)"

    def _watch_process(self, pid: int, name: str) -> bool:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        self._open.callback(os.close, descriptor)
        self._watched[descriptor] = f"{name}, process {pid},"
        return True

    def _look(self, timeout_s: float | None) -> bool:
        """Wait so long (``None``: as it takes) for the end of a process or of watching; whether watching is over."""
        poll = select.poll()
        for descriptor in (self._ended.fileno(), *self._watched):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(None if timeout_s is None else 1000 * timeout_s)}
        if self._ended.fileno() in ready:
            return True
        for descriptor, name in self._watched.items():
            if descriptor in ready:
                self._lost = self._lost or _explain(f"{name} has ended")
        return self._lost is not None

    def _run(self) -> None:
        while not self._look(_PROBE_S if self._gcs else None):
            if self._gcs is not None and self._is_away(self._gcs):
                host, port = self._gcs
                self._lost = _explain(
                    f"Ray's control process (GCS) at {host}:{port} has been away for {_GCS_AWAY_S:.0f} s"
                )
                break
        if self._lost is not None:
            self._on_lost(self._lost)

    def _is_away(self, address: tuple[str, int]) -> bool:
        """Ask whether the GCS is there; whether it has not been for too long."""
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=_PROBE_S).close()
            self._gcs_seen_s = time.monotonic()
        return time.monotonic() - self._gcs_seen_s >= _GCS_AWAY_S


def _explain(what: str) -> str:
    return f"{what}, and with it all that Ray runs; start a new pipeline and submit again"


def _is_gcs(process: psutil.Process) -> bool:
    try:
        return process.name() == "gcs_server" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
