"""The token that Ray's nodes and drivers show each other (Ray 2.52 and later).

Ray takes it from ``RAY_AUTH_TOKEN``, from the file that ``RAY_AUTH_TOKEN_PATH`` names, or from ``~/.ray/auth_token``,
in this order, and asks for it when ``RAY_AUTH_MODE`` is ``token``. Whoever has the token can run code on every node.
Source: https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ensure_token", "shown_token", "token_enabled", "token_exposed", "token_path", "use_token"]


def token_enabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether nodes that ODIN starts ask for the token: unless ``RAY_AUTH_MODE`` says otherwise."""
    return environment.get("RAY_AUTH_MODE", "token").lower() == "token"


def token_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """File that holds the token, whether it exists or not; None where ``RAY_AUTH_TOKEN`` holds it."""
    if environment.get("RAY_AUTH_TOKEN"):
        return None
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def ensure_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Make a token readable by this user alone where there is none; True if one was made.

    ``ray get-auth-token --generate`` would write it with the permissions of the umask, which others can often read.
    """
    path = token_path(environment)
    if path is None or path.exists():
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Exclusive: two starts at once must agree on one token.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return True


def use_token() -> bool:
    """Make this process show the token, where there is one, to the clusters it connects to; True if it will.

    Ray does so on its own for a cluster that it finds, never for one whose address is given. A cluster that asks for
    no token takes such a process as well. ``RAY_AUTH_MODE`` is respected if set.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return token_enabled()
    path = token_path()
    if path is not None and not path.exists():
        return False
    _enable()
    return True


def use_own_token() -> None:
    """Have a Ray that this process starts ask for the token, which is made if there is none.

    Where the file cannot be written a token of this process takes its place. ``RAY_AUTH_MODE`` is respected if set.
    """
    if "RAY_AUTH_MODE" in os.environ and not token_enabled():
        return
    try:
        ensure_token()
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _enable()


def _enable() -> None:
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:  # it read the variable when it was imported; have it read it anew, as ray.init does
        from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, and its stub lacks it

        Config.initialize("")


def shown_token() -> str:
    """The token that this process shows clusters it connects to; empty if there is none."""
    path = token_path()
    if not token_enabled() or (path is not None and not path.exists()):
        return ""
    try:
        return (os.environ["RAY_AUTH_TOKEN"] if path is None else path.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def token_exposed(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether other users of this machine can read the token's file."""
    path = token_path(environment)
    return path is not None and path.exists() and bool(path.stat().st_mode & 0o077)
