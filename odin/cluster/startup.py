"""Starts Ray and the stages' processes, which import torch, while the chain is built.

::

    this thread      | cut the model into a chain ............. | weights to the stages | times | channels
    a thread of its  | start Ray ... | stages' processes start ...
    own
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from odin.cluster.deployment import Deployment
from odin.cluster.placement import place
from odin.cluster.ray_runtime import RayRuntime
from odin.process.forks import check_ray_is_ours
from odin.process.phases import phase
from odin.stages.device import Device

__all__ = ["Startup"]

_EARLY_STAGES = 8
"""Stages of an automatic placement that start before the number of layers is known: few chains have fewer layers."""


class Startup:
    """Connects to Ray and starts the stages' processes, in a thread of its own, from :meth:`start` on.

    It owns both until its end: :meth:`close` closes them, also what is only being started.

    Parameters
    ----------
    devices
        One per stage; ``None`` takes those that are free.
    address, weight_nbytes, on_trouble
        As for :class:`odin.cluster.ray_runtime.RayRuntime`.
    label, share, precision, engine, largest_share
        As for :class:`odin.cluster.deployment.Deployment`.

    Raises
    ------
    ForkedProcessError
        If this process was forked from one that is connected to Ray.
    """

    def __init__(
        self,
        devices: Sequence[Device] | None,
        *,
        address: str | None,
        weight_nbytes: int,
        on_trouble: Callable[[str], None],
        label: str,
        share: bool,
        precision: str,
        engine: str,
        largest_share: float = 1.0,
    ) -> None:
        check_ray_is_ours()
        self._devices = devices
        self._address = address
        self._weight_nbytes = weight_nbytes
        self._on_trouble = on_trouble
        self._label, self._share, self._precision, self._engine = label, share, precision, engine
        self._largest_share = largest_share
        self._runtime: RayRuntime | None = None
        self._placed: list[tuple[Device, str]] = []
        self._deployment: Deployment | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        # In place of join(): once a signal has interrupted that, Python 3.11 takes the thread for ended.
        self._over = threading.Event()
        # The program's end waits for it: it may have to close what it has started when nobody else does.
        self._thread = threading.Thread(target=self._run, name="odin-startup", daemon=False)

    def start(self) -> None:
        """Begin. The caller must already be able to close this: a signal may interrupt at any moment."""
        self._thread.start()

    def join(self) -> tuple[RayRuntime, list[tuple[Device, str]], Deployment]:
        """Wait for the connection, the place of each stage, and the stages, not all of which may be there yet.

        Raises
        ------
        DeviceError, ConnectionError, TimeoutError
            As connecting, placing and starting do.
        """
        self._over.wait()
        if self._error is not None:
            raise self._error
        assert self._runtime is not None
        assert self._deployment is not None
        return self._runtime, self._placed, self._deployment

    def close(self) -> None:
        """End the stages and disconnect, waiting for what is being started. Idempotent."""
        self._given_up.set()
        if self._thread.ident is not None:
            self._over.wait()  # if this is interrupted the thread goes on, and closes what it started
        self._end()

    def _run(self) -> None:
        try:
            with phase("Ray started" if self._address is None else "connected to Ray"):
                self._runtime = RayRuntime(
                    address=self._address, weight_nbytes=self._weight_nbytes, on_trouble=self._on_trouble
                )
            if self._given_up.is_set():
                return
            self._placed = place(self._devices or "auto", share=self._share, embedded=self._runtime.embedded)
            self._deployment = Deployment(
                self._placed[: len(self._devices or range(_EARLY_STAGES))],
                label=self._label,
                share=self._share,
                precision=self._precision,
                engine=self._engine,
                largest_share=self._largest_share,
            )
        except BaseException as error:
            self._error = error
        finally:
            try:
                if self._given_up.is_set():
                    self._end()
            finally:
                self._over.set()

    def _end(self) -> None:
        try:
            if self._deployment is not None:
                self._deployment.close()
        finally:
            if self._runtime is not None:
                self._runtime.close()
