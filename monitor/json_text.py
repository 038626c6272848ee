"""Records as JSON by msgspec, with what JSON has no word for: nan, numpy's numbers, and names that are no text."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np

__all__ = ["json_text", "plain_json", "with_nan"]


def json_text(record: Any) -> str:
    r"""``record`` in one line of JSON; nan and infinity are ``null``, a named tuple is a list.

    Examples
    --------
    >>> json_text({"share": math.nan, "plan": (np.int64(7), 11), "name": "caf\udce9"})
    '{"share":null,"plan":[7,11],"name":"caf\\udce9"}'
    """
    try:
        return _ENCODER.encode(record).decode()
    except UnicodeEncodeError:  # seldom: the name of a file or a process, which may be any bytes
        text = json.dumps(msgspec.to_builtins(record, enc_hook=_plain))
        return json.dumps(json.loads(text, parse_constant=lambda nan: None), separators=(",", ":"))


def plain_json(text: str) -> Any:
    """What ``text`` holds as plain values; also what :func:`json_text` made of a name that is no text.

    Raises
    ------
    ValueError
        If it is no JSON.
    """
    return json.loads(text) if "\\ud" in text else msgspec.json.decode(text)


def with_nan(values: Any) -> Any:
    """Plain JSON values with nan for null.

    Examples
    --------
    >>> with_nan({"level": [0.5, None]})
    {'level': [0.5, nan]}
    """
    if values is None:
        return math.nan
    if isinstance(values, dict):
        return {key: with_nan(item) for key, item in values.items()}
    return [with_nan(item) for item in values] if isinstance(values, list) else values


def _plain(value: Any) -> Any:
    """What others' policies and detectors work with as plain values."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a record")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
