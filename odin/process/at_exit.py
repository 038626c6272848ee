"""What a program forgets to close is closed when it ends."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["close_at_exit"]


class Closes(Protocol):
    """Something with processes behind it."""

    def close(self, *, drain: bool) -> None:
        """End it."""


def close_at_exit(owner: Closes) -> Callable[[], None]:
    """Close ``owner`` when the program ends, before Ray, which its processes need, is shut down.

    Returns what was registered, for ``atexit.unregister``. The owner is not kept alive by it.
    """
    reference = weakref.ref(owner)

    def close() -> None:
        if (forgotten := reference()) is not None:
            forgotten.close(drain=False)

    atexit.register(close)
    return close
