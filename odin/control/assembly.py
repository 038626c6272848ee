"""What a serving pipeline is made of: put together in the phases of starting, taken apart when it is closed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from odin.cluster.deployment import Deployment
from odin.cluster.placement import warn_of_quotas
from odin.cluster.ray_runtime import RayRuntime
from odin.cluster.startup import Startup
from odin.control.arrangement import Arrangement, reach
from odin.control.baselines import measure_baselines, pipeline_setting, profile_key
from odin.control.default_policy import policy_for
from odin.control.engine_choice import choose_form
from odin.control.recovery import Recovery
from odin.control.supervision import EventRecorder, Supervision
from odin.control.tenants import Tenants
from odin.models.chains import example_inputs, weight_nbytes
from odin.models.sources import Source
from odin.monitor.attribution.neighbours import Neighbours, find_neighbours
from odin.monitor.detectors import Detector
from odin.monitor.eventlog import EventLog
from odin.monitor.events import Event, StageDescription
from odin.monitor.timing import RequestTimeline
from odin.monitor.view.builder import Serving
from odin.options import check_engine_fits, check_precision_fits, leading_size
from odin.partitioner.chain import Chain
from odin.partitioner.engines.form import EngineForm, Form
from odin.partitioner.engines.names import AUTO as AUTO_ENGINE
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Policy, Setting, TenantSetting, windows_of
from odin.partitioner.profile import Profile, ProfileCache, warn_if_suspect
from odin.partitioner.relay import Windows
from odin.process.phases import phase
from odin.requests.admission import PREDICT, Admission
from odin.requests.conditions import Conditions
from odin.requests.foresight import Foresight
from odin.requests.gateway import Gateway
from odin.requests.joining import Joining
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.slots import slot_nbytes_for
from odin.stages.device import Device
from odin.stages.host import release_freed_memory

__all__ = ["Assembly"]

_tenants = Tenants()


class Assembly:
    """The parts of one pipeline.

    ::

        begin    Ray and the stages' processes start, while the caller builds the chain
        finish   stages get their devices and the model | layers timed | channels | supervision | gateway | recovery
        close    ends what there is by then, also what is only being started

    Parameters
    ----------
    log, on_event, share
        As for :class:`odin.Pipeline`.
    on_result
        Called with the timeline of every micro-batch, in the thread that resolves futures.

    Attributes
    ----------
    devices, engine, max_in_flight, profiles
        As :class:`odin.Pipeline` has them.
    form
        The chain in its engine's form, without weights.
    setting
        What policies get.
    """

    def __init__(
        self,
        log: str | Path | EventLog | None,
        on_event: Callable[[Event], None] | None,
        *,
        share: float,
        on_result: Callable[[RequestTimeline], None],
    ) -> None:
        self._recorder = EventRecorder(log, on_event)  # before anything is started: the file may not be writable
        self._share, self._on_result = share, on_result
        self._closing = False
        self._startup: Startup | None = None
        self._runtime: RayRuntime | None = None
        self._deployment: Deployment | None = None
        self._supervision: Supervision | None = None
        self._gateway: Gateway | None = None
        self._arrangement: Arrangement | None = None
        self._recovery: Recovery | None = None

    def begin(
        self,
        devices: Sequence[Device] | None,
        source: Source | Chain,
        *,
        address: str | None,
        share_devices: bool,
        precision: str,
        engine: str,
    ) -> None:
        """Start Ray and the stages' processes, which goes on in a thread of its own."""
        nbytes = weight_nbytes(source)
        if devices is None or any(device.kind == "gpu" for device in devices):
            nbytes *= 2  # packed for CPU stages, plain for GPU stages
        self._startup = Startup(
            devices,
            address=address,
            weight_nbytes=nbytes,
            on_trouble=self._on_ray_trouble,
            label=f"pipeline {source.name} of process {os.getpid()}",
            share=share_devices,
            precision=precision,
            engine="" if engine == AUTO_ENGINE else engine,
            largest_share=self._share,
        )
        self._startup.start()

    def finish(
        self,
        chain: Chain,
        *,
        name: str,
        batch: int,
        plan: Plan | None,
        policy: Policy | str,
        detector: Detector | str,
        engine: str,
        precision: str,
        calibration: Any,
        keep_weights: bool,
        transport: str,
        refresh_profile: bool,
        max_in_flight: int,
        max_waiting: int | None,
        admission: str,
        joining: Joining,
        in_cluster: bool,
    ) -> tuple[Gateway, Supervision, Arrangement]:
        """Make everything else; the options as for :class:`odin.Pipeline`, which are valid for the chain.

        Parameters
        ----------
        keep_weights
            Whether the chain keeps its weights in this process.
        max_in_flight
            0: as many as usual.
        in_cluster
            Whether other members of a cluster may ask for the status.
        """
        self._chain, self._name, self._batch = chain, name, batch
        self._open_stages(plan, precision=precision, engine=engine, calibration=calibration, keep_weights=keep_weights)
        cuts = self._cuts()
        self.setting = setting = self._measure(cuts, plan, precision=precision, refresh=refresh_profile)
        policy = self.policy_for(policy)
        self._given_in_flight = max_in_flight
        self.max_in_flight = max_in_flight or 2 * len(self.devices) + self._hop_count
        windows = windows_of(policy, setting) or Windows.of_plan(setting.plan)
        self._inlet, self._inbox = self._connect(cuts, setting, windows, transport=transport)
        self._supervision = self._supervise(setting, policy, detector, in_cluster=in_cluster)
        queue = self._inlet.queue
        conditions = Conditions(
            setting.baseline_s.tolist(),
            None if queue is None else queue.words,
            share=self._share,
            single_s=_rows(setting.single_s),
            batch=setting.batch,
        )
        self._gateway = Gateway(
            self._inlet,
            self._inbox,
            plan=setting.plan,
            windows=windows,
            max_in_flight=self._in_flight_under(windows),
            on_result=self._on_result,
            on_failure=self._supervision.on_failure,
            on_gone=self._stage_gone,
            foresight=Foresight(conditions, Admission(refuses=admission == PREDICT)),
            on_refusal=self._supervision.on_refusal,
            max_waiting=max_waiting,
            joining=joining,
        )
        self._arrangement, self._recovery = self._arrange(setting, self._gateway, self._supervision)
        self._recovery.start()
        _tenants.add(self)
        self._announce()
        release_freed_memory()  # of the chain's making and weights: several times what serving takes
        return self._gateway, self._supervision, self._arrangement

    def _open_stages(
        self, plan: Plan | None, *, precision: str, engine: str, calibration: Any, keep_weights: bool
    ) -> None:
        """Give the stages their devices and the model, and set ``self.devices``."""
        assert self._startup is not None
        chain = self._chain
        with phase("waited for Ray and the stages' processes"):
            self._runtime, placed, self._deployment = self._startup.join()
        placed = placed[: len(chain.layers)]  # with "auto" there may be more devices than layers
        if plan is not None:
            plan.check_fits(layer_count=len(chain.layers), stage_count=len(placed))
        check_engine_fits(engine, [device for device, _ in placed])
        check_precision_fits(precision, engine, [device for device, _ in placed], on_this_machine=False)
        with phase(f"layers brought into the form of engine {engine}"):
            self.form: Form = choose_form(
                chain, engine, placed, batch=self._batch, precision=precision, calibration=calibration
            )
        self.engine = self.form.engine
        with phase("weights packed and given to the stages"):
            self._deployment.open(placed, self.form, batch=self._batch)
            if isinstance(self.form, EngineForm):
                self.form = self.form.without_weights()
        self._hop_count = self._deployment.hop_count
        warn_of_quotas(placed, self._deployment.infos)
        if not keep_weights:
            # The stages have the weights now; here they would be a second copy.
            chain.release_weights()
        several_nodes = len({node for _, node in placed}) > 1
        self.devices = tuple(device._replace(node=node[:8] if several_nodes else "") for device, node in placed)

    def _cuts(self) -> list[list[int]]:
        """Bytes of each tensor that crosses a cut; the model's input and output are the first and the last cut."""
        scale = -(-self._batch // leading_size(self._chain))  # tensors grow with the micro-batch
        return [[scale * nbytes for nbytes in cut] for cut in self.form.cuts]

    def _measure(self, cuts: Sequence[Sequence[int]], plan: Plan | None, *, precision: str, refresh: bool) -> Setting:
        """Time the layers on the stages' devices, or read their times from disk, and find the plan to begin with."""
        assert self._deployment is not None
        deployment, chain, inputs = self._deployment, self._chain, example_inputs(self._chain, self.form, self._batch)
        self._profile_keys = [
            profile_key(chain, inputs, precision, info.device_type, engine=self.engine) for info in deployment.infos
        ]
        cache = ProfileCache()

        def measure(inputs: Sequence[torch.Tensor]) -> tuple[Profile, ...]:
            return measure_baselines(
                deployment, chain, inputs, precision=precision, engine=self.engine, cache=cache, refresh=refresh
            )

        with phase("layers timed, or their times read"):
            self.profiles: tuple[Profile, ...] = measure(inputs)
            singles: tuple[Profile, ...] = ()
            if self._batch > 1 and chain.dynamic_batch:
                singles = measure(example_inputs(chain, self.form, 1))
            deployment.warm_up(inputs)
            setting = pipeline_setting(
                self.profiles, chain, [sum(cut) for cut in cuts], plan=plan, singles=singles, batch=self._batch
            )
            devices = tuple(
                str(device._replace(node=info.node_id))
                for device, info in zip(self.devices, deployment.infos, strict=True)
            )
            tenant = TenantSetting(self._name, devices, self._share)
            return setting._replace(reach=reach(setting.plan, self.devices), tenant=tenant)

    def policy_for(self, policy: Policy | str) -> Policy:
        """Make a policy from its text, for these stages."""
        assert self._deployment is not None
        kinds = [device.kind for device in self.devices]
        return policy_for(policy, kinds=kinds, nodes=[info.node_id for info in self._deployment.infos])

    def _in_flight_under(self, windows: Windows) -> int:
        """Most micro-batches in flight: more would only wait longer."""
        stages, fixed = len(windows), sum(first == last for first, last in windows[:-1])
        usual = min(2 * stages, max(stages + 1, -(-3 * stages // 2)) + fixed)
        return self._given_in_flight or usual + self._hop_count

    def _connect(
        self, cuts: Sequence[Sequence[int]], setting: Setting, windows: Windows, *, transport: str
    ) -> tuple[Inlet, Inbox]:
        """Open the channels and start the stages' loops; returns the gateway's ends."""
        assert self._deployment is not None
        # The first channel carries inputs, the last one outputs, those between stages must fit any plan.
        slot_nbytes = [slot_nbytes_for(cut) for cut in cuts]
        with phase("channels opened"):
            return self._deployment.connect(
                windows,
                cut_nbytes=[sum(cut) for cut in cuts],
                slot_nbytes=slot_nbytes,
                baseline_s=setting.baseline_s.tolist(),
                cost_s=setting.send_s.tolist(),
                max_in_flight=self.max_in_flight,
                transport=transport,
                single_s=_rows(setting.single_s),
                batch=setting.batch,
            )

    def _supervise(
        self, setting: Setting, policy: Policy, detector: Detector | str, *, in_cluster: bool
    ) -> Supervision:
        """Start the controller, the event recorder, the investigator and the status server."""
        assert self._deployment is not None
        single_s = _rows(setting.single_s) or [[] for _ in self.devices]
        return Supervision(
            model=self._name,
            layers=[layer.name for layer in self._chain.layers],
            stages=[
                StageDescription(str(device), info.node_id, info.pid, profile.layer_s, tuple(one_s))
                for device, info, profile, one_s in zip(
                    self.devices, self._deployment.infos, self.profiles, single_s, strict=True
                )
            ],
            max_in_flight=self.max_in_flight,
            batch=self._batch,
            engine=self.engine,
            setting=setting,
            policy=policy,
            detector=detector,
            migrate=self._move,
            look=self._look,
            recorder=self._recorder,
            doubt=self._doubt_profile,
            serving=self._serving,
            host=str(ray.util.get_node_ip_address()) if in_cluster else "",
            share=self._share,
        )

    def _arrange(self, setting: Setting, gateway: Gateway, supervision: Supervision) -> tuple[Arrangement, Recovery]:
        """Make what moves layers, and what acts when a stage is lost."""
        assert self._deployment is not None
        arrangement = Arrangement(
            setting,
            self.devices,
            gateway=gateway,
            inlet=self._inlet,
            inbox=self._inbox,
            deployment=self._deployment,
            supervision=supervision,
            in_flight_under=self._in_flight_under,
            why_no_ray=lambda: None if self._runtime is None else self._runtime.cannot_start,
            on_replaced=lambda stage: self._announce() if stage == 0 else None,
        )
        # A stage that is held back pauses, too.
        chain_s = (setting.baseline_s.sum(axis=1) / self._share).tolist()
        emit, faults = self._recorder.emit, self._recorder.faults
        return arrangement, Recovery(chain_s, gateway=gateway, stages=arrangement, emit=emit, faults=faults)

    def _announce(self) -> None:
        """Tell the first stage where the status is served, which members of the cluster ask it for."""
        if self._supervision is not None and self._supervision.remote_status is not None:
            assert self._deployment is not None
            self._deployment.announce(self._supervision.remote_status)

    # -- while it serves --------------------------------------------------------------------------------------------

    def _move(self, plan: Plan, windows: Windows | None = None, *, why: str = "") -> int:
        """See :meth:`odin.control.arrangement.Arrangement.switch`."""
        assert self._arrangement is not None
        return self._arrangement.switch(plan, windows, why=why)

    def _stage_gone(self, stage: int) -> None:
        while self._recovery is None and not self._closing:  # it died while this was being made
            time.sleep(0.01)
        if self._recovery is not None:
            self._recovery.stage_gone(stage)

    def _serving(self) -> Serving | None:
        return None if self._gateway is None else self._gateway.serving()

    def _look(self, stage: int) -> Neighbours:
        """Find other programs on a stage's device; from this process if possible, to spare the stage's core."""
        deployment = self._deployment
        assert deployment is not None
        info, device = deployment.infos[stage], self.devices[stage]
        own = [os.getpid(), *(other.pid for other in deployment.infos if other.node_id == info.node_id)]
        if device.kind == "cpu" and info.node_id == deployment.node_id:
            found = find_neighbours(device.kind, device.indices, stage_pid=info.pid, own_pids=own)
        else:
            found = deployment.look(stage, own)
        return _tenants.name(found, info.node_id)

    def stage_names(self) -> dict[tuple[str, int], str]:
        """What other pipelines of this process call its stages, by node id and process."""
        deployment = self._deployment
        infos = () if deployment is None else deployment.infos
        return {(info.node_id, info.pid): f"{self._name}, stage {info.stage}" for info in infos}

    def _on_ray_trouble(self, why: str) -> None:
        if self._deployment is not None and self._runtime is not None and self._runtime.lost is not None:
            self._deployment.release_objects()
        then = "what lives goes on serving; no stage is replaced meanwhile"
        self._recorder.faults.tell("the connection to Ray", why, then, kind="lost", repeat="both")

    def _doubt_profile(self, stage: int, part: float) -> None:
        """Mark a profile as suspect: its stage is faster in serving, so something else ran when it was measured."""
        why = f"in serving, stage {stage} took {part:.2f} times as long"
        ProfileCache().doubt(self._profile_keys[stage], why)
        if not self.profiles[stage].suspect:  # otherwise the warning was given before
            warn_if_suspect(dataclasses.replace(self.profiles[stage], suspect=why))

    # -- end --------------------------------------------------------------------------------------------------------

    def close(self, *, drain: bool, timeout_s: float) -> None:
        """End it all; see :meth:`odin.Pipeline.close`. To be called once."""
        self._closing = True
        _tenants.remove(self)
        with contextlib.ExitStack() as last:  # so that no process is left behind if a step fails
            if self._startup is not None:
                last.callback(self._startup.close)
            if self._supervision is not None:
                supervision = self._supervision
                last.callback(lambda: supervision.close(**self._ending()))
            else:
                last.callback(self._recorder.close)
            if self._recovery is not None:
                last.callback(self._recovery.close)
                self._recovery.drain()
            if self._deployment is not None:
                last.callback(self._deployment.stop_preparing)
                if not drain:
                    self._deployment.stop_preparing()
            if self._supervision is not None:
                self._supervision.stop_deciding()
            if self._gateway is not None:
                self._gateway.close(drain=drain, timeout_s=timeout_s)

    def stop_waiting(self) -> None:
        """Let who closes it, in another thread, wait no more for requests in flight."""
        if self._gateway is not None:
            self._gateway.close(drain=False)

    def abandon(self) -> None:
        """Close, in a forked child, what keeps the parent's resources alive."""
        if self._supervision is not None:
            self._supervision.abandon()

    def _ending(self) -> dict[str, Any]:
        """Why the run ended, and its counts of requests, for the log."""
        if self._gateway is None:
            return {"reason": "the pipeline did not start", "completed": 0, "failed": 0}
        counts = self._gateway.counts()
        lost = self._gateway.lost
        reason = "closed" if lost is None else str(lost)
        return {"reason": reason, "completed": counts.completed, "failed": counts.failed}


def _rows(seconds: NDArray[np.float64] | None) -> list[list[float]]:
    return [] if seconds is None else [[float(layer_s) for layer_s in row] for row in seconds]
