"""The Ray actor of a stage: Ray places it and carries control calls; requests never pass through Ray."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import ray

from odin.monitor.attribution.neighbours import Neighbours, find_neighbours
from odin.monitor.machine.cgroups import cpu_quota_cores
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Sender
from odin.stages.channel.opening import Address, Listener, connect, open_ends
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.wire import GATEWAY
from odin.stages.compute.executor import Executor, Values, check_engine, load_engine, make_executor
from odin.stages.compute.weights import StoredTensor, load_arrays
from odin.stages.device import (
    Device,
    DeviceError,
    allowed_core_count,
    check_cores,
    cpu_model,
    pin_process,
    thread_count,
    usable_cores,
)
from odin.stages.gpus import gpu_names
from odin.stages.hand_over import HandOver
from odin.stages.host import ignore_hangup, keep_freed_memory, release_freed_memory, run_at_normal_priority
from odin.stages.lease import Lease, free_indices
from odin.stages.loop import StageLoop
from odin.stages.pacer import Pacer

__all__ = [
    "Addresses",
    "Links",
    "NodeDevices",
    "StageActor",
    "StageInfo",
    "StageProblem",
    "list_devices_here",
    "list_node_devices",
]


class StageInfo(NamedTuple):
    """A stage's node, process and device, known once its device is set up.

    Attributes
    ----------
    device_type
        Text under which profiles are kept, for example ``cpu x1 Intel(R) Xeon(R) Processor``.
    niceness
        What its threads run at; above 0 a program beside it takes more than its share.
    quota_cores
        CPU seconds per second that its control group allows all processes there; None without a quota.
    """

    stage: int
    device: str
    device_type: str
    pid: int
    node_id: str
    host: str
    niceness: int = 0
    quota_cores: float | None = None


class StageProblem(NamedTuple):
    """Why a stage could not be set up: a failure as a value."""

    kind: str
    message: str


class NodeDevices(NamedTuple):
    """Devices of a node: usable and free cores, GPU names (index = device number) and free GPUs.

    Attributes
    ----------
    allowed_cores
        How many of the usable cores may be busy at a time, see :func:`odin.stages.device.allowed_core_count`.
    """

    node_id: str
    host: str
    cpu: str
    cores: tuple[int, ...]
    free_cores: tuple[int, ...]
    gpus: tuple[str, ...]
    free_gpus: tuple[int, ...]
    allowed_cores: int


class Addresses(NamedTuple):
    """Where a stage listens: for those on its machine, and for those on others; None if there are none."""

    here: Address | None
    remote: Address | None

    @classmethod
    def of(cls, addresses: Iterable[Address]) -> Addresses:
        """Sort what there is."""
        found = {address.local: address for address in addresses}
        return cls(found.get(True), found.get(False))


class Links(NamedTuple):
    """What a stage needs for its channels and for handing over.

    Attributes
    ----------
    later
        Later stages that live, with their addresses, and ``GATEWAY``'s.
    slot_nbytes
        Bytes of a slot.
    baseline_s, cost_s, cut_nbytes
        As for :class:`odin.stages.hand_over.HandOver`.
    single_s, batch
        As for it, too.
    windows, stages, epoch
        What holds from the first request on: row ``j`` of the windows is that of ``stages[j]``, one that lives.
    """

    later: tuple[tuple[int, Address], ...]
    slot_nbytes: int
    baseline_s: tuple[tuple[float, ...], ...]
    cost_s: tuple[float, ...]
    cut_nbytes: tuple[int, ...]
    windows: Windows
    stages: tuple[int, ...]
    epoch: int = 0
    single_s: tuple[tuple[float, ...], ...] = ()
    batch: int = 1


_SLOTS = 2
"""For each channel one slot being computed on, one waiting: more would only add waiting."""
_SHARED_SLOTS = 4
"""Most slots that the channels of a stage within a machine share."""
_ADMISSION_S = 60.0
"""How long a stage that was replaced may take to connect."""
_PARENT_LOOK_S = 1.0
"""How often a stage that has no gateway yet looks whether its parent, Ray's raylet, lives."""
_GRACE_S = 3.0
"""How long a stage without its gateway waits to be ended, before it ends by itself."""


def _node_address() -> str:
    """IP address under which other nodes of the cluster reach this one."""
    return str(ray.util.get_node_ip_address())


def list_devices_here() -> NodeDevices:
    """List the devices of the node that this process is on."""
    context = ray.get_runtime_context()
    gpus = gpu_names()
    cores = usable_cores()
    return NodeDevices(
        context.get_node_id(),
        _node_address(),
        cpu_model(),
        cores,
        tuple(free_indices("cpu", cores)),
        gpus,
        tuple(free_indices("gpu", range(len(gpus)))),
        allowed_core_count(),
    )


@ray.remote(max_calls=1)  # asking for GPUs imports PyTorch, and Ray might make a stage of that process otherwise
def list_node_devices() -> NodeDevices:
    """List the devices of the node that this task runs on."""
    return list_devices_here()


class TimedPasses(NamedTuple):
    """Passes through the whole chain: seconds per layer of each, and run-queue delay of all together."""

    layer_s: list[tuple[float, ...]]
    run_delay_s: float


class StageActor:
    """One stage in a process of its own.

    Life: ``pack`` on one stage of each node -> ``open`` (device, weights) -> ``profile`` if asked -> ``listen`` ->
    ``start`` -> ``prepare`` for every later epoch -> ``stop``. If another stage is replaced meanwhile: ``drop``, then
    ``admit`` (an earlier one) or ``connect_to`` (a later one).

    Parameters
    ----------
    index
        The stage's index in the pipeline.
    device
        Text form of the device, without its node.
    label
        The pipeline's name, for those who are refused the device.
    share
        Accept to share the device.
    precision
        ``float32``, or ``float16`` / ``bfloat16`` for the inside of GPU stages.
    engine
        What will probably run the layers, which is imported at once; empty if that is not known yet.
    largest_share
        Largest part of the device's time that the stage uses.
    """

    def __init__(
        self,
        index: int,
        device: str,
        label: str,
        *,
        share: bool,
        precision: str,
        engine: str = "torch",
        largest_share: float = 1.0,
    ) -> None:
        ignore_hangup()
        self._index = index
        self._pacer = Pacer(largest_share)
        self._engine = engine
        self._device = Device.parse(device)
        self._threads = thread_count(self._device)
        self._label = label
        self._share = share
        self._precision = precision
        self._lease: Lease | None = None
        self._executor: Executor | None = None
        self._layer_count = 0
        self._status: Any = None
        self._listeners: list[tuple[Listener, int]] = []
        self._admitting: set[Listener] = set()
        self._readiness = Readiness()
        self._pool: SlotPool | None = None
        self._slot_nbytes = 0
        self._loop: StageLoop | None = None
        self._thread: threading.Thread | None = None
        threading.Thread(target=self._end_with_parent, name="odin-parent-watch", daemon=True).start()
        with contextlib.suppress(ImportError):  # which open reports
            if engine:
                load_engine(engine)  # now: it may take seconds, and the model is not there yet

    def _end_with_parent(self) -> None:
        """Until a gateway is connected, whose end is noticed: end this process if the raylet that started it has died.

        Ray would do that itself, but is told not to, since a stage that serves goes on.
        """
        parent = os.getppid()
        while self._thread is None:
            if os.getppid() != parent:
                end_process()
            time.sleep(_PARENT_LOOK_S)

    def pid(self) -> int:
        """The number of its process."""
        return os.getpid()

    def threads(self) -> int:
        """Compute threads of this stage."""
        return self._threads

    def pack(self, program: Any, stored: Mapping[str, StoredTensor], batch: int) -> Mapping[str, StoredTensor]:
        """Return PyTorch's weights in the form that this node's processors compute with, for all its CPU stages."""
        from odin.stages.compute import torch_stage

        try:
            return torch_stage.pack(program, stored, batch, threads=self._threads)
        finally:
            release_freed_memory()

    def open(self, model: Any, stored: Mapping[str, StoredTensor], batch: int, engine: str) -> StageInfo | StageProblem:
        """Take the device, bind to it, and attach the model to the node's copy of the weights.

        Parameters
        ----------
        model
            The chain's program for PyTorch; for another engine the cut model. Both have ``layers``.
        stored
            Weights, packed ones for PyTorch on a CPU.
        batch
            Leading size of the requests to come.
        engine
            What runs the layers. With another than ``"torch"`` this process imports no PyTorch.
        """
        self._engine = engine
        try:
            check_engine(self._device.kind, self._engine)
            device_type = self._take_device()
            niceness = run_at_normal_priority()
            layers, weights = self._attach(model, stored, batch)
            self._executor = make_executor(
                self._device.kind,
                layers,
                weights,
                engine=self._engine,
                index=self._device.indices[0],
                threads=self._threads,
                precision=self._precision,
            )
            self._layer_count = len(model.layers)
        except (DeviceError, ValueError, ImportError) as error:
            return StageProblem(type(error).__name__, str(error))
        return self._info(device_type, niceness)

    def _info(self, device_type: str, niceness: int) -> StageInfo:
        context = ray.get_runtime_context()
        return StageInfo(
            self._index,
            str(self._device),
            device_type,
            os.getpid(),
            context.get_node_id(),
            _node_address(),
            niceness,
            cpu_quota_cores(),
        )

    def _attach(self, model: Any, stored: Mapping[str, StoredTensor], batch: int) -> tuple[Any, Any]:
        """Return the model and its weights as the engine's executor wants them."""
        if self._engine != "torch":
            return model, load_arrays(stored)
        from odin.stages.compute import torch_stage

        kind, threads = self._device.kind, self._threads
        return model.layers, torch_stage.load_state(model, stored, batch, kind=kind, threads=threads)

    def _use_threads(self) -> None:
        """Have this thread compute with the stage's number of threads; other engines are told with their executor."""
        if self._engine == "torch":
            from odin.stages.compute import torch_stage

            torch_stage.use_threads(self._threads)

    def _take_device(self) -> str:
        kind, indices = self._device.kind, self._device.indices
        if kind == "gpu":
            names = gpu_names()
            if indices[0] >= len(names):
                there = ", ".join(f"gpu:{index} {name}" for index, name in enumerate(names)) or "no CUDA device"
                raise DeviceError(f"there is no {self._device} on this node; it has {there}")
            self._lease = Lease(self._device, label=self._label, share=self._share)
            from odin.stages.compute import torch_stage

            torch_stage.take_gpu(indices[0], self._precision)
            return f"gpu {names[indices[0]]} {self._precision}"
        check_cores(indices)
        self._lease = Lease(self._device, label=self._label, share=self._share)
        pin_process(indices)
        self._use_threads()
        keep_freed_memory()
        return f"cpu x{self._threads} {cpu_model()}"

    def profile(self, inputs: Sequence[StoredTensor], warmup: int, repeats: int) -> TimedPasses:
        """Run the whole chain ``warmup + repeats`` times; what the repeats took.

        Raises
        ------
        DeviceError
            If the chain does not fit the device's memory.
        """
        executor = self._executor
        assert executor is not None, "open comes first"
        self._use_threads()
        executor.prepare(0, self._layer_count)
        values = self._values(inputs)
        passes: list[tuple[float, ...]] = []
        run_delay_s = 0.0
        with executor.calibrating():
            for number in range(-warmup, repeats):
                result = executor.finish(executor.launch(0, self._layer_count, values))
                if number >= 0:
                    passes.append(result.layer_s)
                    run_delay_s += result.run_delay_s
        executor.retain(())
        return TimedPasses(passes, run_delay_s)

    def _values(self, inputs: Sequence[StoredTensor]) -> Values:
        named = {str(number): stored for number, stored in enumerate(inputs)}
        if self._engine != "torch":
            return tuple(load_arrays(named).values())
        from odin.stages.compute.torch_weights import load

        return tuple(load(named).values())

    def listen(self, senders_here: int, senders_remote: int, host: str) -> Addresses:
        """Listen for so many senders on this machine, and for so many on others, these on ``host`` by TCP.

        They are accepted by :meth:`start`. Listening again forgets what was listened for before.
        """
        for listener, _ in self._listeners:
            listener.close()
        self._listeners = self._listen(senders_here, senders_remote, host)
        return Addresses.of(listener.address for listener, _ in self._listeners)

    def _listen(self, senders_here: int, senders_remote: int, host: str) -> list[tuple[Listener, int]]:
        return [
            (Listener(where, self._readiness), count)
            for where, count in (("", senders_here), (host, senders_remote))
            if count
        ]

    def admit(self, senders_here: int, senders_remote: int, host: str) -> Addresses:
        """As :meth:`listen`, while requests flow: who comes within a minute is received from at once."""
        loop = self._loop
        assert loop is not None, "start comes first"
        listeners = self._listen(senders_here, senders_remote, host)

        def accept(listener: Listener, count: int) -> None:
            with contextlib.suppress(ChannelClosedError):  # not all have come
                listener.accept_all(count, _ADMISSION_S, each=loop.add_receiver)
            self._admitting.discard(listener)

        for listener, count in listeners:
            self._admitting.add(listener)
            threading.Thread(target=accept, args=(listener, count), name="odin-admit", daemon=True).start()
        return Addresses.of(listener.address for listener, _ in listeners)

    def connect_to(self, stage: int, address: Address) -> None:
        """Send to a later stage that has taken another one's place, or has come.

        Raises
        ------
        ChannelClosedError
            If it does not listen.
        """
        assert self._loop is not None, "start comes first"
        self._loop.add_sender(stage, self._connect(stage, address))

    def drop(self, stage: int) -> None:
        """Forget the channels from and to a stage that is to be replaced, with all that is in them."""
        assert self._loop is not None, "start comes first"
        self._loop.drop(stage)

    def _connect(self, target: int, address: Address) -> Sender:
        if address.local and self._pool is None:
            self._pool = SlotPool(_SLOTS, self._slot_nbytes)
        return connect(
            address,
            slots=_SLOTS,
            slot_nbytes=self._slot_nbytes,
            sender=self._index,
            receiver=target,
            pool=self._pool if address.local else None,
        )

    def start(self, links: Links) -> None:
        """Connect to later stages and the gateway, accept earlier ones, and serve in a thread of this process."""
        assert self._listeners, "listen comes first"
        assert self._executor is not None, "open comes first"
        here = sum(address.local for _, address in links.later)
        self._slot_nbytes = links.slot_nbytes
        if here:
            self._pool = SlotPool(min(_SLOTS + here - 1, _SHARED_SLOTS), links.slot_nbytes)
        listeners, self._listeners = self._listeners, []
        senders, receivers = open_ends(listeners, [partial(self._connect, *target) for target in links.later])
        by_stage = {stage: sender for (stage, _), sender in zip(links.later, senders, strict=True)}
        self._loop = StageLoop(
            self._index,
            self._executor,
            Inbox(receivers),
            by_stage,
            readiness=self._readiness,
            hand_over=HandOver(
                self._index,
                baseline_s=links.baseline_s,
                cost_s=links.cost_s,
                cut_nbytes=links.cut_nbytes,
                readiness=self._readiness,
                later={stage: sender for stage, sender in by_stage.items() if stage != GATEWAY},
                single_s=links.single_s,
                batch=links.batch,
                pacer=self._pacer,
                company=None if self._lease is None else self._lease.company,
            ),
            epoch=links.epoch,
            windows=links.windows,
            stages=links.stages,
            pacer=self._pacer,
            threads=self._threads if self._device.kind == "cpu" else 1,
        )
        self._thread = threading.Thread(target=self._serve, name=f"odin-stage-{self._index}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        assert self._loop is not None
        self._use_threads()
        try:
            self._loop.run()
        finally:
            if self._pool is not None:
                self._pool.close()
            self._end_without_gateway(self._loop.gateway_gone)

    def _end_without_gateway(self, gateway_gone: bool) -> None:
        """The loop has ended: so does this process if that is because the gateway is gone."""
        self._readiness.close_descriptor()
        if gateway_gone:
            # Whoever has closed the pipeline has Ray end this process at once. If its own process has died instead, or
            # Ray's have, nobody else gives back the device.
            time.sleep(_GRACE_S)
            end_process()

    def prepare(self, epoch: int, windows: Windows, stages: Sequence[int]) -> None:
        """Make ready for requests of ``epoch``, as :meth:`odin.stages.loop.StageLoop.prepare`."""
        assert self._loop is not None, "start comes first"
        self._loop.prepare(epoch, windows, stages)

    def look(self, own_pids: Sequence[int]) -> Neighbours:
        """Find other programs on the device, on this machine; takes part of a second."""
        indices: Sequence[int | str] = self._device.indices
        if self._device.kind == "gpu":
            from odin.stages.compute import torch_stage

            indices = [torch_stage.gpu_uuid(int(index)) for index in indices]
        return find_neighbours(self._device.kind, indices, stage_pid=os.getpid(), own_pids=own_pids)

    def set_status(self, status: Any) -> None:
        """Keep the address of the pipeline's status server, for other members of the cluster."""
        self._status = status

    def status(self) -> Any:
        """Where the pipeline answers; ``None`` if it does not."""
        return self._status

    def ping(self) -> bool:
        """Whether the stage still serves."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the loop, dropping requests in flight, and release the device."""
        for listener in (*(listener for listener, _ in self._listeners), *self._admitting):
            listener.close()
        if self._loop is not None:
            self._loop.stop()
        if self._thread is not None:
            self._thread.join(5.0)
        if self._lease is not None:
            self._lease.release()


def end_process() -> None:
    """End this process as it is; a lease goes with it."""
    os._exit(1)
