"""Detectors by their text form: ``cusum``, ``threshold:ratio=0.3``, ``mypkg:MyDetector``, or an entry point's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from odin.monitor.detectors.base import Detector
from odin.partitioner.named import Family

__all__ = ["DETECTORS", "ENTRY_POINT_GROUP", "detector_names", "make_detector"]

ENTRY_POINT_GROUP = "odin.detectors"
"""Entry points by which installed distributions offer detectors of their own."""

_ARRAYS = ("changed", "disturbed", "level", "age", "noise")

_FAMILY = Family(
    kind="detector",
    group=ENTRY_POINT_GROUP,
    builtin={
        "cusum": "odin.monitor.detectors.cusum:CusumDetector",
        "threshold": "odin.monitor.detectors.threshold:ThresholdDetector",
        "page-hinkley": "odin.monitor.detectors.page_hinkley:PageHinkleyDetector",
        "adwin": "odin.monitor.detectors.adwin:AdwinDetector",
    },
    properties=_ARRAYS,
    methods={"update": 1, "rebase": 0},
    given="the number of streams",
)

DETECTORS = tuple(_FAMILY.builtin)
"""Built-in names that :func:`make_detector` knows; the last two need the package river."""


def detector_names() -> tuple[str, ...]:
    """All names that :func:`make_detector` knows: built-in ones, then those that installed distributions offer."""
    return _FAMILY.names()


def make_detector(text: str, streams: int) -> Detector:
    """Make a detector from its text form.

    ``NAME`` or ``NAME:parameter=value,parameter=value`` for those built in and those of the entry-point group
    ``odin.detectors``; ``module:Class``, with or without ``:parameter=value,...``, for any class that is made from the
    number of streams and has the members of :class:`~odin.monitor.detectors.Detector`. The grammar is in
    :mod:`odin.partitioner.named`.

    Parameters
    ----------
    text
        Such as ``"cusum:arl=1000"``.
    streams
        How many, one per stage, at least 1.

    Raises
    ------
    ValueError
        If there is no such detector or parameter, the value is not one it can have, the class cannot be imported or is
        no detector, or river is needed and not installed; says what there is and what to do.

    Examples
    --------
    >>> make_detector("threshold:ratio=0.5", 3).disturbed
    array([False, False, False])
    """
    detector: Any = _FAMILY.make(text, streams)
    for name in _ARRAYS:
        shape = np.shape(getattr(detector, name))
        if shape != (streams,):
            raise ValueError(
                f"detector {text!r}: {name} has shape {shape} for {streams} streams; it is one value per stream"
            )
    made: Detector = detector
    return made
