"""The token is made once, for this user alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin.cluster.ray_token import ensure_token, token_enabled, token_exposed, token_path


def test_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "secret" / "token")}
    assert ensure_token(environment)
    path = tmp_path / "secret" / "token"
    token = path.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not ensure_token(environment)
    assert path.read_text() == token


def test_a_token_in_the_environment_needs_no_file(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN": "abc", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert token_path(environment) is None
    assert not ensure_token(environment)
    assert not (tmp_path / "token").exists()


def test_default_path_is_ray_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_path({}) == tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize(("mode", "enabled"), [("token", True), ("TOKEN", True), ("disabled", False)])
def test_the_mode_in_the_environment_is_respected(mode: str, enabled: bool) -> None:
    assert token_enabled({"RAY_AUTH_MODE": mode}) is enabled


def test_asked_for_unless_said_otherwise() -> None:
    assert token_enabled({})


def test_exposure_is_seen(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    ensure_token(environment)
    assert not token_exposed(environment)
    (tmp_path / "token").chmod(0o644)
    assert token_exposed(environment)
