"""Signals stay the program's while Ray starts and stops in it.

``ray.init`` puts a handler of its own in the place of the program's for SIGTERM. Below that its C++ installs one (the
failure handler of absl) that prints a native stack trace, and aborts the process three seconds later whatever it does.
``ray.shutdown`` resets SIGTERM to ending the process at once. Seen in Ray 2.60.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

__all__ = ["kept"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
_INSTALLED = "_ZN3ray6RayLog36is_failure_signal_handler_installed_E"
"""Ray's ``RayLog::is_failure_signal_handler_installed_``: it installs, and resets, nothing twice."""


@contextmanager
def kept(*, starting: bool = False) -> Iterator[None]:
    """Give signals back to whom they belonged before the block, which starts or stops Ray.

    A SIGTERM that Ray's own handler got within the block is handed on.

    Parameters
    ----------
    starting
        Whether the block starts Ray: then its failure handler is not installed.
    """
    with _no_failure_handler() if starting else contextlib.nullcontext():
        if threading.current_thread() is not threading.main_thread():
            yield  # Python's handlers belong to the main thread, and Ray leaves them alone elsewhere
            return
        before = {number: signal.getsignal(number) for number in _NUMBERS}
        handed_on = False
        try:
            yield
        except SystemExit as error:
            if error.code != signal.SIGTERM:  # this is how Ray's handler ends the program
                raise
            handed_on = True
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: it was not set from Python
                    signal.signal(number, handler)
            if handed_on:
                signal.alarm(0)  # the abort
                signal.raise_signal(signal.SIGTERM)
        if handed_on:
            raise SystemExit(128 + signal.SIGTERM)  # whose it was has not ended anything


@contextmanager
def _no_failure_handler() -> Iterator[None]:
    """Let Ray believe that its failure handler is installed; nothing if this version keeps its mind elsewhere."""
    try:
        installed = ctypes.c_bool.in_dll(ctypes.CDLL(ray._raylet.__file__), _INSTALLED)
    except (AttributeError, OSError, ValueError):
        yield
        return
    before, installed.value = installed.value, True
    try:
        yield
    finally:
        installed.value = before
