"""A gateway whose callers have requests of one part."""

import math
from typing import Any

from odin.requests.gateway import Gateway
from odin.requests.replies import Reply
from odin.requests.request import Values

__all__ = ["OnePartGateway"]


class OnePartGateway(Gateway):
    """Takes one part at a time."""

    def submit(self, values: Values, *, deadline_s: float = math.inf, wait: bool = True) -> Reply[Any]:
        """As ``submit_all``."""
        return self.submit_all([values], deadline_s=deadline_s, wait=wait)[0]

    def enqueue(self, values: Values, *, deadline_s: float = math.inf, wait: bool = True) -> Reply[Any]:
        """As ``enqueue_all``."""
        return self.enqueue_all([values], deadline_s=deadline_s, wait=wait)[0]
