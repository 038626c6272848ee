"""The Ray actor of an executor: Ray places it and carries control calls; actions and tensors never pass through Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from odin.fleet.executor import ExecutorLoop, Models
from odin.fleet.packed import PackedFile, PackedFolder
from odin.stages.actor import StageActor, StageInfo, StageProblem
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.opening import Address, connect, open_ends
from odin.stages.channel.wire import GATEWAY
from odin.stages.device import DeviceError
from odin.stages.host import run_at_normal_priority

__all__ = ["ExecutorActor"]

_SLOTS = 4
"""Answers that may wait to be read."""


class ExecutorActor(StageActor):
    """An executor in a process of its own.

    Life: ``open_folder`` (device, the models' folder) -> ``listen`` -> ``serve`` -> ``stop``; its parameters are those
    of a stage, and so are its device, its lease and its end.
    """

    _models: Models | None = None
    _executor_loop: ExecutorLoop | None = None

    def open_folder(self, folder: str, files: Sequence[PackedFile], warm: Sequence[int]) -> StageInfo | StageProblem:
        """Take the device, and run one model of each architecture once.

        Parameters
        ----------
        folder
            Where the packed models lie.
        files
            All of them, by number.
        warm
            Numbers of one model of each architecture.
        """
        try:
            device_type = self._take_device()
            niceness = run_at_normal_priority()
            self._models = Models(PackedFolder(folder), files)
            self._models.warm(warm)
        except (DeviceError, ValueError, OSError, ImportError) as error:
            return StageProblem(type(error).__name__, str(error))
        return self._info(device_type, niceness)

    def know(self, files: Sequence[PackedFile]) -> None:
        """There are more models: all, by number."""
        assert self._models is not None, "open_folder comes first"
        self._models.files = list(files)

    def serve(self, answers: Address, slot_nbytes: int) -> None:
        """Connect to who listens for answers, accept who sends actions, and serve in a thread of this process."""
        assert self._models is not None, "open_folder comes first"
        listeners, self._listeners = self._listeners, []
        connecting = partial(
            connect, answers, slots=_SLOTS, slot_nbytes=slot_nbytes, sender=self._index, receiver=GATEWAY
        )
        (sender,), receivers = open_ends(listeners, [connecting])
        self._executor_loop = ExecutorLoop(self._index, self._models, Inbox(receivers), sender)
        self._thread = threading.Thread(target=self._execute, name=f"odin-executor-{self._index}", daemon=True)
        self._thread.start()

    def _execute(self) -> None:
        loop = self._executor_loop
        assert loop is not None
        self._use_threads()
        try:
            loop.run()
        finally:
            self._end_without_gateway(loop.gateway_gone)

    def stop(self) -> None:
        """End the loop, and release the device."""
        if self._executor_loop is not None:
            self._executor_loop.stop()
        super().stop()
