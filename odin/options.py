"""Checks of a pipeline's options that need neither torch nor Ray.

They run before anything is imported, traced or started, so that a wrong option is reported at once.
"""

from __future__ import annotations

import math
import operator
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odin.cluster.reachable import check_address
from odin.control.default_policy import AUTO
from odin.control.detectors import make_detector
from odin.monitor.detectors import Detector
from odin.monitor.eventlog import EventLog, refuse_taken
from odin.partitioner.engines.names import AUTO as AUTO_ENGINE
from odin.partitioner.engines.names import TORCH, check_engine, check_installed
from odin.partitioner.files import check_writable
from odin.partitioner.plan import Plan
from odin.partitioner.policies import DelayedOraclePolicy, Policy, make_policy
from odin.requests.admission import PREDICT, check_admission
from odin.stages.compute.precision import BFLOAT16, FLOAT32, INT8, check_precision, why_not_on_cpu
from odin.stages.device import Device, DeviceError, check_cores, parse_devices, usable_cores
from odin.stages.lease import free_indices, refuse_taken_devices
from odin.stages.pacer import check_share

if TYPE_CHECKING:
    from odin.partitioner.chain import Chain

__all__ = [
    "BatchSizeError",
    "check_batch",
    "check_calibration",
    "check_count",
    "check_joins",
    "check_on_this_machine",
    "check_options",
    "check_policy",
    "check_precision_fits",
    "check_timeout",
    "leading_size",
    "refuse_simulation_only",
    "refuse_twice",
]

_TRANSPORTS = ("auto", "shm", "tcp")
_LOOPBACK = ("127.0.0.1", "localhost")
"""Names, beside the host name, of the only node of a Ray that is started for one pipeline."""
_GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""At least one of these exists wherever torch can use a GPU: NVIDIA's driver, AMD's, and that of WSL."""


_LONGEST_WAIT_MS = 3_600_000

_ONE_SAMPLE = (
    "dynamic_batching=True joins requests up to batch samples, and batch is 1: give a larger one (batch=8, --batch 8)"
)


class BatchSizeError(ValueError):
    """A micro-batch size that the model does not accept.

    Attributes
    ----------
    needed
        The size that it accepts.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


def check_options(
    *,
    stages: str | Sequence[str | Device] = "auto",
    plan: Plan | str | None = None,
    policy: Policy | str = AUTO,
    detector: Detector | str = "cusum",
    log: str | Path | EventLog | None = None,
    on_event: Any = None,
    batch: int | None = None,
    max_in_flight: int | None = None,
    max_waiting: int | None = None,
    admission: str = PREDICT,
    address: str | None = None,
    share_devices: bool = False,
    precision: str = "float32",
    engine: str | None = None,
    calibration: Any = None,
    transport: str = "auto",
    dynamic_batching: bool = False,
    batch_wait_ms: float = 0.0,
    share: float = 1.0,
) -> None:
    """Raise ``ValueError`` if an option of ``odin.Pipeline`` is invalid for every model.

    Raises
    ------
    ConnectionError
        If nothing answers at ``address``.
    """
    check_precision(precision)
    engine = engine or AUTO_ENGINE  # which one it is, the model says
    check_engine(engine)
    if engine != AUTO_ENGINE:
        check_installed(engine)
    if transport not in _TRANSPORTS:
        raise ValueError(f"transport {transport!r} is unknown; choose one of {', '.join(_TRANSPORTS)}")
    check_count("batch", batch)
    check_count("max_in_flight", max_in_flight)
    check_count("max_waiting", max_waiting)
    check_admission(admission)
    if dynamic_batching not in (True, False):
        raise ValueError(f"dynamic_batching={dynamic_batching!r} is neither True nor False; give one of them")
    _check_wait(batch_wait_ms, dynamic_batching=dynamic_batching)
    if dynamic_batching and batch == 1:
        raise ValueError(_ONE_SAMPLE)
    check_share(share)
    if on_event is not None and not callable(on_event):
        raise ValueError(f"on_event={on_event!r} cannot be called; give a function that takes an event")
    devices = None if isinstance(stages, str) and stages == "auto" else parse_devices(stages)
    check_engine_fits(engine, devices or ())
    check_calibration(precision, calibration)
    alone = address is None and not _connected()
    if devices is not None:
        check_precision_fits(precision, engine, devices, on_this_machine=alone)
    _check_plan(plan, devices)
    check_policy(policy)
    _check_detector(detector)
    _check_log(log)
    if devices is not None:
        refuse_twice(((device, device.node) for device in devices), share=share_devices)
    if alone:
        _check_here(devices, share=share_devices)
    if address is not None and not _connected():
        check_address(address)


def check_engine_fits(engine: str, devices: Sequence[Device]) -> None:
    """Raise ``ValueError`` if an engine cannot run on one of the devices."""
    on_gpu = [device for device in devices if device.kind == "gpu"]
    if on_gpu and engine not in (TORCH, AUTO_ENGINE):
        raise ValueError(f"engine {engine!r} runs on CPU cores only, and there is {on_gpu[0]}: choose engine 'torch'")


def check_precision_fits(
    precision: str, engine: str, devices: Sequence[Device], *, on_this_machine: bool = True
) -> None:
    """Raise ``ValueError`` if stages on these devices cannot compute in a precision.

    Parameters
    ----------
    on_this_machine
        Whether the devices are here, so that this processor says what they have; other nodes' stages ask theirs.
    """
    if precision == FLOAT32:
        return
    on_gpu = [device for device in devices if device.kind == "gpu"]
    if on_gpu and precision == INT8:
        raise ValueError(
            f"precision 'int8' is one of CPU stages, and there is {on_gpu[0]}: choose 'float16', or stages on CPU cores"
        )
    if on_gpu:  # CPU stages beside them compute in float32
        return
    if problem := why_not_on_cpu(precision, engine, on_this_machine=on_this_machine):
        raise ValueError(problem)


def check_calibration(precision: str, calibration: Any) -> None:
    """Raise ``ValueError`` if examples are missing, or have no use."""
    if precision == INT8 and calibration is None:
        raise ValueError(
            "precision 'int8' needs examples by which the model is quantised: give a hundred images like those to come "
            "(calibration=, --calibration FOLDER)"
        )
    if calibration is not None and precision not in (INT8, BFLOAT16):
        raise ValueError(f"calibration goes with precision 'int8' or 'bfloat16', not with {precision!r}: leave it out")


def check_count(name: str, value: Any) -> None:
    """Raise ``ValueError`` if an option is neither None nor a whole number of at least 1."""
    if value is None:
        return
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} is no whole number; it must be at least 1") from None
    if count < 1:
        raise ValueError(f"{name}={count}; it must be at least 1")


def _check_wait(batch_wait_ms: Any, *, dynamic_batching: bool) -> None:
    known = isinstance(batch_wait_ms, Real) and not isinstance(batch_wait_ms, bool)
    if not known or not 0 <= batch_wait_ms <= _LONGEST_WAIT_MS:
        raise ValueError(
            f"batch_wait_ms={batch_wait_ms!r}; give milliseconds, 0 or more, up to {_LONGEST_WAIT_MS} (an hour)"
        )
    if batch_wait_ms and not dynamic_batching:
        raise ValueError(
            f"batch_wait_ms={batch_wait_ms} is how long requests wait to be joined, and they are not: set "
            "dynamic_batching=True as well (--dynamic-batching)"
        )


def _check_plan(plan: Plan | str | None, devices: Sequence[Device] | None) -> None:
    if plan is None:
        return
    if isinstance(plan, str) and "@" in plan:
        raise ValueError(f"plan={plan!r} looks like windows; begin with a plan, such as 7|11, then migrate({plan!r})")
    if isinstance(plan, str):
        plan = Plan.parse(plan)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r} is no plan; give its text, such as '7|11', or Plan((7, 11))")
    if plan.layer_count == 0:
        raise ValueError(f"plan {plan} has no layers; give each stage some, such as 7|11")
    if devices is not None and len(devices) != len(plan):
        raise ValueError(
            f"plan {plan} has {len(plan)} stages, the pipeline has {len(devices)} ({', '.join(map(str, devices))}); "
            "give as many counts as devices"
        )


def check_policy(policy: Policy | str) -> None:
    """Raise ``ValueError`` for what is no policy, or none that can serve."""
    if isinstance(policy, str) and policy.strip() == AUTO:
        return
    if isinstance(policy, str):
        policy = make_policy(policy)
    _check_object("policy", policy, ("name", "start", "decide"), "'auto'")
    refuse_simulation_only(policy)


def refuse_simulation_only(policy: Policy) -> None:
    """Raise ``ValueError`` for a policy that needs the true layer times, which only a simulation has."""
    if isinstance(policy, DelayedOraclePolicy):
        raise ValueError(
            f"policy {policy.name} needs the true times of all layers, which only a simulation knows; live, "
            "'oracle' tries all plans"
        )


def _check_detector(detector: Detector | str) -> None:
    if isinstance(detector, str):
        make_detector(detector, 1)  # the number of stages is not known yet
    else:
        _check_object("detector", detector, ("update", "rebase", "changed", "disturbed"), "'cusum'")


def _check_object(kind: str, given: Any, members: Sequence[str], text: str) -> None:
    if isinstance(given, type):
        raise ValueError(f"{kind}={given.__name__} is a class; give an object of it, or its text, such as {text}")
    if missing := [name for name in members if not hasattr(given, name)]:
        raise ValueError(
            f"{kind}={given!r} has no {', no '.join(missing)}; give a {kind}'s text, such as {text}, or an object "
            "like those of docs/extending.md"
        )


def _check_log(log: str | Path | EventLog | None) -> None:
    if log is None or isinstance(log, EventLog):
        return
    if not isinstance(log, str | os.PathLike):
        raise ValueError(f"log={log!r} is no file; give its path")
    check_writable(log, "event log")
    refuse_taken(log)


def _connected() -> bool:
    """Whether this process is connected to a Ray cluster, whose nodes may have other cores than this machine."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _check_here(devices: Sequence[Device] | None, *, share: bool) -> None:
    """Check the devices of this machine, on which all stages will run."""
    if devices is None and not has_gpu_driver() and not free_indices("cpu", cores := usable_cores()):
        # The error names the process that holds the first core.
        refuse_taken_devices([Device("cpu", cores[:1])])
    for device in devices or ():
        if device.node and device.node not in (platform.node(), *_LOOPBACK):
            raise DeviceError(
                f"{device} names a node, but the pipeline is in no cluster: leave the node out "
                f"({device._replace(node='')}), or give the cluster's address (address=, --address HOST:PORT)"
            )
        check_on_this_machine(device)
    refuse_taken_devices(devices or (), share=share)


def check_on_this_machine(device: Device) -> None:
    """Raise :class:`DeviceError` if a core is not usable here, or a GPU is named where there is no GPU driver."""
    if device.kind == "cpu":
        check_cores(device.indices)
    elif not has_gpu_driver():
        raise DeviceError(
            f"there is no {device} on this machine: no GPU driver is installed; name cores, such as cpu:0"
        )


def has_gpu_driver() -> bool:
    """Whether a GPU driver is installed; without one torch cannot use any GPU."""
    return any(Path(file).exists() for file in _GPU_FILES)


def refuse_twice(placed: Iterable[tuple[Device, str]], *, share: bool) -> None:
    """Raise :class:`DeviceError` if two of the devices, each with its node, have a core or GPU in common."""
    seen: dict[tuple[str, str, int], int] = {}
    for stage, (device, node) in enumerate(placed):
        for index in device.indices:
            if seen.setdefault((node, device.kind, index), stage) != stage and not share:
                raise DeviceError(
                    f"two stages are on {device.kind}:{index}; give each its own, or let them share it "
                    "(share_devices=True, --share-devices)"
                )


def check_timeout(timeout_s: float | None) -> float:
    """Return the seconds that a request may take, infinity for ``None``; ``ValueError`` if it is not a number.

    Zero or less is valid: the time left of a caller's own deadline that has passed.
    """
    if timeout_s is None:
        return math.inf
    if isinstance(timeout_s, Real) and not isinstance(timeout_s, bool):
        try:
            seconds = float(timeout_s)
        except OverflowError:
            seconds = math.inf if timeout_s > 0 else -math.inf
        if not math.isnan(seconds):
            return seconds
    raise ValueError(f"timeout_s={timeout_s!r}; give seconds as a number, or None for no deadline")


def leading_size(chain: Chain) -> int:
    """Leading size of the chain's example input; 1 for inputs without dimensions."""
    return max(1, chain.inputs[0].shape[0]) if chain.inputs and chain.inputs[0].shape else 1


def check_batch(chain: Chain, batch: int | None) -> int:
    """Return the largest micro-batch: ``batch``, or the example's; :class:`BatchSizeError` if the model rejects it."""
    example = leading_size(chain)
    if batch is not None and batch != example and not chain.dynamic_batch:
        raise BatchSizeError(
            f"batch={batch}, but {chain.name} works for leading size {example} only: "
            f"give an example_input with leading size {batch}",
            example,
        )
    return example if batch is None else operator.index(batch)


def check_joins(chain: Chain, batch: int) -> None:
    """Raise ``ValueError`` if requests for a chain cannot be joined into micro-batches of so many samples."""
    if not chain.dynamic_batch:
        raise ValueError(
            f"dynamic_batching=True, but samples of {chain.name} depend on each other, or it works for leading size "
            f"{leading_size(chain)} only: requests of several callers cannot be computed together; leave it out"
        )
    if batch == 1:
        raise ValueError(_ONE_SAMPLE)
