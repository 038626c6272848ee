"""Records as JSON by msgspec, with what JSON has no word for: nan, numpy's numbers, and names that are no text."""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import msgspec
import numpy as np

__all__ = ["from_plain", "json_text", "plain_json", "to_plain", "with_nan"]

_Kind = TypeVar("_Kind")


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
        text = json.dumps(to_plain(record))
        return json.dumps(json.loads(text, parse_constant=lambda nan: None), separators=(",", ":"))


def plain_json(text: str) -> Any:
    """What ``text`` holds as plain values; also what :func:`json_text` made of a name that is no text.

    Raises
    ------
    ValueError
        If it is no JSON.
    """
    return json.loads(text) if "\\ud" in text else msgspec.json.decode(text)


def to_plain(record: Any) -> Any:
    """``record`` as dicts, lists, texts and numbers."""
    return msgspec.to_builtins(record, enc_hook=_plain)


def from_plain(values: Any, kind: type[_Kind], *, strict: bool = True) -> _Kind:
    """Make a record of plain JSON values.

    Parameters
    ----------
    strict
        False takes texts for numbers where they are, as ``"inf"``, which JSON has no other word for.

    Raises
    ------
    ValueError
        If they are none; the message names the place and what is there.

    Examples
    --------
    >>> from_plain([1, "two"], list[int])
    Traceback (most recent call last):
        ...
    ValueError: Expected `int`, got `str` - at `$[1]`: 'two'
    """
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}{_what_is_at(values, str(error))}") from error


def _what_is_at(values: Any, message: str) -> str:
    """What is at the place that a message of msgspec names, such as ``$.cells[3].period``."""
    found = re.search(r"at `\$(.*)`$", message)
    try:
        for key, index in re.findall(r"\.(\w+)|\[(\d*|\.\.\.)\]", found.group(1)) if found else ():
            values = values[key] if key else values[int(index)]
    except (LookupError, TypeError, ValueError):
        return ""
    return f": {values!r:.40}" if found else ""


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
