"""The public fakes: their examples run, and nothing heavy comes with them."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import odin.monitor.json_text
import odin.partitioner.strides
import odin.testing
import odin.testing.policy_driver


@pytest.mark.parametrize(
    "module",
    [odin.testing, odin.testing.policy_driver, odin.monitor.json_text, odin.partitioner.strides],
    ids=lambda m: m.__name__,
)
def test_examples_run(module):
    tried = doctest.testmod(module)
    assert tried.attempted > 0
    assert tried.failed == 0


@pytest.mark.parametrize("name", odin.testing.__all__)
def test_every_name_is_there(name):
    assert getattr(odin.testing, name) is not None


def test_it_imports_neither_torch_nor_ray():
    code = "import sys, odin.testing; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "[]"
