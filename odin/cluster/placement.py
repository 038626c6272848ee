"""Where stages go: from device texts to nodes of the cluster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from odin.cluster import ray_calls
from odin.options import refuse_twice
from odin.stages.actor import NodeDevices, StageInfo, list_devices_here, list_node_devices
from odin.stages.device import Device, DeviceError, describe_cores, parse_devices, within_quota
from odin.stages.lease import refuse_taken_devices

__all__ = ["check_stage_count", "place", "warn_of_quotas"]

_LISTING_TIMEOUT_S = 60.0


def place(
    stages: str | Sequence[str | Device], *, share: bool = False, embedded: bool = False
) -> list[tuple[Device, str]]:
    """Find the node of each stage.

    Parameters
    ----------
    stages
        One device per stage, or ``"auto"``: one stage per free GPU of the cluster if there is any, else one per free
        core, those of this node first. Where a CPU quota allows less than a node's cores, only as many cores of that
        node are taken.
    share
        Accept devices that other pipelines hold.
    embedded
        Whether the cluster is this process's own, so that it can see for itself what there is.

    Returns
    -------
    list of (Device, str)
        For each stage its device, the node left out, and the node's id. There may be more than the chain has layers.

    Raises
    ------
    DeviceError
        If a node or device does not exist, or a device is named twice without ``share``; the message names what there
        is. If another pipeline holds a device of this node: its stages may have all the CPUs that Ray gives, and Ray
        would keep the new ones waiting.
    """
    if stages == "auto":
        return _place_automatically(embedded)
    devices = parse_devices(stages)
    alive = _alive_nodes()
    placed = [(device._replace(node=""), _find_node(device.node, alive)) for device in devices]
    refuse_twice(placed, share=share)
    here = _find_node("", alive)
    refuse_taken_devices([device for device, node in placed if node == here], share=share)
    return placed


def check_stage_count(count: int, *, layer_count: int) -> None:
    """Raise :class:`DeviceError` if more stages were asked for than there are layers."""
    if count > layer_count:
        raise DeviceError(f"{count} stages for {layer_count} layers: use at most {layer_count} stages")


def _alive_nodes() -> list[dict[str, object]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _find_node(name: str, alive: Sequence[dict[str, object]]) -> str:
    """Return the id of the node called ``name``; without a name that of the node on which this process runs."""
    if not name:
        return str(ray.get_runtime_context().get_node_id())
    matches = {
        str(node["NodeID"])
        for node in alive
        if str(node["NodeID"]).startswith(name) or name in (node["NodeManagerAddress"], node["NodeManagerHostname"])
    }
    if len(matches) == 1:
        return matches.pop()
    there = ", ".join(f"{str(node['NodeID'])[:8]} ({node['NodeManagerAddress']})" for node in alive)
    problem = "names no node" if not matches else f"names {len(matches)} nodes"
    raise DeviceError(f"{name!r} {problem} of the cluster; use a node's id, address or host name: {there}")


def _place_automatically(embedded: bool) -> list[tuple[Device, str]]:
    nodes = _list_devices(embedded)
    gpus = [(Device("gpu", (index,)), node.node_id) for node in nodes for index in node.free_gpus]
    cores = [(Device("cpu", (index,)), node.node_id) for node in nodes for index in _cores_to_take(node)]
    chosen = gpus or cores
    if not chosen:
        there = "; ".join(f"{node.host} has cores {describe_cores(node.cores)}{_quota_text(node)}" for node in nodes)
        raise DeviceError(f"no free core or GPU is left ({there}): close a pipeline, or name devices and share them")
    return chosen


def _list_devices(embedded: bool) -> Sequence[NodeDevices]:
    """List the devices of every node, this one first."""
    if embedded and torch.cuda.device_count() == 0:  # to name GPUs would start CUDA in this process
        return [list_devices_here()]  # a task would wait for a worker, which imports all that a stage does
    here = _find_node("", ())
    alive = sorted(_alive_nodes(), key=lambda node: (node["NodeID"] != here, str(node["NodeID"])))
    with ray_calls.calling():
        listings = [
            list_node_devices.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False)
            ).remote()
            for node in alive
        ]
    try:
        nodes: list[NodeDevices] = ray_calls.get(listings, timeout_s=_LISTING_TIMEOUT_S)
    except DeviceError as error:  # Ray's copy of it, whose text is a traceback
        raise DeviceError(str(getattr(error, "cause", error))) from error
    return nodes


def _cores_to_take(node: NodeDevices) -> tuple[int, ...]:
    """Free cores of a node, no more than its quota leaves beside the cores that pipelines hold there."""
    held = len(node.cores) - len(node.free_cores)
    return node.free_cores[: max(0, node.allowed_cores - held)]


def _quota_text(node: NodeDevices) -> str:
    less = node.allowed_cores < len(node.cores)
    return f" and a CPU quota for {node.allowed_cores} of them" if less else ""


def warn_of_quotas(placed: Sequence[tuple[Device, str]], infos: Sequence[StageInfo]) -> None:
    """Warn where the stages of a node were given more cores than its CPU quota allows."""
    nodes = {info.node_id: info for info in infos if info.quota_cores is not None}
    for node_id, info in nodes.items():
        devices = {device.indices for device, node in placed if node == node_id and device.kind == "cpu"}
        cores = {core for indices in devices for core in indices}
        quota = info.quota_cores
        if quota is not None and len(cores) > quota:
            threads = [within_quota(len(indices), quota) for indices in devices]
            what = "they will be throttled" if sum(threads) > quota else f"they compute with {sum(threads)} threads"
            warnings.warn(
                f"the stages on {info.host} have {len(cores)} cores ({describe_cores(cores)}), but a CPU quota of "
                f"{quota:.3g} CPUs holds there: {what}; name fewer cores, or raise the container's quota",
                stacklevel=4,
            )
