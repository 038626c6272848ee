"""The processes of an embedded Ray: in process groups of their own, and ended to the last one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

__all__ = ["LongLivedThread", "RayProcesses"]

_RAY = str(Path(ray.__file__).parent)
_starting: int | None = None
"""Thread that starts Ray's processes now."""


class RayProcesses:
    """The processes and folder of an embedded Ray.

    A command's process group is signalled as a whole by timeout(1), by a closing terminal, and by ``kill -- -PID``.
    Ray's processes would end at once then, and no request under way could be finished; so each gets a group of its own.
    They end with this process all the same, however it ends. Two agents of Ray take a minute to do so by themselves;
    they are in the group of the process that started them, and so are found.
    """

    def __init__(self) -> None:
        self._groups: list[int] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start Ray in this block; if that fails, its processes are ended."""
        global _starting
        before = set(psutil.Process().children())
        _starting = threading.get_ident()
        try:
            yield
        except BaseException:
            self._groups = _groups_of_ray(before)
            self.end()
            raise
        finally:
            _starting = None
        self._groups = _groups_of_ray(before)

    def wake(self) -> None:
        """Let processes that are stopped (SIGSTOP) go on: Ray waits for them, without a limit, when it shuts down."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGCONT)

    def end(self) -> None:
        """End what is left of them. Idempotent."""
        groups, self._groups = self._groups, []
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)


class LongLivedThread:
    """Calls a function in a thread that then stays alive until it is ended; re-raises the function's exception."""

    def __init__(self, call: Callable[[], object], *, name: str) -> None:
        called: Future[object] = Future()
        self._over = threading.Event()

        def run() -> None:
            try:
                called.set_result(call())
            except BaseException as error:
                called.set_exception(error)
            else:
                self._over.wait()

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()
        called.result()

    def end(self) -> None:
        """Let it end. Idempotent."""
        self._over.set()
        self._thread.join()


def _groups_of_ray(before: set[psutil.Process]) -> list[int]:
    found = []
    for child in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(child.pid) == child.pid and any(_RAY in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def _after_fork() -> None:
    if _starting == threading.get_ident():  # the same in the child
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)


os.register_at_fork(after_in_child=_after_fork)
