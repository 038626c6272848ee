"""A pipeline as a deployment of Ray Serve, which then routes between several of them, restarts and scales them.

>>> from ray import serve
>>> import odin.ray_serve
>>> net = odin.ray_serve.deployment("resnet50", stages=2)  # doctest: +SKIP
>>> handle = serve.run(net.options(num_replicas=2).bind())  # doctest: +SKIP
>>> await handle.remote(image, timeout_s=0.2)  # doctest: +SKIP

Each replica is a pipeline whose stages are on the replica's own node. It has a placement group there with a CPU for
each core of its stages, from which they take theirs: so Serve places as many replicas on a node as it has free cores,
and a cluster that grows by itself sees what is missing. Arrays go by handle; for HTTP, write a deployment that takes
requests as you like them and calls the handle, or serve each node's pipeline by ``odin serve``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from odin.cluster.ray_signals import kept
from odin.errors import OdinError
from odin.options import check_timeout
from odin.pipeline import Pipeline
from odin.stages.actor import list_devices_here
from odin.stages.device import Device, DeviceError, parse_devices

__all__ = ["PipelineReplica", "deployment"]

_ATTEMPTS = 8
_LOG = logging.getLogger("ray.serve")  # what it tells is among the replica's own lines


def deployment(
    source: Any, *, stages: int | str | Sequence[str | Device] = 1, name: str = "odin", **options: Any
) -> Any:
    """Return a deployment of Ray Serve, each of whose replicas is a pipeline.

    Its handle takes the model's inputs, NumPy arrays or tensors, and ``timeout_s``; answers are of the same kind.
    Replicas, autoscaling and all else that Serve knows are set by ``.options(...)``.

    Parameters
    ----------
    source
        As for :class:`odin.Pipeline`. A module travels with the deployment: name a model or a file if it is large.
    stages
        So many cores of the replica's node, one for each stage, whichever are free there; or devices of that node,
        such as ``"cpu:0,cpu:1"``, of which there can be one replica on each node then. Devices that name their node
        (``"NODE/cpu:0"``) are taken wherever they are, by a single replica.
    name
        Of the deployment.
    options
        Of the pipeline, as for :class:`odin.Pipeline`.

    Raises
    ------
    ImportError
        If Ray Serve is not installed.
    ValueError
        If the stages are none, or an option is Ray Serve's to decide.

    Examples
    --------
    >>> deployment("resnet50", stages=0)
    Traceback (most recent call last):
    ...
    ValueError: stages=0: at least one is needed
    """
    devices = None if isinstance(stages, int) else parse_devices(stages)
    if isinstance(stages, int) and stages < 1:
        raise ValueError(f"stages={stages}: at least one is needed")
    if options.get("address") is not None:
        raise ValueError(f"address={options['address']!r}: a replica is in Serve's own cluster; leave it out")
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError(f"odin.ray_serve needs Ray Serve, pip install 'ray[serve]': {error}") from error
    own = options

    class Bound(PipelineReplica):  # Serve sends the class to its replicas, with what it refers to
        def __init__(self) -> None:
            super().__init__(source, stages=stages, **own)

    count = stages if isinstance(stages, int) else len(devices or ())
    under_way = options.get("max_in_flight") or 2 * count
    return serve.deployment(
        name=name,
        # Those that the pipeline has under way, and for each stage one that is on its way.
        max_ongoing_requests=under_way + count,
        ray_actor_options={"num_cpus": 0},
        **_group(count, devices),
    )(Bound)


def _group(count: int, devices: Sequence[Device] | None) -> dict[str, Any]:
    """The placement group of a replica; none where the stages may be on several nodes."""
    if devices is None:
        needed = {"CPU": float(count)}
    elif any(device.node for device in devices):
        return {}
    else:
        cores = sum(device.threads for device in devices if device.kind == "cpu")
        gpus = sum(device.kind == "gpu" for device in devices)
        needed = {name: float(number) for name, number in (("CPU", cores), ("GPU", gpus)) if number}
    return {"placement_group_bundles": [needed], "placement_group_strategy": "STRICT_PACK"}


class PipelineReplica:
    """A replica: a pipeline, in the process that Serve has started for it.

    Parameters
    ----------
    source, stages, options
        As for :func:`deployment`.
    """

    def __init__(self, source: Any, *, stages: int | str | Sequence[str | Device], **options: Any) -> None:
        with kept():
            self.pipeline = _open(source, stages, options)

    async def __call__(self, *inputs: Any, timeout_s: float | None = None) -> Any:
        """Serve a request: arrays in, arrays out; tensors in, tensors out."""
        check_timeout(timeout_s)
        as_arrays = all(isinstance(value, np.ndarray) for value in inputs)
        result = await self.pipeline.asubmit(*map(_tensor, inputs), timeout_s=timeout_s)
        if not as_arrays:
            return result
        return pytree.tree_map(lambda value: value.numpy() if isinstance(value, torch.Tensor) else value, result)

    def view(self) -> Any:
        """Return what ``odin top`` shows, a :class:`odin.PipelineView`: ``await handle.view.remote()``."""
        return self.pipeline.view()

    def check_health(self) -> None:
        """Asked by Serve, which replaces the replica if this raises: when no stage is left, and none was replaced."""
        stages = self.pipeline.view().stages
        if all(stage.state == "lost" for stage in stages):
            raise OdinError(f"all {len(stages)} stages of the pipeline are lost")

    def __del__(self) -> None:
        """Asked by Serve when the replica is to end, and no requests are under way any more."""
        if (pipeline := getattr(self, "pipeline", None)) is not None:
            pipeline.close(drain=False)


def _open(source: Any, stages: int | str | Sequence[str | Device], options: dict[str, Any]) -> Pipeline:
    if not isinstance(stages, int):
        return Pipeline(source, stages=stages, **options)
    attempt = 0
    while True:
        attempt += 1
        free = list_devices_here().free_cores
        if len(free) < stages:
            raise DeviceError(f"{stages} stages need as many free cores, and this node has {len(free)}: {list(free)}")
        # Replicas that start together choose different ones, mostly; whoever is second chooses anew.
        first = (attempt - 1) * stages % (len(free) - stages + 1)
        cores = [f"cpu:{core}" for core in free[first : first + stages]]
        try:
            return Pipeline(source, stages=cores, **options)
        except DeviceError as error:
            if attempt == _ATTEMPTS:
                raise
            _LOG.info("cores %s were taken meanwhile (%s); others are tried", ", ".join(cores), error)


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arrays from Ray's object store must not be changed, and are not
        return torch.from_numpy(value)
