"""The executors of a fleet as Ray actors: placed, opened, connected, replaced and ended."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray

from odin.cluster import ray_calls
from odin.cluster.actors import create_actor, kill_actor, kill_process, wait_until_ended
from odin.cluster.ray_calls import calling
from odin.fleet.executor_actor import ExecutorActor
from odin.fleet.packed import PackedFile
from odin.stages.actor import Addresses, StageInfo, StageProblem
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import Receiver, Sender
from odin.stages.channel.opening import Listener, connect, open_ends
from odin.stages.channel.pool import SlotPool
from odin.stages.device import Device, DeviceError

__all__ = ["ExecutorProcesses"]

_START_S, _CONNECT_S = 120.0, 30.0


class ExecutorProcesses:
    """Actors of all executors of a fleet, on this node.

    Parameters
    ----------
    placed
        Device and node id of each.
    folder
        Of the packed models.
    label
        Shown to who is refused a device.
    share
        Accept devices that others use.

    Attributes
    ----------
    infos
        What each executor is, once :meth:`open` was called.
    """

    def __init__(self, placed: Sequence[tuple[Device, str]], *, folder: str, label: str, share: bool) -> None:
        with calling():
            here = str(ray.get_runtime_context().get_node_id())
        for device, node in placed:
            if node != here or device.kind != "cpu":
                raise DeviceError(
                    f"a fleet's executors are CPU cores of this machine, which {node[:8]}/{device} is not: its models "
                    "share this machine's memory"
                )
        self._placed, self._folder, self._label, self._share = list(placed), folder, label, share
        self._actors: list[Any] = []
        self._files: list[PackedFile] = []
        self._warm: list[int] = []
        self._pids: list[int] = []
        self._answer_nbytes = 0
        self.infos: list[StageInfo] = []
        try:
            for index in range(len(placed)):
                self._actors.append(self._create(index))
        except BaseException:
            self.close()
            raise

    def _create(self, index: int) -> Any:
        device, node = self._placed[index]
        return create_actor(index, device, node, self._label, share=self._share, kind=ExecutorActor)

    def open(self, files: Sequence[PackedFile], warm: Sequence[int]) -> None:
        """Give every executor its device and the models' folder; see :meth:`ExecutorActor.open_folder`.

        Raises
        ------
        DeviceError
            If a device does not exist or is taken.
        ValueError
            If a model cannot be run here.
        TimeoutError
            If Ray does not start an executor in time.
        """
        self._files, self._warm = list(files), list(warm)
        with calling():
            started = [actor.pid.remote() for actor in self._actors]
        _, late = ray_calls.wait(started, timeout_s=_START_S)
        if late:
            raise TimeoutError(
                f"Ray did not start the executors within {_START_S:.0f} s: stop other work, or pass share_devices=True "
                "(--share-devices)"
            )
        # Before any has its device: however opening ends, closing waits until they have given it back.
        self._pids = ray_calls.get(started, timeout_s=_START_S)
        with calling():
            calls = [actor.open_folder.remote(self._folder, self._files, self._warm) for actor in self._actors]
        self.infos = [_checked(answer) for answer in ray_calls.get(calls, timeout_s=_START_S)]

    def know(self, files: Sequence[PackedFile], executors: Sequence[int]) -> None:
        """Tell some executors of more models; others, and those that do not hear it, when they are replaced."""
        self._files = list(files)
        with calling():
            calls = [self._actors[index].know.remote(self._files) for index in executors]
        ray_calls.wait(calls, timeout_s=_CONNECT_S)

    def connect(self, pool: SlotPool, *, answer_nbytes: int) -> tuple[dict[int, Sender], Inbox]:
        """Open all channels, and have the executors serve.

        Parameters
        ----------
        pool
            Slots of inputs.
        answer_nbytes
            Bytes of a slot for outputs.
        """
        self._answer_nbytes = answer_nbytes
        senders, receivers = {}, []
        with contextlib.ExitStack() as undo:
            for index in range(len(self._actors)):
                senders[index], receiver = self.join(index, pool)
                undo.callback(senders[index].close, graceful=False)
                receivers.append(receiver)
                undo.callback(receiver.close)
            undo.pop_all()
        return senders, Inbox(receivers)

    def join(self, index: int, pool: SlotPool) -> tuple[Sender, Receiver]:
        """Open the channels to and from one executor, which serves then.

        Raises
        ------
        ray.exceptions.RayError, ChannelClosedError
            If it dies meanwhile.
        """
        actor = self._actors[index]
        with calling():
            call = actor.listen.remote(1, 0, "")
        addresses: Addresses = ray_calls.get(call, timeout_s=_CONNECT_S)
        assert addresses.here is not None
        answers = Listener()
        enter = partial(
            connect,
            addresses.here,
            slots=pool.memory.slots,
            slot_nbytes=pool.memory.slot_nbytes,
            credits=False,
            receiver=index,
            pool=pool,
            timeout_s=_CONNECT_S,
        )
        with calling():
            serving = actor.serve.remote(answers.address, self._answer_nbytes)
        with ThreadPoolExecutor(1) as helper:
            opening = helper.submit(open_ends, [(answers, 1)], [enter])
            try:
                ray_calls.get(serving, timeout_s=_CONNECT_S)
            except BaseException:
                answers.close()
                with contextlib.suppress(ConnectionError):
                    senders, receivers = opening.result()
                    senders[0].close(graceful=False)
                    receivers[0].close()
                raise
            (sender,), (receiver,) = opening.result()
        return sender, receiver

    def end(self, index: int) -> None:
        """End an executor's process for good, also one that is stopped."""
        kill_actor(self._actors[index])
        if self._pids:
            kill_process(self._pids[index])

    def start_again(self, index: int) -> None:
        """Start another process on the same device; takes seconds.

        Raises
        ------
        DeviceError
            If the device is taken.
        ray.exceptions.RayError
            If Ray cannot start it.
        StageLostError
            If Ray is gone.
        """
        self.end(index)
        self._actors[index] = self._create(index)
        with calling():
            call = self._actors[index].pid.remote()
        self._pids[index] = ray_calls.get(call, timeout_s=_START_S)
        with calling():
            call = self._actors[index].open_folder.remote(self._folder, self._files, self._warm)
        self.infos[index] = _checked(ray_calls.get(call, timeout_s=_START_S))

    def close(self) -> None:
        """End all processes, and wait until they have given back their devices. Idempotent."""
        actors, self._actors = self._actors, []
        for actor in actors:
            kill_actor(actor)
        if actors:
            wait_until_ended(self._pids)


def _checked(answer: StageInfo | StageProblem) -> StageInfo:
    if isinstance(answer, StageProblem):
        if answer.kind == DeviceError.__name__:
            raise DeviceError(answer.message)
        raise ValueError(answer.message)
    return answer
