"""Starts loads and ends them: on request, on any exit of this process, and even when it is killed."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from odin.monitor.events import LoadChanged
from odin.stages.device import Device, DeviceError, check_cores
from odin_lab.inject.handle import Handle
from odin_lab.inject.load import Load, LoadError
from odin_lab.inject.sizes import buffer_nbytes

__all__ = ["Handle", "Injector", "check_local_device"]

_HERE = Path(__file__).parent


def check_local_device(device: Device) -> None:
    """Raise :class:`DeviceError` unless a load can be started on the device here; GPUs are looked for only later."""
    if device.node:
        local = device._replace(node="")
        raise DeviceError(f"{device} is on another node, and loads start on this machine: run it there, on {local}")
    if device.kind == "cpu":
        check_cores(device.indices)


class Injector:
    """Starts loads, as processes of their own; a context manager that ends them all.

    The loads end with :meth:`close`, when the interpreter exits, and when this process is killed.

    Parameters
    ----------
    on_event
        Called with a record whenever a load begins, changes or ends, in the thread that caused it, or in one of its
        own if a load ends by itself.
    on_end
        Called with its handle when a load ends by itself, after that record.
    clock
        Seconds of the records; must be ``time.perf_counter`` for them to fit a pipeline's event log.

    Examples
    --------
    >>> with Injector() as injector:  # doctest: +SKIP
    ...     handle = injector.start(Load.parse("cpu@cpu:1*0.5"))
    ...     handle.set_intensity(1.0)
    """

    def __init__(
        self,
        *,
        on_event: Callable[[LoadChanged], None] = lambda event: None,
        on_end: Callable[[Handle], None] = lambda handle: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._clock = clock
        self._handles: list[Handle] = []
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        atexit.register(self.close)

    def start(self, load: Load, *, name: str = "", idle: bool = False) -> Handle:
        """Start a load; returns when it works.

        Parameters
        ----------
        load
            What, where, how hard.
        name
            What records call it; its kind, or its program's name, if empty.
        idle
            Only start its processes, which wait for :meth:`Handle.set_intensity`: starting them is a small load in
            itself, and takes a moment. Not for programs.

        Raises
        ------
        DeviceError
            If its device does not exist, or is on another node.
        LoadError
            If there is no such program, or too little memory, or a program is to be idle.
        LoadFailedError
            If a process of it did not start.
        """
        check_local_device(load.on)
        if idle and load.kind == "program":
            raise LoadError(f"a program cannot be started idle: start {load} when it is to begin")
        commands, environment = _commands(load)
        handle = Handle(load, name or load.title, emit=self._on_event, on_end=self._on_end, clock=self._clock)
        with self._lock:
            if self._closed:
                raise LoadError("the injector is closed; make a new one")
            self._handles = [old for old in self._handles if not old.wait(0.0)] + [handle]
        try:
            handle.launch(commands, environment, idle=idle)
        except BaseException:
            handle.stop()
            raise
        return handle

    @property
    def handles(self) -> tuple[Handle, ...]:
        """Loads that have not ended."""
        with self._lock:
            return tuple(handle for handle in self._handles if handle.running)

    def close(self) -> None:
        """End all loads; returns when their processes are gone."""
        if os.getpid() != self._process:
            return  # a fork of this process: the loads are not its own
        with self._lock:
            self._closed = True
            handles, self._handles = self._handles, []
        for handle in handles:  # all at once, since some programs take a while
            handle.begin_stop()
        for handle in handles:
            handle.stop()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _commands(load: Load) -> tuple[list[list[str]], dict[str, str]]:
    """Command lines of a load's processes, and their environment."""
    environment = dict(os.environ)
    # -P: neither this folder nor the present one is searched for modules. -S: nor are the installed packages, so that
    # it starts at once; a GPU's load needs them.
    python = [sys.executable, "-P", *([] if load.kind.startswith("gpu") else ["-S"])]
    text, parent = str(load), str(os.getpid())
    if load.kind != "program":
        nbytes = buffer_nbytes(load)
        script = [*python, str(_HERE / "worker.py"), text, load.kind]
        return [
            [*script, str(load.core_of(i)), repr(load.period_s), repr(i / load.threads), str(nbytes), parent]
            for i in range(load.threads)
        ], environment
    words = load.command
    if shutil.which(words[0]) is None:
        raise LoadError(
            f"there is no program {words[0]!r} that can be run: install it, or give its path (a shell's own words take "
            "sh -c '...')"
        )
    if load.on.kind == "gpu":
        cores, index = "-", load.on.indices[0]
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
    else:
        cores = ",".join(map(str, load.on.indices))
    return [[*python, str(_HERE / "supervisor.py"), text, parent, cores, *words]], environment
