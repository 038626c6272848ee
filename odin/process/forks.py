"""Keeps forked children from using or closing their parent's pipelines and connection to Ray.

A child has the memory and the open files of its parent, but none of its threads. If it only ends, Python and Ray tidy
up there as well: Ray's exit handlers stop the parent's processes or wait for ever for threads that are not there, and
the last reference to an actor that the child drops ends the parent's actor. So in a child nothing of all that is run
or dropped any more.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import weakref
from typing import Any, Protocol

import ray
import ray._private.state
import ray._private.worker
from ray.experimental import internal_kv

from odin.errors import ForkedProcessError

__all__ = ["check_ray_is_ours", "keep_from_children", "ray_was_here"]


class Inherited(Protocol):
    """What a child may inherit."""

    def abandon(self) -> None:
        """Close this process's copies of files that keep something alive elsewhere; take no lock, send nothing."""


_kept: weakref.WeakSet[Any] = weakref.WeakSet()
_ray_owner_pid = 0
"""The process that is or was connected to Ray, if this one is its forked child."""
_ray_was_here = False


def keep_from_children(thing: Inherited) -> None:
    """Let children that are forked from now on neither use nor tidy up ``thing``, nor this process's Ray."""
    _kept.add(thing)


def ray_was_here() -> None:
    """Say that this process is connected to Ray."""
    global _ray_was_here
    _ray_was_here = True


def check_ray_is_ours() -> None:
    """Raise :class:`ForkedProcessError` in a forked child of a process that is or was connected to Ray.

    Ray cannot start there: it waits for ever for threads that only the parent has.
    """
    if _ray_owner_pid:
        raise ForkedProcessError(_ray_owner_pid)


def _in_child() -> None:
    global _ray_owner_pid
    if _ray_was_here:
        _ray_owner_pid = _ray_owner_pid or os.getppid()
    inherited = list(_kept)
    if not inherited:
        return
    for thing in inherited:
        _never_free(thing)
        thing.abandon()
    if ray.is_initialized():
        _leave_ray(os.getppid())


def _leave_ray(owner_pid: int) -> None:
    global _ray_owner_pid
    _ray_owner_pid = owner_pid
    worker, node = ray._private.worker.global_worker, ray._private.worker._global_node
    atexit.unregister(ray.shutdown)
    if node is not None:  # its exit handler is a function of its own, which cannot be named here
        node.kill_all_processes = node._drain_node_before_shutdown = _do_nothing
    handler: Any = signal.getsignal(signal.SIGTERM)
    if getattr(handler, "__module__", "").startswith("ray."):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Their destructors wait for threads, or crash without them. Handles and references look for "core_worker".
    for thing in (worker, node, getattr(worker, "core_worker", None), ray._private.state.state, internal_kv):
        _never_free(thing)
    _never_free(getattr(internal_kv, "global_gcs_client", None))
    if hasattr(worker, "core_worker"):
        del worker.core_worker
    worker.set_is_connected(False)
    _skip_destructors()


def _never_free(thing: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def _skip_destructors() -> None:
    """Let the process end, after all of Python's own handlers, with its status but without C++ destructors."""
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc
        library.on_exit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.on_exit(ctypes.cast(library._exit, ctypes.c_void_p), None)


os.register_at_fork(after_in_child=_in_child)
