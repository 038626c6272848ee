"""Baselines of a chain on devices of this machine, measured in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from odin.control.local_devices import check_named
from odin.partitioner.chain import Chain
from odin.partitioner.engines.form import EngineForm, Form, TorchForm
from odin.partitioner.engines.names import TORCH
from odin.partitioner.engines.session import open_layers
from odin.partitioner.profile import (
    LayerTimes,
    Profile,
    ProfileCache,
    ProfileKey,
    device_type,
    measure_undisturbed,
    profile_layers,
    warn_if_suspect,
)
from odin.stages.compute.cuda import CudaExecutor, computing_as
from odin.stages.compute.executor import RunDelay
from odin.stages.compute.opaque import compute_threads
from odin.stages.device import (
    Device,
    DeviceError,
    allowed_core_count,
    bind_threads,
    cpu_model,
    thread_count,
    usable_cores,
)
from odin.stages.gpus import gpu_names
from odin.stages.host import keep_freed_memory

__all__ = ["check_local", "local_devices", "open_form", "pinned", "profile_local", "type_of"]

_BUDGET_S = 20.0


def local_devices(layer_count: int) -> tuple[Device, ...]:
    """Stages for ``auto``: every GPU of this machine if there is one, else usable cores; at most one per layer.

    Of the cores as many as a CPU quota allows.
    """
    gpus = [Device("gpu", (index,)) for index in range(len(gpu_names()))]
    cores = [Device("cpu", (core,)) for core in usable_cores()[: allowed_core_count()]]
    return tuple((gpus or cores)[:layer_count])


def check_local(devices: Sequence[Device]) -> None:
    """Check that every device is on this machine, exists, and is named once.

    Raises
    ------
    DeviceError
        If not; the message says which and what there is.
    """
    check_named(devices)
    for device in devices:
        if device.kind == "gpu" and device.indices[0] >= len(gpu_names()):
            names = [f"gpu:{index} ({name})" for index, name in enumerate(gpu_names())]
            raise DeviceError(f"there is no {device} that torch can use here; there is {', '.join(names) or 'no GPU'}")


def type_of(device: Device) -> str:
    """Text under which profiles of a local device are kept, the same that its stage gives."""
    if device.kind == "gpu":
        return device_type("gpu", gpu_names()[device.indices[0]])
    return device_type("cpu", cpu_model(), threads=thread_count(device))


@contextlib.contextmanager
def pinned(device: Device) -> Iterator[None]:
    """Bind this process to a CPU device, with as many compute threads as a stage there; all is as before afterwards."""
    cores = os.sched_getaffinity(0)
    # Not pin_process, which takes the present binding for all there is: here it changes back and forth.
    bind_threads(device.indices)
    try:
        with compute_threads(thread_count(device)):
            yield
    finally:
        bind_threads(cores)


def profile_local(
    chain: Chain,
    device: Device,
    inputs: Sequence[torch.Tensor],
    *,
    precision: str = "float32",
    form: Callable[[], Form] | None = None,
    engine: str = TORCH,
    cache: ProfileCache,
    refresh: bool = False,
    repeats: int = 10,
    warmup: int = 2,
) -> Profile:
    """Return the baselines of a chain on a local device, from the cache or measured now.

    Parameters
    ----------
    chain
        What is profiled.
    device
        Device of this machine; the process is bound to it meanwhile.
    inputs
        Input tensors, leading size as in the pipeline.
    precision
        Number format of a GPU; CPUs compute in the model's own.
    engine, form
        What runs the layers, and a function that brings the chain into its form, called if it is to be measured.
    cache, refresh
        Where profiles are kept; whether to measure although one is there.
    repeats, warmup
        Passes timed, at most, and passes before.
    """
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    name = type_of(device)
    batch = int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 1

    def measure() -> Profile:
        def once(_attempt: int) -> LayerTimes:
            if device.kind == "gpu":
                return _measure_gpu(chain, device, inputs, precision=precision, repeats=repeats, warmup=3 + warmup)
            return _measure_cpu(
                TorchForm(chain) if form is None else form(), device, inputs, repeats=repeats, warmup=warmup
            )

        return Profile.of(
            measure_undisturbed(once), device_type=name, batch=batch, torch_version=str(torch.__version__)
        )

    profile = cache.get(ProfileKey(chain.fingerprint, shapes, precision, name, engine), measure, refresh=refresh)
    warn_if_suspect(profile)
    return profile


def open_form(form: Form, device: Device, *, batch: int | None) -> tuple[Sequence[Callable[[Any], Any]], int]:
    """Make a form's layers executable with a device's threads, as a stage does; returns them and their weights' bytes.

    Layers of engines other than PyTorch take and return numpy arrays.
    """
    if isinstance(form, TorchForm):
        chain = form.chain
        with compute_threads(thread_count(device)):
            packed = chain.program.pack(chain.state, batch=batch)
        return [layer.bind(packed) for layer in chain.program.layers], sum(t.nbytes for t in packed.values())
    assert isinstance(form, EngineForm)
    functions = open_layers(form.model, form.weights, threads=thread_count(device))
    return functions, sum(array.nbytes for array in form.weights.values())


def _measure_cpu(
    form: Form, device: Device, inputs: Sequence[torch.Tensor], *, repeats: int, warmup: int
) -> LayerTimes:
    values: tuple[Any, ...] = form.layout(inputs)
    functions, _ = open_form(form, device, batch=inputs[0].shape[0] if inputs[0].dim() else None)
    if form.engine != TORCH:
        values = tuple(tensor.numpy() for tensor in values)

    def run_layer(index: int, values: Any) -> Any:
        return functions[index](values)

    keep_freed_memory()  # as in a stage, else large activations are page-faulted in anew for every layer
    with pinned(device), torch.inference_mode():
        return profile_layers(
            run_layer,
            values,
            len(functions),
            repeats=repeats,
            warmup=warmup,
            budget_s=_BUDGET_S,
            run_delay=RunDelay().read_s,
        )


def _measure_gpu(
    chain: Chain, device: Device, inputs: Sequence[torch.Tensor], *, precision: str, repeats: int, warmup: int
) -> LayerTimes:
    layers: Any = chain.program.layers  # stages do not know the chain's classes, only what they can do
    executor = CudaExecutor(layers, chain.state, index=device.indices[0], precision=precision)
    count = len(chain.layers)
    executor.prepare(0, count)
    with executor.calibrating(), computing_as(precision):
        passes = [executor.finish(executor.launch(0, count, tuple(inputs))).layer_s for _ in range(warmup + repeats)]
    return LayerTimes.of(passes[warmup:])
