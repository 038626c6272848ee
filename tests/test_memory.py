"""Available memory: the machine's, within the container's limit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from stages.memory import available_nbytes


@pytest.fixture(autouse=True)
def _machine_with_1000_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
@pytest.mark.parametrize(
    ("limit", "usage", "expected"),
    [("800\n", "300\n", 500), ("800", "900", 0), ("5000", "300", 1000), ("max\n", "300", 1000)],
)
def test_a_containers_limit_counts(tmp_path: Path, names: tuple[str, str], limit: str, usage: str, expected: int):
    folder = tmp_path / "memory" if "bytes" in names[0] else tmp_path
    folder.mkdir(exist_ok=True)
    for name, text in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(text)
    assert available_nbytes(cgroups=tmp_path) == expected


def test_without_control_groups_the_machine_counts(tmp_path: Path):
    assert available_nbytes(cgroups=tmp_path / "none") == 1000
