"""Messages in docs/troubleshooting.md are those of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from markdown_pages import ROOT

_PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
_PLACE = "\0"


@cache
def _texts():
    """All texts of the code, with a mark for what is filled in."""
    found = set()
    for folder in ("odin", "odin_lab", "stages", "partitioner", "monitor"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if node in docstrings:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else _PLACE for part in node.values)
                    found.add("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(found)


def _quoted():
    rows = re.findall(r"^\| message .*\n\|[-|]+\n((?:\|.*\n)+)", _PAGE, re.MULTILINE)
    for row in "".join(rows).splitlines():
        yield from re.findall(r"`([^`]+)`", row.split("|")[1])


def _is_said(message):
    pattern = re.compile("(?s:.*)".join(re.escape(part.strip()) for part in message.split("...")))
    return any(pattern.search(text) for text in _texts())


@pytest.mark.parametrize("message", list(_quoted()))
def test_the_code_says_so(message):
    assert _is_said(message), f"no text of the code is {message!r}"


def test_messages_are_found_on_the_page():
    assert len(list(_quoted())) > 40


def test_another_message_is_not_found():
    assert not _is_said("there is no usable kernel ... on ...")
    assert _is_said("there is no usable core ... on ...")
