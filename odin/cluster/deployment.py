"""The stages of one pipeline as Ray actors: placed, connected, prepared, and ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from odin.cluster import ray_calls
from odin.cluster.actors import create_actor, kill_actor, kill_process, wait_until_ended
from odin.cluster.ray_calls import calling
from odin.errors import OdinError, PipelineClosedError, StageLostError, first_line
from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.machine.procfs import is_runnable
from odin.partitioner.chain import Chain
from odin.partitioner.engines.form import EngineForm, Form, TorchForm
from odin.partitioner.engines.names import TORCH
from odin.partitioner.relay import Windows
from odin.stages.actor import Addresses, Links, StageInfo, StageProblem, TimedPasses
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import InForce, Inlet
from odin.stages.channel.link import ChannelClosedError, Receiver, Sender
from odin.stages.channel.opening import Address, Listener, connect, open_ends
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.wire import GATEWAY
from odin.stages.compute import opaque
from odin.stages.compute.opaque import compute_threads
from odin.stages.compute.torch_weights import store
from odin.stages.compute.weights import store_arrays
from odin.stages.device import Device, DeviceError

__all__ = ["Deployment"]

_START_TIMEOUT_S = 120.0
_LOOK_AGAIN_S = 0.1
_PING_TIMEOUT_S = 5.0
_LOOK_TIMEOUT_S = 10.0
_ANSWER_S, _PATIENCE = 2.0, 4.0
"""A stage answers a ping within so many seconds, or it hangs; times so many if it wants its core."""
_CONNECT_S = 10.0
"""Longest wait for a new stage on another machine to accept the gateway's channel."""


class Deployment:
    """Actors of all stages: their processes start with this, and have no model until :meth:`open`.

    Parameters
    ----------
    placed
        Device and node id of each stage.
    label
        The pipeline's name.
    share, precision, engine, largest_share
        As for :class:`odin.stages.actor.StageActor`.
    """

    def __init__(
        self,
        placed: Sequence[tuple[Device, str]],
        *,
        label: str,
        share: bool,
        precision: str,
        engine: str,
        largest_share: float = 1.0,
    ) -> None:
        self._label, self._share, self._precision, self._engine = label, share, precision, engine
        self._largest_share = largest_share
        self._placed: list[tuple[Device, str]] = []
        self._opening: list[tuple[Any, ...]] = []  # for each stage, what it is opened with
        self._example: list[Any] = []
        self._actors: list[Any] = []
        self._listeners: list[Listener] = []
        self._stopping = threading.Event()
        self._unanswered: dict[int, Any] = {}  # pings of stages that did not answer
        self._pids: list[int] = []
        self.node_id = ""
        self.infos: tuple[StageInfo, ...] = ()
        try:
            self._create_actors(placed)
        except BaseException:
            self.close()
            raise

    def _create_actors(self, placed: Sequence[tuple[Device, str]]) -> None:
        """Start the processes of stages that have none, and end those of more stages than there are to be."""
        surplus, self._actors = self._actors[len(placed) :], self._actors[: len(placed)]
        for actor in surplus:
            with calling():
                ray.kill(actor)
        self._placed = list(placed)
        for index in range(len(self._actors), len(placed)):
            self._actors.append(self._create_actor(index))

    def _create_actor(self, index: int) -> Any:
        device, node_id = self._placed[index]
        return create_actor(
            index,
            device,
            node_id,
            self._label,
            share=self._share,
            largest_share=self._largest_share,
            precision=self._precision,
            engine=self._engine if device.kind == "cpu" else TORCH,
        )

    def open(self, placed: Sequence[tuple[Device, str]], form: Form, *, batch: int) -> None:
        """Give every stage its device and the model; what the stages are is in ``infos`` then.

        Parameters
        ----------
        placed
            All stages: those that were started, and more or fewer at the end.
        form
            The chain as its engine runs it. Weights are put into the object store once for each node.
        batch
            Leading size of the requests to come, for which weights are packed.

        Raises
        ------
        DeviceError
            If a device does not exist or is taken.
        TimeoutError
            If Ray does not start an actor in time, for lack of free CPUs or GPUs of the cluster.
        """
        self._create_actors(placed)
        try:
            with calling():
                here = self.node_id = str(ray.get_runtime_context().get_node_id())
                model_ref = ray.put(form.model)
        except (TypeError, AttributeError, RuntimeError, pickle.PickleError) as error:
            if isinstance(error, OdinError):
                raise
            # a hook or a function of the model that holds a lock, a file, a TorchScript program
            raise ValueError(
                f"the model's layers cannot be sent to stages, other processes: {first_line(error)}; "
                "take what cannot be pickled out of the functions and hooks that the model calls"
            ) from error
        if isinstance(form, TorchForm):
            weights = self._put_tensors(form.chain, model_ref, placed, batch=batch, here=here)
        else:
            assert isinstance(form, EngineForm)
            with calling():
                weights = [ray.put(store_arrays(form.weights))] * len(placed)
        # Objects live as long as references to them, and who replaces a stage needs them again.
        self._opening = [(model_ref, weights_ref, batch, form.engine) for weights_ref in weights]
        with calling():
            calls = [actor.pid.remote() for actor in self._actors]
        # Before any has its device: however opening ends, closing waits until they have given it back.
        self._pids = _answers_of_started(calls, [device for device, _ in placed])
        with calling():
            calls = [actor.open.remote(*given) for actor, given in zip(self._actors, self._opening, strict=True)]
        opened: list[StageInfo | StageProblem] = _answers_of_started(calls, [device for device, _ in placed])
        infos = []
        for info in opened:
            if isinstance(info, StageProblem):
                raise DeviceError(info.message)
            infos.append(info)
        self.infos = tuple(infos)
        _warn_of_niceness(infos)

    def _put_tensors(
        self, chain: Chain, model_ref: Any, placed: Sequence[tuple[Device, str]], *, batch: int, here: str
    ) -> list[Any]:
        """Put PyTorch's weights into the object store; returns each stage's reference.

        GPU stages take plain weights, CPU stages packed ones: their form depends on the processor and on the number of
        threads. On another node the first CPU stage packs them.
        """
        packed: dict[tuple[str, int], Any] = {}
        forms = self._forms(placed)
        if opaque.supported():
            on_cpu = [form for form, (device, _) in zip(forms, placed, strict=True) if device.kind == "cpu"]
            for threads in {threads for node, threads in on_cpu if node == here}:
                with compute_threads(threads):
                    stored = store(chain.program.pack(chain.state, batch=batch))
                with calling():
                    packed[here, threads] = ray.put(stored)
        elsewhere = any(
            device.kind == "gpu" or form not in packed for form, (device, _) in zip(forms, placed, strict=True)
        )
        weights: list[Any] = []
        with calling():
            plain_ref = ray.put(store(chain.state)) if elsewhere else None
            for actor, form, (device, _) in zip(self._actors, forms, placed, strict=True):
                if device.kind == "cpu" and form not in packed:
                    packed[form] = actor.pack.remote(model_ref, plain_ref, batch)
                weights.append(packed[form] if device.kind == "cpu" else plain_ref)
        return weights

    def _forms(self, placed: Sequence[tuple[Device, str]]) -> list[tuple[str, int]]:
        """For each stage its node and with how many threads it computes, on which the form of packed weights depends.

        Only those of several cores on this node are asked, whose quota may be another than this process's; on another
        node all have the same, and pack there.
        """
        forms = [(node, device.threads) for device, node in placed]
        asked = [index for index, (node, cores) in enumerate(forms) if node == self.node_id and cores > 1]
        with calling():
            calls = [self._actors[index].threads.remote() for index in asked]
        answers = _answers_of_started(calls, [placed[index][0] for index in asked])
        for index, threads in zip(asked, answers, strict=True):
            forms[index] = (self.node_id, threads)
        return forms

    def profile(self, index: int, inputs: Sequence[torch.Tensor], *, warmup: int, repeats: int) -> TimedPasses:
        """Time the whole chain on stage ``index``'s device, ``repeats`` times."""
        with calling():
            call = self._actors[index].profile.remote(_stored(inputs), warmup, repeats)
        runs: TimedPasses = ray_calls.get(call, timeout_s=float("inf"))
        return runs

    def warm_up(self, inputs: Sequence[torch.Tensor]) -> None:
        """Have every stage run the whole chain once, and those that replace one later.

        What a process loads or compiles when it computes for the first time may take seconds, and it would seem to
        hang.
        """
        self._example = _stored(inputs)
        with calling():
            calls = [self._warm(stage) for stage in range(len(self._actors))]
        for call in calls:
            with contextlib.suppress(DeviceError):  # not all layers fit at once; it may never have to run them
                ray_calls.get(call, timeout_s=float("inf"))

    def _warm(self, stage: int) -> Any:
        return self._actors[stage].profile.remote(self._example, 1, 0)

    def connect(
        self,
        windows: Windows,
        *,
        cut_nbytes: Sequence[int],
        slot_nbytes: Sequence[int],
        baseline_s: Sequence[Sequence[float]],
        cost_s: Sequence[float],
        max_in_flight: int,
        transport: str,
        single_s: Sequence[Sequence[float]] = (),
        batch: int = 1,
    ) -> tuple[Inlet, Inbox]:
        """Open all channels and start the stages' loops under epoch 0.

        Every stage gets a channel to each later one and to the gateway, and one from the gateway. If all are CPUs of
        this node, the queue of new requests comes with it.

        Parameters
        ----------
        windows
            Where boundaries may lie.
        cut_nbytes, slot_nbytes
            Bytes that cross each cut, and of a slot that holds them, the model's input and output among them.
        baseline_s, cost_s, single_s, batch
            As for :class:`odin.stages.hand_over.HandOver`.
        max_in_flight
            Slots of the gateway.
        transport
            ``"auto"`` (shared memory within a node, TCP between), ``"shm"`` or ``"tcp"``.

        Returns
        -------
        (Inlet, Inbox)
            The gateway's ends.
        """
        stages = range(len(self._actors))
        self._transport = transport
        self._links = Links(
            later=(),
            slot_nbytes=max(slot_nbytes),
            baseline_s=tuple(tuple(map(float, row)) for row in baseline_s),
            cost_s=tuple(map(float, cost_s)),
            cut_nbytes=tuple(cut_nbytes),
            windows=windows,
            stages=tuple(stages),
            epoch=0,
            single_s=tuple(tuple(map(float, row)) for row in single_s),
            batch=batch,
        )
        self._output_nbytes = slot_nbytes[-1]
        senders = {stage: [GATEWAY, *range(stage)] for stage in stages} | {GATEWAY: list(stages)}
        with calling():
            own_host = ray.util.get_node_ip_address()
            calls = [
                actor.listen.remote(*self._split(senders[stage], stage), info.host)
                for stage, (actor, info) in enumerate(zip(self._actors, self.infos, strict=True))
            ]
        addresses: dict[int, Addresses] = dict(enumerate(ray_calls.get(calls, timeout_s=_START_TIMEOUT_S)))
        listeners = self._listen(senders[GATEWAY], own_host)
        addresses[GATEWAY] = Addresses.of(listener.address for listener, _ in listeners)
        with calling():
            starts = [
                actor.start.remote(self._links_of(stage, [*stages[stage + 1 :], GATEWAY], addresses))
                for stage, actor in enumerate(self._actors)
            ]
        with contextlib.ExitStack() as undo:
            pool = SlotPool(max_in_flight, slot_nbytes[0])
            undo.callback(pool.close)
            queue = SharedQueue(stages=len(stages)) if self._shares_queue() else None
            if queue is not None:
                undo.callback(queue.close)
            opened, receivers = open_ends(
                listeners, [partial(self._enter, stage, addresses[stage], pool, queue) for stage in stages]
            )
            inbox = Inbox(receivers)
            undo.callback(inbox.close)
            for sender in opened:
                undo.callback(sender.close, graceful=False)
            ray_calls.get(starts, timeout_s=_START_TIMEOUT_S)
            undo.pop_all()
        self._forget(listeners)
        return Inlet(pool, dict(zip(stages, opened, strict=True)), queue), inbox

    def _listen(self, senders: Sequence[int], host: str) -> list[tuple[Listener, int]]:
        """Listen for these stages in the gateway."""
        here, remote = self._split(senders, GATEWAY)
        found = [*([(Listener(""), here)] if here else []), *([(Listener(host), remote)] if remote else [])]
        self._listeners.extend(listener for listener, _ in found)
        return found

    def _enter(
        self,
        stage: int,
        addresses: Addresses,
        pool: SlotPool,
        queue: SharedQueue | None,
        *,
        timeout_s: float = _START_TIMEOUT_S,
    ) -> Sender:
        """Open the gateway's channel to a stage."""
        return connect(
            self._address(addresses, GATEWAY, stage),
            slots=pool.memory.slots,
            slot_nbytes=pool.memory.slot_nbytes,
            credits=False,
            receiver=stage,
            pool=pool,
            queue=queue,
            timeout_s=timeout_s,
        )

    def _links_of(self, stage: int, later: Sequence[int], addresses: Mapping[int, Addresses]) -> Links:
        """What a stage is started with, whose later stages, and the gateway, are at these addresses."""
        found = tuple((target, self._address(addresses[target], stage, target)) for target in later)
        # the last stage sends outputs only
        nbytes = self._output_nbytes if stage == len(self._actors) - 1 else self._links.slot_nbytes
        return self._links._replace(later=found, slot_nbytes=nbytes)

    def _address(self, addresses: Addresses, sender: int, target: int) -> Address:
        found = addresses.here if self._is_local(sender, target) else addresses.remote
        assert found is not None
        return found

    def _split(self, senders: Sequence[int], target: int) -> tuple[int, int]:
        """How many of them send within a machine, and how many between machines."""
        here = sum(self._is_local(sender, target) for sender in senders)
        return here, len(senders) - here

    def _shares_queue(self) -> bool:
        """Whether any stage may take a new request by itself: all have all layers' weights, and are on this machine."""
        stages = range(len(self._actors))
        cpus = all(Device.parse(info.device).kind == "cpu" for info in self.infos)
        return len(stages) > 1 and cpus and all(self._is_local(GATEWAY, stage) for stage in stages)

    # -- a stage in the place of another ----------------------------------------------------------------------------

    def end(self, stage: int) -> None:
        """End a stage's process for good, also one that is stopped."""
        kill_actor(self._actors[stage])
        info = self.infos[stage]
        pid = self._pids[stage]
        if info.node_id == self.node_id:
            kill_process(pid)
            return
        with contextlib.suppress(RayError, ValueError, ConnectionError, StageLostError), calling():
            there = NodeAffinitySchedulingStrategy(info.node_id, soft=False)
            ray.remote(kill_process).options(num_cpus=0, scheduling_strategy=there).remote(pid)

    def release_objects(self) -> None:
        """Ray starts nothing any more: let go what stages are opened with.

        Ray says after some 15 s that a node without its raylet is dead, and tries to recover what was in its object
        store. A program that still refers to such an object is ended by that, with exit status 1 and no exception.
        """
        self._opening = []

    def start_again(self, stage: int) -> None:
        """Start another process for a stage, on the same device, and give it the model; takes seconds.

        Raises
        ------
        DeviceError
            If the device is taken.
        ray.exceptions.RayError
            If Ray cannot start it.
        StageLostError
            If Ray is gone.
        PipelineClosedError
            If :meth:`stop_preparing` was called, before or meanwhile.
        """
        self.end(stage)
        with calling():
            self._actors[stage] = self._create_actor(stage)
            call = self._actors[stage].pid.remote()
        self._pids[stage] = self._wait_for([call], "the new process did not start", timeout_s=_START_TIMEOUT_S)[0]
        with calling():
            call = self._actors[stage].open.remote(*self._opening[stage])
        info: StageInfo | StageProblem = self._wait_for(
            [call], "the new process did not take the model", timeout_s=_START_TIMEOUT_S
        )[0]
        if isinstance(info, StageProblem):
            raise DeviceError(info.message)
        with calling():
            call = self._warm(stage)
        with contextlib.suppress(DeviceError):
            self._wait_for([call], "the new process was not warm", timeout_s=_START_TIMEOUT_S)
        self.infos = (*self.infos[:stage], info, *self.infos[stage + 1 :])

    def join(
        self, stage: int, in_force: InForce, *, live: Sequence[int], inlet: Inlet, receive: Callable[[Receiver], None]
    ) -> Sender:
        """Connect a process of :meth:`start_again` with the gateway and the ``live`` stages, which serve meanwhile.

        Parameters
        ----------
        in_force
            Under what it begins.
        inlet
            The gateway's slots and queue.
        receive
            Takes the gateway's end of the channel from it.

        Returns
        -------
        Sender
            The gateway's channel to it.

        Raises
        ------
        ray.exceptions.RayError, ChannelClosedError
            If one of them dies meanwhile.
        StageLostError
            If one of them does not answer, which is its ``stage`` then.
        """
        earlier = [other for other in live if other < stage]
        later = [other for other in live if other > stage]
        info = self.infos[stage]
        with calling():
            own_host = ray.util.get_node_ip_address()
            calls = [self._actors[stage].listen.remote(*self._split([GATEWAY, *earlier], stage), info.host)]
            calls += [
                self._actors[other].admit.remote(*self._split([stage], other), self.infos[other].host)
                for other in later
            ]
        own, *theirs = self._wait_for(
            calls, "stages did not listen", timeout_s=_START_TIMEOUT_S, stages=[stage, *later]
        )
        listeners = self._listen([stage], own_host)
        addresses = dict(zip(later, theirs, strict=True))
        addresses[GATEWAY] = Addresses.of(listener.address for listener, _ in listeners)
        links = self._links_of(stage, [*later, GATEWAY], addresses)
        with calling():
            calls = [
                self._actors[stage].start.remote(
                    links._replace(windows=in_force.windows, stages=in_force.stages, epoch=in_force.epoch)
                )
            ]
            calls += [
                self._actors[other].connect_to.remote(stage, self._address(own, other, stage)) for other in earlier
            ]
        with ThreadPoolExecutor(1) as helper:
            enter = partial(self._enter, stage, own, inlet.pool, inlet.queue, timeout_s=_CONNECT_S)
            opening = helper.submit(open_ends, listeners, [enter])
            try:
                self._wait_for(calls, "stages did not connect", timeout_s=_START_TIMEOUT_S, stages=[stage, *earlier])
            except BaseException:  # such as the new one's death: nobody else knocks, and others wait for this to end
                for listener, _ in listeners:
                    listener.close()
                self._forget(listeners)
                with contextlib.suppress(ChannelClosedError):
                    _close_all(opening.result())
                raise
            opened, receivers = opening.result()
        self._forget(listeners)
        receive(receivers[0])
        return opened[0]

    def _forget(self, listeners: Sequence[tuple[Listener, int]]) -> None:
        """Listeners that have heard whom they were for, each of which keeps a page of memory mapped."""
        for listener, _ in listeners:
            self._listeners.remove(listener)

    @property
    def hop_count(self) -> int:
        """How often a request goes from one node to another, back to the gateway included."""
        nodes = [self.node_id, *(info.node_id for info in self.infos), self.node_id]
        return sum(node != after for node, after in itertools.pairwise(nodes))

    def _is_local(self, sender: int, target: int) -> bool:
        transport = self._transport
        nodes = [self.node_id if stage == GATEWAY else self.infos[stage].node_id for stage in (sender, target)]
        if transport == "auto":
            return nodes[0] == nodes[1]
        if transport == "shm" and nodes[0] != nodes[1]:
            raise ValueError("transport='shm' reaches within one node only, and the stages are on several: use 'auto'")
        return transport == "shm"

    def prepare(
        self,
        epoch: int,
        windows: Windows,
        stages: Sequence[int],
        *,
        live: Sequence[int],
        others: Sequence[int] = (),
    ) -> None:
        """Make stages ready for ``epoch``.

        Parameters
        ----------
        windows
            One row for each of ``stages``, which take part.
        live
            Those that can be told.
        others
            Are told as well, if they hear it: one that waits for a stage which hangs goes on then.

        Raises
        ------
        ray.exceptions.RayError
            If a stage is gone or cannot, or takes too long.
        StageLostError
            If a stage does not answer, which is its ``stage`` then; or if Ray itself is gone.
        PipelineClosedError
            If :meth:`stop_preparing` was called, before or meanwhile.
        """
        with calling():
            calls = [self._actors[stage].prepare.remote(epoch, windows, tuple(stages)) for stage in live]
            for stage in others:
                self._actors[stage].prepare.remote(epoch, windows, tuple(stages))
        self._wait_for(calls, f"stages were not ready for epoch {epoch}", timeout_s=_START_TIMEOUT_S, stages=live)

    def _wait_for(
        self, calls: Sequence[Any], late: str, *, timeout_s: float, stages: Sequence[int] | None = None
    ) -> list[Any]:
        """Wait for calls until :meth:`stop_preparing`; the first that fails is raised at once.

        Stages that serve answer other calls meanwhile: one that does not hangs. With ``stages``, whose the calls are,
        that is raised as a :class:`~odin.StageLostError`.
        """
        end_s = time.monotonic() + timeout_s
        left, pings = list(calls), dict[int, tuple[Any, float]]()
        while left and not self._stopping.is_set():
            done, left = ray_calls.wait(left, timeout_s=_LOOK_AGAIN_S)
            ray_calls.get(done, timeout_s=_LOOK_AGAIN_S)
            if left and time.monotonic() > end_s:
                raise GetTimeoutError(f"{late} within {timeout_s:.0f} s")
            for stage, call in zip(stages or (), calls, strict=False):
                if call in left:
                    self._check_that_it_answers(stage, pings, time.monotonic())
        if self._stopping.is_set():
            raise PipelineClosedError("the pipeline was closed while stages prepared")
        answers: list[Any] = ray_calls.get(list(calls), timeout_s=_LOOK_AGAIN_S)
        return answers

    def _check_that_it_answers(self, stage: int, pings: dict[int, tuple[Any, float]], now_s: float) -> None:
        if stage in pings:
            ping, asked_s = pings[stage]
            if not ray_calls.wait([ping], timeout_s=0.0)[0]:
                if now_s - asked_s > _ANSWER_S * (_PATIENCE if self.wants_core(stage) else 1.0):
                    self._unanswered[stage] = ping
                    raise StageLostError(f"stage {stage} does not answer; try again when it is replaced", stage)
                return
        with calling():
            pings[stage] = self._actors[stage].ping.remote(), now_s

    def has_answered(self, stage: int) -> bool:
        """Whether a stage that did not answer has done so since then."""
        ping = self._unanswered[stage]
        try:
            return bool(ray_calls.wait([ping], timeout_s=0.0)[0] and ray_calls.get(ping, timeout_s=_LOOK_AGAIN_S))
        except (RayError, StageLostError):  # it never will
            return False

    def wants_core(self, stage: int) -> bool:
        """Whether a stage's process waits for its core or has it, as far as is known from here."""
        info = self.infos[stage]
        return info.node_id == self.node_id and is_runnable(info.pid)

    def stop_preparing(self) -> None:
        """Make a running :meth:`prepare`, and every later one, fail at once."""
        self._stopping.set()

    def look(self, stage: int, own_pids: Sequence[int]) -> Neighbours:
        """Find other programs on a stage's device, in the stage's process; takes about half a second.

        Raises
        ------
        ray.exceptions.RayError
            If the stage is gone or does not answer.
        """
        with calling():
            call = self._actors[stage].look.remote(tuple(own_pids))
        report: Neighbours = ray_calls.get(call, timeout_s=_LOOK_TIMEOUT_S)
        return report

    def announce(self, status: Any) -> None:
        """Give the first stage the status server's address, for members of the cluster."""
        with calling():
            call = self._actors[0].set_status.remote((os.getpid(), status))
        ray_calls.get(call, timeout_s=_PING_TIMEOUT_S)

    def close(self) -> None:
        """End all stages and their processes. Idempotent."""
        for listener in self._listeners:
            listener.close()
        actors, self._actors = self._actors, []
        for actor in actors:
            kill_actor(actor)
        if actors:  # the next pipeline may take the devices then
            wait_until_ended(
                pid for pid, (_, node) in zip(self._pids, self._placed, strict=False) if node == self.node_id
            )


def _stored(inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Tensors as arrays of bytes: those of some types cannot be unpickled."""
    return list(store({str(number): tensor for number, tensor in enumerate(inputs)}).values())


def _close_all(ends: tuple[Sequence[Sender], Sequence[Receiver]]) -> None:
    senders, receivers = ends
    for sender in senders:
        sender.close(graceful=False)
    for receiver in receivers:
        receiver.close()


def _answers_of_started(calls: Sequence[Any], devices: Sequence[Device]) -> list[Any]:
    """Wait for the first calls of stages on these devices, which Ray has to start for that."""
    _, late = ray_calls.wait(calls, timeout_s=_START_TIMEOUT_S)
    if late:
        waiting = ", ".join(str(device) for call, device in zip(calls, devices, strict=True) if call in late)
        raise TimeoutError(
            f"Ray did not start the stages on {waiting} within {_START_TIMEOUT_S:.0f} s; the cluster has "
            f"{ray.available_resources().get('CPU', 0):g} CPUs and "
            f"{ray.available_resources().get('GPU', 0):g} GPUs free: stop other work there, or pass "
            "share_devices=True (--share-devices)"
        )
    answers: list[Any] = ray_calls.get(calls, timeout_s=_START_TIMEOUT_S)
    return answers


def _warn_of_niceness(infos: Sequence[StageInfo]) -> None:
    nice = [info for info in infos if info.niceness > 0]
    if nice:
        where = ", ".join(f"stage {info.stage} ({info.device}, {info.host})" for info in nice)
        warnings.warn(
            f"{where} runs at niceness {max(info.niceness for info in nice)}, which this user may not undo: any other "
            "program there takes nearly all of its core; start that Ray with RAY_worker_niceness=0 in its environment, "
            "as scripts/cluster.sh does",
            stacklevel=1,
        )
