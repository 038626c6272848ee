"""Baseline times of a chain on the stages' devices, and what policies are told of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from odin.deployment import Deployment
from partitioner.balance import balance
from partitioner.chain import Chain
from partitioner.intensity import arithmetic_intensity
from partitioner.plan import Plan
from partitioner.policies import Setting
from partitioner.profile import LayerTimes, Profile, ProfileCache, ProfileKey
from partitioner.transfer import measure_transfer

__all__ = ["measure_baselines", "pipeline_setting"]

_WARMUP, _REPEATS = 2, 7


def measure_baselines(
    deployment: Deployment, chain: Chain, inputs: Sequence[torch.Tensor], *, precision: str, cache: ProfileCache
) -> tuple[Profile, ...]:
    """Return the profile of each stage's device, measured once per type of device, or taken from the cache.

    Parameters
    ----------
    deployment
        Stages that are open and not serving yet.
    inputs
        Example inputs with the pipeline's micro-batch as leading size.
    """
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    profiles: dict[str, Profile] = {}
    for info in deployment.infos:
        if info.device_type in profiles:
            continue
        key = ProfileKey(chain.fingerprint, shapes, precision, info.device_type)

        def measure(stage: int = info.stage, device_type: str = info.device_type) -> Profile:
            passes = deployment.profile(stage, inputs, warmup=_WARMUP, repeats=_REPEATS)
            times = LayerTimes.of(passes)
            batch = int(inputs[0].shape[0]) if inputs[0].dim() else 1
            return Profile.of(times, device_type=device_type, batch=batch, torch_version=torch.__version__)

        profiles[info.device_type] = cache.get(key, measure)
    return tuple(profiles[info.device_type] for info in deployment.infos)


def pipeline_setting(
    profiles: Sequence[Profile], chain: Chain, cut_nbytes: Sequence[int], *, plan: Plan | None = None
) -> Setting:
    """Return what policies are told of a pipeline; without a plan its plan is the one with the least bottleneck.

    Parameters
    ----------
    profiles
        One per stage.
    cut_nbytes
        Bytes that cross each of the ``layers + 1`` cuts, the model's input and output among them.
    """
    transfer = measure_transfer()
    baseline_s = np.array([profile.layer_s for profile in profiles])
    send_s, receive_s = transfer.send_s(cut_nbytes), transfer.receive_s(cut_nbytes)
    if plan is None:
        plan = balance(baseline_s, send_s=send_s, receive_s=receive_s).plan
    return Setting(plan, baseline_s, send_s, receive_s, arithmetic_intensity(chain))
