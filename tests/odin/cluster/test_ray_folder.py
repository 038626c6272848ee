"""The folders of embedded Rays: removed at the end, or by the next start if their program was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from channels import SPAWN, child
from patience import PROMPT_S

from odin.cluster.ray_folder import EmbeddedFolder, make_ray_folder


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(f"/tmp/odin-test-{os.getpid()}")  # short: a long one is not taken
    path.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    yield path
    for folder in path.iterdir():
        for inner in folder.iterdir():
            inner.rmdir()
        folder.rmdir()
    path.rmdir()


def hold(ready: Connection, root: str) -> None:
    os.environ["RAY_TMPDIR"] = root
    folder = EmbeddedFolder()
    (folder.path / "session" / "sockets").mkdir(parents=True)
    ready.send(folder.path)
    ready.recv()


@pytest.mark.slow
def test_what_a_killed_program_left_is_removed_by_the_next_and_nothing_else(root: Path):
    cluster = make_ray_folder()  # of "odin cluster up", which outlives the program that started it
    ours, theirs = SPAWN.Pipe()
    with child(hold, theirs, str(root)) as process:
        folder = ours.recv()
        first = EmbeddedFolder()
        assert (folder / "session" / "sockets").is_dir(), "its program lives"
        os.kill(process.pid, signal.SIGKILL)
        process.join(PROMPT_S)
        second = EmbeddedFolder()
        assert not folder.exists()
        assert first.path.is_dir()
        assert cluster.is_dir()
    for _ in range(2):
        first.remove()
        second.remove()
    assert list(cluster.parent.iterdir()) == [cluster]


def test_others_are_kept_out(root: Path):
    folder = make_ray_folder()
    assert folder.parent == root / f"odin-ray-{os.getuid()}"
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_link_is_not_taken(root: Path, tmp_path: Path):
    link = root / f"odin-ray-{os.getuid()}"
    link.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="remove it or set TMPDIR"):
        make_ray_folder()
    assert list(tmp_path.iterdir()) == []
    link.unlink()


def test_a_temporary_folder_too_deep_for_sockets_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    folder = make_ray_folder()
    assert folder.parent == Path(f"/tmp/odin-ray-{os.getuid()}")
    folder.rmdir()
