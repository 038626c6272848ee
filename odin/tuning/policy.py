"""What a policy of a knob is: latencies in, the knob's value out."""

from __future__ import annotations

import operator
from typing import Literal, Protocol, get_args

__all__ = ["KNOBS", "POLICIES", "KnobName", "KnobPolicy", "PolicyName", "check_range", "make_knob_policy"]

KnobName = Literal["batch", "instances"]
PolicyName = Literal["dnnscaler", "aimd"]
KNOBS: tuple[KnobName, ...] = get_args(KnobName)
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


class KnobPolicy(Protocol):
    """Turns a knob so that a latency stays just below a limit.

    Attributes
    ----------
    name
        Its text form.
    value
        The knob's value now, 1 or more.
    """

    name: str
    value: int

    def update(self, latency_s: float) -> int:
        """Take the latency of the last period, in seconds; returns the knob's value from now on."""


def check_range(knob: str, start: int, largest: int) -> int:
    """Return the largest value of a knob.

    Raises
    ------
    ValueError
        If it is no whole number of at least 1, or the start is not from 1 to it.
    """
    try:
        start, largest = operator.index(start), operator.index(largest)
    except TypeError:
        raise ValueError(f"{knob}: start={start!r} and largest={largest!r} must be whole numbers") from None
    if largest < 1 or not 1 <= start <= largest:
        raise ValueError(f"{knob}: start={start} is not from 1 to largest={largest}; give a start in that range")
    return largest


def make_knob_policy(
    name: str, *, knob: KnobName, limit_s: float, largest: int, start: int = 1, free: int = 1
) -> KnobPolicy:
    """Make the policy of this name for a knob; ``free`` as for :class:`~odin.tuning.instance_steps.InstanceSteps`.

    Raises
    ------
    ValueError
        If there is none of that name, or a number is not valid.

    Examples
    --------
    >>> type(make_knob_policy("dnnscaler", knob="batch", limit_s=0.05, largest=32)).__name__
    'BatchSearch'
    """
    from odin.tuning.aimd import Aimd
    from odin.tuning.batch_search import BatchSearch
    from odin.tuning.instance_steps import InstanceSteps

    if knob not in KNOBS:
        raise ValueError(f"knob {knob!r} is unknown; choose one of {', '.join(KNOBS)}")
    if name == "aimd":
        return Aimd(limit_s=limit_s, largest=largest, start=start, knob=knob)
    if name == "dnnscaler":
        if knob == "batch":
            return BatchSearch(limit_s=limit_s, largest=largest, start=start)
        return InstanceSteps(limit_s=limit_s, largest=largest, start=start, free=free)
    raise ValueError(f"policy {name!r} is unknown; choose one of {', '.join(POLICIES)}")
