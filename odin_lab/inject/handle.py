"""A load that was started: how it is changed and ended, and what becomes of it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence

from odin.monitor.events import LoadChanged
from odin_lab.inject.keeper import Keeper
from odin_lab.inject.load import Load, LoadError, LoadFailedError

__all__ = ["Handle"]

_START_S, _GPU_START_S = 60.0, 180.0
_END_S = 10.0


class Handle:
    """A load that was started; made by :meth:`Injector.start`.

    Attributes
    ----------
    load
        What it is; its intensity there is that of its start, or at most.
    name
        Its name in records.
    pids
        Its processes; of a program the first one.
    description
        What its processes do, in words; of a program nothing.
    """

    def __init__(
        self,
        load: Load,
        name: str,
        *,
        emit: Callable[[LoadChanged], None],
        on_end: Callable[[Handle], None],
        clock: Callable[[], float],
    ) -> None:
        self.load = load
        self.name = name
        self.pids: tuple[int, ...] = ()
        self.description = ""
        self._emit = emit
        self._on_end = on_end
        self._clock = clock
        self._keepers: tuple[Keeper, ...] = ()
        self._lock = threading.RLock()
        self._intensity = 0.0
        self._state = "starting"
        self._ended = ""
        self._over = threading.Event()

    def __repr__(self) -> str:
        return f"Handle({str(self.load)!r}, {self._state})"

    @property
    def intensity(self) -> float:
        """Its intensity now; 0 once it has ended."""
        return self._intensity

    @property
    def running(self) -> bool:
        """Whether its processes run, be it at intensity 0."""
        return self._state == "running"

    @property
    def ended(self) -> str:
        """How it ended, if it did so by itself; empty otherwise."""
        return self._ended

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not well: killed, or with an exit status other than 0."""
        return self._ended not in ("", "done")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended or was stopped; False after ``timeout_s``."""
        return self._over.wait(timeout_s)

    def set_intensity(self, intensity: float) -> None:
        """Change how hard it works; takes effect within a millisecond. Nothing happens if it has ended.

        Raises
        ------
        LoadError
            If the intensity is not within 0 to 1, or it is a program.
        """
        self.load.at(intensity)
        if self.load.kind == "program":
            raise LoadError(f"the intensity of a program cannot be set: stop {self.load} and start another")
        with self._lock:
            if self._state == "running" and intensity != self._intensity:
                for keeper in self._keepers:
                    keeper.send(repr(float(intensity)))
                self._change(intensity)

    def stop(self) -> None:
        """End it; returns when its processes are gone. Does nothing if they are."""
        self.begin_stop()
        gone = [keeper.join(_END_S) for keeper in self._keepers]
        with self._lock:
            if self._state == "stopped" and self._intensity > 0:
                self._change(0.0)
        self._over.set()
        if not all(gone):
            raise LoadFailedError(f"processes of {self.load} could not be ended: {self.pids}")

    def begin_stop(self) -> None:
        """Tell its processes to end, and return at once; :meth:`stop` waits for them."""
        with self._lock:
            if self._state != "ended":
                self._state = "stopped"
            for keeper in self._keepers:
                keeper.close()

    def launch(self, commands: Sequence[Sequence[str]], environment: dict[str, str], *, idle: bool) -> None:
        """Start its processes; for the injector."""
        with self._lock:  # a process that ends at once waits with its report until all is set
            self._keepers = tuple(
                Keeper(command, environment=environment, on_end=self._on_keeper_end) for command in commands
            )
        deadline_s = time.monotonic() + (_GPU_START_S if self.load.kind.startswith("gpu") else _START_S)
        for keeper in self._keepers:
            if problem := keeper.wait_ready(max(0.0, deadline_s - time.monotonic())):
                raise LoadFailedError(f"{self.load}: {problem}")
        with self._lock:
            first = self._keepers[0].answer["ready"]
            if self.load.kind == "program":
                self.pids = (int(first),)
            else:
                self.pids = tuple(keeper.pid for keeper in self._keepers)
                self.description = str(first)
            if self._state != "starting":
                return  # stopped meanwhile
            self._state = "running"
            if self.load.kind == "program":
                self._change(1.0)
            elif not idle:
                self.set_intensity(self.load.intensity)
            ended = [keeper for keeper in self._keepers if keeper.status is not None]
        for keeper in ended:  # between its answer and now
            self._on_keeper_end(keeper)

    def _change(self, intensity: float) -> None:
        self._intensity = float(intensity)
        pid = self.pids[0] if self.pids else 0
        self._emit(
            LoadChanged(self._clock(), self.name, str(self.load), str(self.load.on), self._intensity, pid),
        )

    def _on_keeper_end(self, ended: Keeper) -> None:
        with self._lock:
            if self._state != "running":
                return
            self._state = "ended"
            self._ended = _how(self.load, ended)
            for keeper in self._keepers:  # half a load would not be what the records say
                keeper.close()
            if self._intensity > 0:
                self._change(0.0)
        self._on_end(self)
        self._over.set()


def _how(load: Load, keeper: Keeper) -> str:
    """How a process ended by itself: ``done``, or what was wrong."""
    if load.kind != "program" or "ended" not in keeper.last_words:
        return f"process {keeper.pid} {_status(keeper.status or 0)}"
    status = int(keeper.last_words["ended"])
    if status == 0:
        return "done"
    lines = str(keeper.last_words.get("output", "")).strip().splitlines()
    return f"{load.title} {_status(status)}" + (f": {lines[-1].strip()}" if lines else "")


def _status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
