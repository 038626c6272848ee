"""The two ways to use given cores, as pipelines: one stage with batches, or an instance on each core.

::

    batch        one stage on all cores, a thread per core inside the operators      cpu:0-1      b samples at a time
    instances    n stages of a sample each, spread over the cores, one each first     cpu:0 cpu:1  n samples at a time

Both have as much under way as they compute at a time, so that a latency is what a request takes, without a queue, and
throughput is samples under way / latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from odin.stages.device import Device, DeviceError
from odin.tuning.policy import KnobName

__all__ = ["Mode", "modes_of", "options_text", "toml_text"]


class Mode(NamedTuple):
    """One of the ways.

    Attributes
    ----------
    knob
        What is turned.
    stages
        Devices of the pipeline's stages.
    largest
        Largest value of the knob.
    """

    knob: KnobName
    stages: tuple[str, ...]
    largest: int

    @property
    def title(self) -> str:
        """Its name."""
        return "batching" if self.knob == "batch" else "instances"

    @property
    def batch(self) -> int:
        """Largest micro-batch of its pipeline."""
        return self.largest if self.knob == "batch" else 1

    def clients(self, value: int) -> int:
        """Requests that are kept under way."""
        return 1 if self.knob == "batch" else value

    def samples(self, value: int) -> int:
        """Samples of each."""
        return value if self.knob == "batch" else 1


def modes_of(devices: Sequence[Device], *, batch: int, instances: int | None = None) -> tuple[Mode, ...]:
    """The ways to use these devices: cores of one machine, or one GPU.

    On a GPU only batching: stages take requests by themselves on CPU cores alone.

    Parameters
    ----------
    devices
        What may be used.
    batch
        Largest batch to try; 1 leaves batching out.
    instances
        Most instances to try; default: one per core. 1 with several cores leaves them out.

    Raises
    ------
    DeviceError
        If they are of several kinds or nodes, or several GPUs, or a core is named twice.

    Examples
    --------
    >>> from odin.stages.device import parse_devices
    >>> for mode in modes_of(parse_devices("cpu:0,cpu:1"), batch=8, instances=3):
    ...     print(mode.knob, *mode.stages)
    batch cpu:0-1
    instances cpu:0 cpu:1 cpu:0
    """
    if not devices:
        raise DeviceError("there are no devices; give such as cpu:0,cpu:1 or cpu:0-1")
    if len({(device.kind, device.node) for device in devices}) > 1:
        raise DeviceError(f"{', '.join(map(str, devices))}: give cores of one machine, or one GPU")
    if devices[0].kind == "gpu":
        if len(devices) > 1:
            raise DeviceError(f"{', '.join(map(str, devices))}: give one GPU")
        return (Mode("batch", (str(devices[0]),), batch),)
    cores = sorted(index for device in devices for index in device.indices)
    if len(set(cores)) < len(cores):
        raise DeviceError(f"{', '.join(map(str, devices))}: name each core once; instances share cores by themselves")
    first, last = cores[0], cores[-1]
    if cores != list(range(first, last + 1)):
        raise DeviceError(
            f"cores {', '.join(map(str, cores))} are not one range, which a single stage with batches needs; give such "
            f"as cpu:{first}-{first + len(cores) - 1}"
        )
    count = len(cores) if instances is None else instances
    found = []
    if batch > 1 or count == 1:
        found.append(Mode("batch", (f"cpu:{first}" if first == last else f"cpu:{first}-{last}",), batch))
    if count > 1:
        found.append(Mode("instances", tuple(f"cpu:{cores[at % len(cores)]}" for at in range(count)), count))
    return tuple(found)


def options_text(model: str, mode: Mode, value: int, *, latency_s: float) -> str:
    """How to start this in a program.

    Examples
    --------
    >>> print(options_text("resnet50", Mode("instances", ("cpu:0", "cpu:1"), 2), 2, latency_s=0.2))
    with odin.Pipeline('resnet50', stages=['cpu:0', 'cpu:1']) as pipe:
        pipe.instances = 2  # or adjusted while it serves: with odin.Tuner(pipe, latency_s=0.2): ...
    """
    tuner = f"with odin.Tuner(pipe, latency_s={latency_s:g}): ..."
    options = ", share_devices=True" if len(set(mode.stages)) < len(mode.stages) else ""
    lines = []
    if mode.knob == "instances":
        lines = [f"    pipe.instances = {value}  # or adjusted while it serves: {tuner}"]
    elif value > 1:
        options += f", batch={value}, dynamic_batching=True"
        lines = [f"    ...  # to have the batch size adjusted while it serves: {tuner}"]
    return "\n".join(
        [f"with odin.Pipeline({model!r}, stages={list(mode.stages)}{options}) as pipe:", *(lines or ["    ..."])]
    )


def toml_text(model: str, mode: Mode, value: int, *, latency_s: float) -> str:
    """How to serve this by ``odin serve``: a model's file.

    Examples
    --------
    >>> print(toml_text("resnet50", Mode("batch", ("cpu:0-1",), 16), 8, latency_s=0.5))
    source = "resnet50"
    stages = ["cpu:0-1"]
    batch = 8
    dynamic_batching = true
    latency_ms = 500
    """
    stages = mode.stages if mode.knob == "batch" else mode.stages[: max(value, len(set(mode.stages)))]
    quoted = ", ".join(f'"{stage}"' for stage in stages)
    lines = [f'source = "{model}"', f"stages = [{quoted}]"]
    if mode.batch > 1 and value > 1:
        lines += [f"batch = {value}", "dynamic_batching = true"]
    return "\n".join([*lines, f"latency_ms = {latency_s * 1e3:g}"])
