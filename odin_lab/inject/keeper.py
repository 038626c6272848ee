"""A process of a load, seen from who started it: one thread stays with it from its start to its end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Keeper"]


class Keeper:
    """Starts a process and listens to it.

    The thread that starts a process is its parent to the kernel, which kills the process when that thread ends. So it
    has to be one that stays, whichever thread wanted the process.

    Parameters
    ----------
    command
        What to start. It has to write a line of JSON with ``ready`` or ``error`` first, and to end when its standard
        input does.
    environment
        Its environment; None is this process's.
    on_end
        Called in the keeper's thread when the process has ended, however it did.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        on_end: Callable[[Keeper], None] = lambda keeper: None,
    ) -> None:
        self._command = list(command)
        self._environment = environment
        self._on_end = on_end
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self.answer: dict[str, Any] = {}
        self.last_words: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._keep, name="odin-load-keeper", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Id of the process; 0 if it did not start."""
        return 0 if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.returncode

    def wait_ready(self, timeout_s: float) -> str:
        """Wait for the first message.

        Returns
        -------
        str
            Why the process cannot do its work; empty if it is ready.
        """
        if not self._answered.wait(timeout_s):
            return "its process does not get ready"
        if "ready" in self.answer:
            return ""
        return str(self.answer.get("error", f"its process ended with status {self.status}"))

    def send(self, line: str) -> None:
        """Write a line to the process; nothing happens if it has ended."""
        with self._lock:
            if self._process is None or self._process.stdin is None or self._closed:
                return
            with contextlib.suppress(OSError):  # it has ended, which its thread finds out
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def close(self) -> None:
        """Tell the process to end: close its input. Returns at once."""
        with self._lock:
            self._closed = True
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(OSError):  # it has ended with a line unread
                    self._process.stdin.close()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended, after :meth:`close`; kill it if it has not by then. False if even that failed."""
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _keep(self) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=None if self._environment is None else dict(self._environment),
                # Ctrl-C in a terminal is for who injects. And where the scheduler groups tasks by session, a load
                # counts as a program of its own, whoever starts it.
                start_new_session=True,
            )
        except OSError as error:
            self.answer = {"error": f"{self._command[0]} does not start: {error}"}
            self._answered.set()
            self._on_end(self)
            return
        with self._lock:
            self._process = process
            if self._closed and process.stdin is not None:  # before it was there
                process.stdin.close()
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # not its own: a library that prints
                if not self._answered.is_set():
                    self.answer = message
                    self._answered.set()
                else:
                    self.last_words = message
        process.wait()
        self.close()
        self._answered.set()
        self._on_end(self)
