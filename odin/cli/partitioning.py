"""Profiles a chain on devices of this machine, and balances it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from odin.cli.partition_report import LayerRow, PartitionReport, StageRow
from odin.control.engine_choice import fastest_form, make_form
from odin.control.local_profile import check_local, profile_local, type_of
from odin.options import check_engine_fits, check_precision_fits
from odin.partitioner.balance.exact import balance, fluid_bound_hz, stage_times
from odin.partitioner.chain import Chain
from odin.partitioner.engines.names import AUTO, TORCH
from odin.partitioner.plan import Plan
from odin.partitioner.profile import Profile, ProfileCache
from odin.partitioner.transfer import TransferCost, measure_transfer
from odin.stages.device import Device

__all__ = ["partition"]


def partition(
    chain: Chain,
    devices: Sequence[Device],
    *,
    batch: int | None = None,
    plan: Plan | None = None,
    precision: str = "float32",
    engine: str = TORCH,
    calibration: Any = None,
    cache: ProfileCache,
    refresh: bool = False,
    transfer: TransferCost | None = None,
) -> PartitionReport:
    """Profile a chain on local devices and balance it.

    Parameters
    ----------
    chain
        The model.
    devices
        One per stage, on this machine.
    batch
        Images per request; None is the example's.
    plan
        Plan to evaluate; None is the best.
    precision
        Number format of the stages.
    engine
        What runs the layers on CPU cores; ``"auto"``: the fastest.
    calibration
        Examples for int8.
    cache, refresh
        Where profiles are kept; whether to measure although one is there.
    transfer
        Cost of a hop; None measures it.

    Raises
    ------
    ValueError
        If a device, the batch or the plan does not fit.
    """
    check_local(devices)
    layer_count, stage_count = len(chain.layers), len(devices)
    if stage_count > layer_count:
        raise ValueError(f"{stage_count} stages for {layer_count} layers: use at most {layer_count} stages")
    if plan is not None:
        plan.check_fits(layer_count=layer_count, stage_count=stage_count)
    inputs, scale = _inputs(chain, batch)
    check_engine_fits(engine, devices)
    check_precision_fits(precision, engine, devices)
    leading = int(inputs[0].shape[0]) if inputs[0].dim() else 1
    if all(device.kind == "cpu" for device in devices):
        make = (
            partial(fastest_form, chain, devices[0], batch=leading)
            if engine == AUTO
            else partial(make_form, chain, engine)
        )
        form = make(precision=precision, calibration=calibration)
    else:
        form = make_form(chain, TORCH)

    profiles: dict[str, Profile] = {}
    for device in devices:  # one device stands for all of its type
        name = type_of(device)
        if name not in profiles:
            profiles[name] = profile_local(
                chain,
                device,
                inputs,
                precision=precision,
                engine=form.engine,
                form=lambda: form,
                cache=cache,
                refresh=refresh,
            )
    by_stage = [profiles[type_of(device)] for device in devices]
    times_s = [profile.layer_s for profile in by_stage]
    transfer = measure_transfer() if transfer is None else transfer
    cut_nbytes = [scale * sum(cut) for cut in form.cuts]
    send_s, receive_s = transfer.send_s(cut_nbytes), transfer.receive_s(cut_nbytes)
    best = balance(times_s, send_s=send_s, receive_s=receive_s)
    chosen = best.plan if plan is None else plan
    total_s = stage_times(chosen, times_s, send_s, receive_s)
    compute_s = stage_times(chosen, times_s)

    stage_of = [stage for stage, count in enumerate(chosen) for _ in range(count)]
    return PartitionReport(
        model=chain.name,
        engine=form.engine,
        batch=leading,
        device_types=tuple(profiles),
        layers=tuple(
            LayerRow(
                layer.index,
                layer.name,
                tuple(profile.layer_s[layer.index] for profile in profiles.values()),
                cut_nbytes[layer.index + 1],
                scale * layer.flops,
                layer.parameter_nbytes,
                stage_of[layer.index],
            )
            for layer in chain.layers
        ),
        stages=tuple(
            StageRow(
                index,
                str(device),
                profile.device_type,
                first,
                last,
                compute_s[index],
                total_s[index] - compute_s[index],
            )
            for index, (device, profile, (first, last)) in enumerate(zip(devices, by_stage, chosen.ranges, strict=True))
        ),
        plan=chosen,
        best_plan=best.plan,
        bottleneck_s=max(total_s),
        best_bottleneck_s=best.bottleneck_s,
        fluid_hz=fluid_bound_hz(times_s),
        spread=statistics.median(value for profile in profiles.values() for value in profile.spread),
    )


def _inputs(chain: Chain, batch: int | None) -> tuple[tuple[torch.Tensor, ...], int]:
    """Inputs for timing with ``batch`` as leading size, and how many times the example's size that is."""
    example_batch = chain.inputs[0].shape[0] if chain.inputs[0].shape else 1
    size = example_batch if batch is None else batch
    if size < 1:
        raise ValueError(f"batch is {size}; a request has at least one image")
    if size != example_batch and not chain.dynamic_batch:
        raise ValueError(f"batch {size}: {chain.name} works for leading size {example_batch} only; leave --batch out")
    tensors = []
    for spec in chain.inputs:
        shape = (size, *spec.shape[1:]) if chain.dynamic_batch else spec.shape
        tensors.append(torch.ones(shape, dtype=getattr(torch, spec.dtype)))
    return chain.layout(tensors), -(-size // max(1, example_batch))
