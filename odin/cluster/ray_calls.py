"""Calls to Ray that end with an error when Ray does, and never with the process.

Ray belongs to the process, and ends it (status 1) when its control process (GCS) has been gone for a minute, when a
thread calls it while another one disconnects, and ``ray.get`` raises ``SystemExit`` then. After a disconnect a call
starts a new Ray instead. So all control calls pass through here: they are counted, wait in short steps, and are
refused from the moment on that Ray is known to be lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from odin.errors import StageLostError
from odin.stages.device import DeviceError

__all__ = ["allow_calls", "calling", "get", "refuse_calls", "wait"]

_STEP_S = 0.25

_state = threading.Condition()
_running = 0
_refused: str | None = None


def allow_calls() -> None:
    """Let calls through again: this process has a new connection."""
    global _refused
    with _state:
        _refused = None


def refuse_calls(why: str, *, timeout_s: float = 20.0) -> bool:
    """Refuse calls from now on, and wait until none is under way; whether there is none."""
    global _refused
    with _state:
        _refused = _refused or why
        return _state.wait_for(lambda: _running == 0, timeout_s)


@contextmanager
def calling() -> Iterator[None]:
    """Call Ray inside; not for long.

    Raises
    ------
    StageLostError
        If Ray is lost.
    """
    global _running
    with _state:
        if _refused is not None:
            raise StageLostError(_refused)
        if not ray.is_initialized():  # a call would start a Ray of its own
            raise StageLostError("this process was disconnected from Ray; start a new pipeline")
        _running += 1
    try:
        yield
    except SystemExit as error:
        raise StageLostError("Ray was shut down during a call; start a new pipeline") from error
    finally:
        with _state:
            _running -= 1
            _state.notify_all()


def wait(refs: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
    """As ``ray.wait`` for all of ``refs``: those that are ready, and those that are not by then."""
    if not refs:
        return [], []
    deadline_s = time.monotonic() + timeout_s
    while True:
        left_s = deadline_s - time.monotonic()
        with calling():
            ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=max(0.0, min(_STEP_S, left_s)))
        if not late or left_s <= _STEP_S:
            return ready, late


def get(refs: Any, *, timeout_s: float) -> Any:
    """As ``ray.get`` for one reference or a list of them.

    Raises
    ------
    StageLostError
        If Ray is lost.
    DeviceError
        If that is what a call failed with.
    ray.exceptions.RayError
        If a call failed otherwise, or is not done in time.
    """
    many = isinstance(refs, list)
    _, late = wait(refs if many else [refs], timeout_s=timeout_s)
    if late:
        raise ray.exceptions.GetTimeoutError(f"{len(late)} calls were not done within {timeout_s:.0f} s")
    with calling():
        try:
            return ray.get(refs)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DeviceError):  # its message says it all; Ray's adds the stage's traceback
                raise error.cause from None
            raise
