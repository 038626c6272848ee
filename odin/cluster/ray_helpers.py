"""An embedded Ray without the processes that one program's pipelines have no use for.

======================  ==========================================  ==========================
process                 what it does                                how it is left out
======================  ==========================================  ==========================
API server (dashboard)  web pages; ``include_dashboard=False``      not started here
                        leaves the process, which Ray waits for
autoscaler monitor      asks a cloud for machines                   ``ray start --no-monitor``
log monitor             prints workers' output in the driver        ``ray start
                                                                    --include-log-monitor``
idle workers            one per core, for tasks to come             ``RAY_prestart_worker_first_
                                                                    driver=0``
agents of the raylet    metrics, runtime environments               needed: the raylet ends
                                                                    without them
======================  ==========================================  ==========================

``ray.init`` cannot be told any of this but the idle workers. Seen in Ray 2.60; a Ray in which these places are called
otherwise starts its helpers as ever.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import parameter, services

__all__ = ["without_helpers"]

_IDLE_WORKERS = "RAY_prestart_worker_first_driver"
_LEFT_OUT = {"no_monitor": True, "include_log_monitor": False}


@contextmanager
def without_helpers() -> Iterator[None]:
    """Have ``ray.init`` start no helpers in this block."""
    asked = os.environ.get(_IDLE_WORKERS)
    os.environ.setdefault(_IDLE_WORKERS, "0")  # the raylet reads it, which inherits it
    parameters: Any = parameter.RayParams
    start_api_server: Any = services.start_api_server
    known = inspect.signature(parameters).parameters
    left_out = {name: value for name, value in _LEFT_OUT.items() if name in known}
    parameter.RayParams = functools.partial(parameters, **left_out)  # type: ignore[misc, assignment]
    services.start_api_server = _start_no_api_server
    try:
        yield
    finally:
        if asked is None:
            del os.environ[_IDLE_WORKERS]
        parameter.RayParams = parameters  # type: ignore[misc]
        services.start_api_server = start_api_server


def _start_no_api_server(*_: Any, **__: Any) -> tuple[str, None]:
    """Answer as Ray does where the API server has no pages, and as where it could not be started."""
    return "", None
