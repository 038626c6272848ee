"""Makes Ray use the loopback address where that is requested.

Ray's servers bind to loopback alone only if the node's address is ``127.0.0.1``, and ``ray.init`` and ``ray start``
replace that address by one that other machines reach, without a word. Run as a module this is ``ray`` with the
address left as it was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services

__all__ = ["LOOPBACK", "loopback_kept"]

LOOPBACK = "127.0.0.1"


@contextmanager
def loopback_kept() -> Iterator[None]:
    """Have Ray take loopback addresses literally."""
    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: LOOPBACK if host == "localhost" else host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


if __name__ == "__main__":
    from ray.scripts.scripts import main

    with loopback_kept():
        main()
