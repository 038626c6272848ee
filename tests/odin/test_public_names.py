"""The public face: every name is there."""

from __future__ import annotations

import pytest

import odin


@pytest.mark.parametrize("name", odin.__all__)
def test_every_public_name_is_there(name):
    assert getattr(odin, name) is not None
    assert name in dir(odin)


def test_no_name_is_listed_twice_or_forgotten():
    assert sorted(odin._HOME) == sorted(odin.__all__)


def test_other_names_are_missed_as_usual():
    with pytest.raises(AttributeError, match="module 'odin' has no attribute 'Pipelines'"):
        _ = odin.Pipelines
