"""What takes long is told while it does: torch.export of a large model takes minutes, in which nothing was said."""

from __future__ import annotations

import logging

from example_models import Residual, ShapeDependent, image, seeded

from odin.phases import tell_phases
from partitioner.chain import build_chain


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
    logger = logging.getLogger("partitioner")
    before = logger.level, list(logger.handlers)
    with tell_phases(print):
        assert logger.isEnabledFor(logging.INFO)
    assert (logger.level, logger.handlers) == before
