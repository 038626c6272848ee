"""Processes of stages, and of their kind, as Ray actors: started on their node, and ended."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from odin.cluster.ray_calls import calling
from odin.errors import StageLostError, first_line
from odin.partitioner.engines.names import TORCH
from odin.process.groups import has_ended
from odin.stages.actor import StageActor
from odin.stages.channel.link import ChannelClosedError
from odin.stages.device import Device

__all__ = ["ACTOR_PREFIX", "create_actor", "kill_actor", "kill_process", "starting", "wait_until_ended"]

ACTOR_PREFIX = "odin-pipeline-"
"""Of the name of each pipeline's first stage in the cluster."""

_END_S = 2.0
_ACTOR = "ray::"
"""Begins the command line of Ray's actors."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Tell what it means that a process ends in the middle of a start.

    Raises
    ------
    StageLostError
        If one did.
    """
    try:
        yield
    except (RayActorError, ChannelClosedError) as error:
        raise StageLostError(
            "a stage's process ended while it was started, perhaps killed for want of memory (dmesg tells then): start "
            f"again, with fewer stages or a smaller batch if it was; {type(error).__name__}: {first_line(error)}"
        ) from error


def create_actor(
    index: int,
    device: Device,
    node_id: str,
    label: str,
    *,
    share: bool,
    precision: str = "float32",
    engine: str = TORCH,
    largest_share: float = 1.0,
    kind: type[StageActor] = StageActor,
) -> Any:
    """Have Ray start a stage's process, or that of another kind of actor, on its node."""
    options: dict[str, Any] = {
        "num_cpus": 0 if share or device.kind == "gpu" else device.threads,
        "scheduling_strategy": _strategy(node_id),
        # Control calls must not wait for one another: a long prepare beside a ping.
        "max_concurrency": 4,
        "max_restarts": 0,
    }
    if index == 0 and kind is StageActor:  # by this name "odin top" on another node finds the pipeline
        options["name"] = f"{ACTOR_PREFIX}{uuid.uuid4().hex[:12]}"
    if device.kind == "gpu":
        options["num_gpus"] = 0 if share else 1
        # The stage picks its GPU by number itself; Ray only keeps count.
        options["runtime_env"] = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    with calling():
        remote: Any = ray.remote(kind).options(**options)
        return remote.remote(
            index, str(device), label, share=share, precision=precision, engine=engine, largest_share=largest_share
        )


def _strategy(node_id: str) -> Any:
    """A stage goes to its node, and takes its CPUs from what this process's placement group has reserved there."""
    group = get_current_placement_group()
    if group is not None:
        nodes = placement_group_table(group)["bundles_to_node_id"]
        for bundle, node in nodes.items():
            if node == node_id:
                return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=int(bundle))
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def kill_actor(actor: Any) -> None:
    """Ask Ray to end an actor, which it does not do while Ray is away, or the process is stopped."""
    with contextlib.suppress(RayError, ValueError, ConnectionError, StageLostError), calling():
        ray.kill(actor)


def kill_process(pid: int) -> None:
    """End a stage's process on this machine; nothing happens if the number is another program's by now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if _is_actor(process):
            process.kill()


def wait_until_ended(pids: Iterable[int]) -> None:
    """Wait until processes of actors on this machine that were asked to end have given back their devices.

    Those that are stopped, as by SIGSTOP, cannot follow Ray's request to end, and are killed. So are, after a while,
    others: if Ray is gone, nobody has asked them.
    """
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if _may_hold_a_lease(process):
                processes.append(process)
                if process.status() == psutil.STATUS_STOPPED:
                    process.kill()
    _, left = psutil.wait_procs(processes, timeout=_END_S)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=_END_S)


def _may_hold_a_lease(process: psutil.Process) -> bool:
    """Whether it is an actor, or is ending and may be one.

    The kernel gives back a process's memory, and its command line with it, before its files, and ends one thread after
    another: the first may be a zombie while others still have the files open.
    """
    try:
        words = process.cmdline()
    except psutil.ZombieProcess:
        return not has_ended(process)
    return not words or _ACTOR in words[0]


def _is_actor(process: psutil.Process) -> bool:
    """Whether it is one of Ray's actors, and not another program that has the number by now."""
    return any(_ACTOR in word for word in process.cmdline()[:1])
