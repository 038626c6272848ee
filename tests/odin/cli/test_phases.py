"""What takes long is told while it does: torch.export of a large model takes minutes, in which nothing was said."""

from __future__ import annotations

import contextlib
import logging

from example_models import Residual, ShapeDependent, image, seeded

from odin.partitioner.chain import build_chain
from odin.process.phases import phase, tell_phases


def test_capturing_with_export_is_told_as_it_begins():
    told: list[str] = []
    with tell_phases(told.append):
        build_chain(seeded(ShapeDependent), (image(),))
    assert told == ["capturing the model with torch.export ..."]


def test_what_is_quick_is_not_told():
    told: list[str] = []
    with tell_phases(told.append):
        build_chain(seeded(Residual), (image(),))
    assert told == []


def test_logging_is_left_as_it_was():
    loggers = [logging.getLogger(name) for name in ("odin.partitioner", "odin.startup")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    with tell_phases(print):
        assert all(logger.isEnabledFor(logging.INFO) for logger in loggers)
    assert [(logger.level, logger.handlers) for logger in loggers] == before


def test_a_phase_is_told_with_its_seconds_once_it_is_done():
    """There was one line for all that a start does: nobody saw which part of it took a minute."""
    told: list[str] = []
    ticks = iter([10.0, 12.5, 20.0])
    with tell_phases(told.append):
        with phase("Ray started", clock=lambda: next(ticks)):
            assert told == []
        with contextlib.suppress(ValueError), phase("never done", clock=lambda: next(ticks)):
            raise ValueError
    assert told == ["  2.50 s  Ray started"]
