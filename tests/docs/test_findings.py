"""The index of findings lists every script, with the versions that it installs."""

from __future__ import annotations

import ast
import os
import re

import pytest
from markdown_pages import ROOT

_SCRIPTS = sorted((ROOT / "findings").glob("*"))
_ROWS = {
    match[1]: line
    for line in (ROOT / "docs" / "findings.md").read_text().splitlines()
    if (match := re.match(r"\| \[[\w.]+\]\(\.\./findings/([\w.]+)\) \|", line))
}
_PINNED = re.compile(r"\b(?:torch|ray)(?:\[\w+\])?(?:==|=)([\d.]+\d)", re.IGNORECASE)

_OF_PSUTIL_59 = {
    *("AccessDenied", "Error", "NoSuchProcess", "Popen", "Process", "STATUS_STOPPED", "STATUS_ZOMBIE"),
    *("TimeoutExpired", "ZombieProcess", "cpu_count", "process_iter", "virtual_memory", "wait_procs"),
}


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda script: script.name)
def test_each_script_is_listed_and_can_be_run(script):
    assert script.name in _ROWS, f"docs/findings.md needs a row for {script.name}"
    assert len([cell for cell in _ROWS[script.name].split("|") if cell.strip()]) == 4
    assert os.access(script, os.X_OK)
    assert [version for version in _PINNED.findall(script.read_text()) if version not in _ROWS[script.name]] == []


def test_no_row_is_of_a_script_that_is_gone():
    assert sorted(_ROWS) == [script.name for script in _SCRIPTS]


def test_psutil_is_asked_for_nothing_that_ray_s_copy_may_lack():
    """After ``import ray`` psutil is the copy that comes with Ray, whatever version is installed."""
    asked = {
        node.attr
        for folder in ("odin", "odin_lab", "stages", "partitioner", "monitor")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "psutil"
    }
    assert asked <= _OF_PSUTIL_59
