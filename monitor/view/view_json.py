"""A view as one line of JSON, with the name of its format and its version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from odin.monitor.json_text import json_text, plain_json, with_nan

__all__ = ["read_view", "view_text"]

_View = TypeVar("_View", bound=Struct)


def view_text(view: Struct, made: tuple[str, int]) -> str:
    """Write a view of this format and version; nan and infinity are ``null``."""
    name, version = made
    return json_text({"format": name, "version": version, **msgspec.structs.asdict(view)})


def read_view(text: str, kind: type[_View], made: tuple[str, int], *, what: str, null: Sequence[str]) -> _View:
    """Read what :func:`view_text` wrote.

    Parameters
    ----------
    what
        What it is a view of, for errors.
    null
        Fields in which ``null`` means None, not nan.

    Raises
    ------
    ValueError
        If it is no view of this format and version.
    """
    try:
        values: dict[str, Any] = msgspec.convert(plain_json(text), dict[str, Any])
        found = values.pop("format"), values.pop("version")
        if found != made:
            raise ValueError(f"format {found[0]!r} version {found[1]!r}, not {made[0]} {made[1]}")
        return msgspec.convert({**with_nan(values), **{name: values[name] for name in null}}, kind)
    except (ValueError, LookupError) as error:
        raise ValueError(f"not a view of an ODIN {what}: {text[:80]!r} ({error!r})") from error
