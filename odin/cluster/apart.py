"""Functions run in a process of their own: what they import and allocate is gone when they have returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from odin.cluster import ray_calls
from odin.cluster.ray_calls import calling

__all__ = ["run_apart"]


def run_apart(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function in a new process of this node, wait, and return what it returns. Ray must be running.

    For work that is done once and leaves much behind in a process that lives long: exporting a ResNet50 to ONNX leaves
    300 MiB of modules and caches.

    Parameters
    ----------
    function
        Picklable, as are its arguments and its result. Numpy arrays among them travel through the object store: as
        arguments and results they are views of it that cannot be written.

    Raises
    ------
    Exception
        What the function raises, of its own type.
    """
    with calling():
        here = NodeAffinitySchedulingStrategy(str(ray.get_runtime_context().get_node_id()), soft=False)
        remote: Any = ray.remote(num_cpus=0, max_calls=1)(function)  # the process ends after one call
        call = remote.options(scheduling_strategy=here).remote(*args, **options)
    try:
        return ray_calls.get(call, timeout_s=float("inf"))
    except RayTaskError as error:  # whose text is a traceback
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, Exception) else error) from None
