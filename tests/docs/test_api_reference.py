"""The API reference is built by scripts/test.sh; here, that what is wrong with a docstring is told."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

pytest.importorskip("pdoc")

import pdoc.doc

from scripts.api_reference import MODULES, build, docstring_faults


def _faults(tmp_path, monkeypatch, docstring):
    """What is told of a function f(a) with this docstring."""
    name = f"documented_{abs(hash(docstring))}"
    body = textwrap.indent(textwrap.dedent(docstring).strip(), "    ").strip()
    code = f'"""A module."""\n__all__ = ["f"]\ndef f(a):\n    """{body}\n    """\n'
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    try:
        return list(docstring_faults(pdoc.doc.Module(module).get("f")))
    finally:
        sys.modules.pop(name)


GOOD = """
Do something; see :func:`f`, :class:`odin.Plan` and :class:`~odin.partitioner.policies.Policy`.

Parameters
----------
a
    Something.

Raises
------
ValueError
    Never.
"""


def test_a_docstring_without_fault(tmp_path, monkeypatch):
    assert _faults(tmp_path, monkeypatch, GOOD) == []


@pytest.mark.parametrize(
    ("now", "then", "told"),
    [
        (":class:`odin.Plan`", ":class:`odin.Plans`", "the reference to odin.Plans leads nowhere"),
        (":func:`f`", ":func:`g`", "the reference to g leads nowhere"),
        (":func:`f`", ":function:`f`", "the role :function: is unknown"),
        ("a\n    Something", "b\n    Something", "describes the parameter b, which it does not have"),
        ("Raises\n------\n", "Raises\n\n", "the section Raises is not underlined"),
        ("Raises\n------\n", "Raises\n---\n", "the section Raises has a line of 3 dashes"),
        ("Raises\n------\n", "Errors\n------\n", "the section 'Errors' is none of NumPy's"),
        ("Never", "Never `so", "an odd number of backquotes"),
    ],
)
def test_a_fault_is_told(tmp_path, monkeypatch, now, then, told):
    assert now in GOOD
    faults = _faults(tmp_path, monkeypatch, GOOD.replace(now, then))
    assert any(told in fault for fault in faults), faults


def test_a_module_that_cannot_be_imported_fails(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        build(tmp_path, (*MODULES[:1], "no_such_module"))
