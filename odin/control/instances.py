"""How many stages take new requests: each is an *instance* of the whole model then, all with one copy of the weights.

Where all stages take new requests from one queue (the relay on CPUs of one node) each runs whole requests, so that a
stage that takes none is an instance less. It goes on living: it uses no CPU, and takes part again with the next request
after it is asked for. Of the stages that live the first ones take part, so that one that is lost is made up for by
another, and one that comes back does not make them more::

    3 stages, 2 asked for      live 0 1 2  ->  0 1 take part
    stage 0 is lost            live   1 2  ->  1 2
    stage 0 is back            live 0 1 2  ->  0 1
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

__all__ = ["check_instances", "taking_part"]


def taking_part(live: Sequence[int], asked: int) -> tuple[int, ...]:
    """Which stages take new requests if so many are asked for: the first ones that live, all if there are fewer.

    Examples
    --------
    >>> taking_part((0, 1, 2), 2), taking_part((1, 2), 2), taking_part((2,), 2)
    ((0, 1), (1, 2), (2,))
    """
    return tuple(live[:asked])


def check_instances(asked: Any, *, stages: int, policy: str, relays: bool, shares_queue: bool) -> int:
    """Return how many instances are asked for, as a number.

    Parameters
    ----------
    asked
        What was given.
    stages
        How many stages there are.
    policy, relays
        The policy in force, and whether it lets stages hand over where they are free.
    shares_queue
        Whether all stages can take new requests from one queue.

    Raises
    ------
    ValueError
        If it is no number from 1 to the number of stages, or stages do not take requests by themselves.
    """
    try:
        count = operator.index(asked)
    except TypeError:
        raise ValueError(f"instances={asked!r} is no whole number; give one from 1 to {stages}, the stages") from None
    if not 1 <= count <= stages:
        raise ValueError(
            f"instances={count} is not from 1 to {stages}, the number of stages; for more, start it with more stages "
            "(several may be on one core with share_devices=True)"
        )
    if stages > 1 and not shares_queue:
        raise ValueError(
            f"instances={count}: stages take requests by themselves only if all are on CPU cores of this machine; "
            "start a pipeline with such stages, or one pipeline for each instance"
        )
    if stages > 1 and not relays:
        raise ValueError(
            f"instances={count} means nothing under policy {policy!r}, which gives each stage layers of its own: set "
            "pipe.policy = 'relay' first"
        )
    return count
