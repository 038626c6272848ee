"""What can be told wrong about a pipeline's options before anything is started."""

from __future__ import annotations

import math
from numbers import Real

from monitor.detectors import Detector
from odin.detectors import make_detector
from partitioner.chain import Chain
from stages.executor import PRECISIONS

__all__ = ["BatchSizeError", "check_batch", "check_options", "check_timeout", "leading_size"]

_TRANSPORTS = ("auto", "shm", "tcp")


class BatchSizeError(ValueError):
    """A micro-batch of a size that the model does not take.

    Attributes
    ----------
    needed
        The one that it takes.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


def check_options(
    *, precision: str, transport: str, batch: int | None, max_in_flight: int | None, detector: Detector | str
) -> None:
    """Raise ``ValueError`` if an option has a value that no pipeline can have."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if transport not in _TRANSPORTS:
        raise ValueError(f"transport {transport!r} is unknown; choose one of {', '.join(_TRANSPORTS)}")
    for name, value in (("batch", batch), ("max_in_flight", max_in_flight)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")
    if isinstance(detector, str):
        make_detector(detector, 1)  # how many stages there are is not known yet


def check_timeout(timeout_s: float | None) -> float:
    """Return the seconds that a request may take, infinity for ``None``; ``ValueError`` if it is no such number.

    What is left of a caller's own deadline may be zero or less: that is a deadline which has passed, and no mistake.
    """
    if timeout_s is None:
        return math.inf
    if isinstance(timeout_s, Real) and not isinstance(timeout_s, bool):
        try:
            seconds = float(timeout_s)
        except OverflowError:
            seconds = math.inf if timeout_s > 0 else -math.inf
        if not math.isnan(seconds):
            return seconds
    raise ValueError(f"timeout_s={timeout_s!r}; give seconds as a number, or None for no deadline")


def leading_size(chain: Chain) -> int:
    """Leading size of the chain's example input; 1 for inputs without dimensions."""
    return max(1, chain.inputs[0].shape[0]) if chain.inputs and chain.inputs[0].shape else 1


def check_batch(chain: Chain, batch: int | None) -> int:
    """Return the largest micro-batch: what was asked for, else the example's; ``ValueError`` if it does not work."""
    example = leading_size(chain)
    if batch is not None and batch != example and not chain.dynamic_batch:
        raise BatchSizeError(
            f"batch={batch}, but {chain.name} works for leading size {example} only: "
            f"give an example_input with leading size {batch}",
            example,
        )
    return batch or example
