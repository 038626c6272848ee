"""The public face: every name is there, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PROMPT_S

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


@pytest.mark.slow
@pytest.mark.parametrize("command", ["top", "replay", "inject", "--version-of-nothing"])
def test_light_commands_import_neither_torch_nor_ray(command):
    code = f"""
import contextlib, sys
from odin.cli.main import main
with contextlib.suppress(SystemExit):
    main([{command!r}, "--help"])
heavy = sorted({{"torch", "ray"}} & set(sys.modules))
print("heavy:", *heavy)
"""
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROMPT_S, check=True)
    assert heavy.stdout.splitlines()[-1].strip() == "heavy:"
