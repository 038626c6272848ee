"""What Ray would print into the program's output about its workers goes to the log instead.

Ray tells of each worker that dies, in a dozen lines, whether or not somebody has taken care of it; ODIN tells of stages
that are lost by itself. The texts are logged by ``odin.cluster.ray_messages`` at level INFO.
"""

from __future__ import annotations

import logging
from typing import Any

from ray._private import worker

__all__ = ["log_messages"]

_log = logging.getLogger(__name__)


def log_messages() -> None:
    """Have Ray's messages of this process logged, from now on. Seen in Ray 2.60; elsewhere they are printed as ever."""
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _log_message


def _log_message(data: dict[str, Any], *_: Any, **__: Any) -> None:
    for line in data.get("lines", ()):
        _log.info("%s", str(line).strip())
