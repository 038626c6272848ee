"""Baseline times of a chain on the stages' devices, and the ``Setting`` that policies get."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import numpy as np
import torch

from odin.cluster.deployment import Deployment
from odin.partitioner.balance.exact import balance
from odin.partitioner.chain import Chain
from odin.partitioner.intensity import arithmetic_intensity
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Setting
from odin.partitioner.profile import LayerTimes, Profile, ProfileCache, ProfileKey, measure_undisturbed, warn_if_suspect
from odin.partitioner.transfer import measure_transfer
from odin.stages.device import Device, DeviceError

__all__ = ["measure_baselines", "pipeline_setting", "profile_key"]

_WARMUP, _REPEATS = 3, 7  # a GPU runs, examines and captures its layers in the first three


def measure_baselines(
    deployment: Deployment,
    chain: Chain,
    inputs: Sequence[torch.Tensor],
    *,
    precision: str,
    engine: str,
    cache: ProfileCache,
    refresh: bool = False,
) -> tuple[Profile, ...]:
    """Return the profile of each stage's device, measured once per type of device, or taken from the cache.

    What was measured while something else ran is measured again, on another stage of that type if there is one; if
    that does not help the user is warned, and it is measured again at the next start.

    Parameters
    ----------
    deployment
        Stages that are open and not serving yet.
    inputs
        Example inputs with the pipeline's micro-batch as leading size.
    cache, refresh
        Where profiles are kept; whether to measure although one is there.
    """
    profiles: dict[str, Profile] = {}
    for info in deployment.infos:
        if info.device_type in profiles:
            continue

        def measure(device_type: str = info.device_type) -> Profile:
            alike = [other.stage for other in deployment.infos if other.device_type == device_type]

            def once(attempt: int) -> LayerTimes:
                stage = alike[attempt % len(alike)]
                passes = deployment.profile(stage, inputs, warmup=_WARMUP, repeats=_REPEATS)
                return LayerTimes.of(passes.layer_s, run_delay_s=passes.run_delay_s)

            batch = int(inputs[0].shape[0]) if inputs[0].dim() else 1
            times = measure_undisturbed(once)
            return Profile.of(times, device_type=device_type, batch=batch, torch_version=torch.__version__)

        key = profile_key(chain, inputs, precision, info.device_type, engine=engine)
        profile = profiles[info.device_type] = cache.get(key, measure, refresh=refresh)
        if profile.suspect:
            warn_if_suspect(profile, who=_who_is_there(deployment, info.stage))
    for info in deployment.infos:
        if Device.parse(info.device).kind == "gpu":
            # It gets ready for values of these shapes now, rather than with the first requests.
            with contextlib.suppress(DeviceError):  # the whole chain does not fit; its layers may
                deployment.profile(info.stage, inputs, warmup=_WARMUP, repeats=0)
    return tuple(profiles[info.device_type] for info in deployment.infos)


def profile_key(
    chain: Chain, inputs: Sequence[torch.Tensor], precision: str, device_type: str, *, engine: str
) -> ProfileKey:
    """Key under which a profile is kept on disk."""
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    return ProfileKey(chain.fingerprint, shapes, precision, device_type, engine)


def _who_is_there(deployment: Deployment, stage: int) -> str:
    """Text that names other programs on a stage's device now; empty if there are none, or if unknown."""
    try:
        seen = deployment.look(stage, [os.getpid(), *(info.pid for info in deployment.infos)])
    except Exception:  # an answer is not worth a failed start
        return ""
    return ", ".join(f"pid {culprit.pid} {culprit.name}" for culprit in seen.report.culprits)


def pipeline_setting(
    profiles: Sequence[Profile],
    chain: Chain,
    cut_nbytes: Sequence[int],
    *,
    plan: Plan | None = None,
    singles: Sequence[Profile] = (),
    batch: int = 1,
) -> Setting:
    """Return the setting of policies; without a plan, its plan is the one with the least bottleneck.

    Parameters
    ----------
    profiles
        One per stage.
    cut_nbytes
        Bytes that cross each of the ``layers + 1`` cuts, the model's input and output among them.
    singles, batch
        The same for one sample, if that is known; samples that the former have.
    """
    transfer = measure_transfer()
    baseline_s = np.array([profile.layer_s for profile in profiles])
    send_s, receive_s = transfer.send_s(cut_nbytes), transfer.receive_s(cut_nbytes)
    if plan is None:
        plan = balance(baseline_s, send_s=send_s, receive_s=receive_s).plan
    single_s = np.array([profile.layer_s for profile in singles]) if singles else None
    return Setting(plan, baseline_s, send_s, receive_s, arithmetic_intensity(chain), single_s=single_s, batch=batch)
