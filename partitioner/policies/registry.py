"""Policies by their text form, such as ``odin:alpha=10``."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from partitioner.policies.base import Policy

__all__ = ["POLICIES", "make_policy"]

# Imported when asked for. Keyword-only parameters with a number, a truth value or a text as default can be set.
_CLASSES = {
    "static": "partitioner.policies.static:StaticPolicy",
    "lls": "partitioner.policies.lls:LlsPolicy",
    "odin": "partitioner.policies.odin:OdinPolicy",
    "predictive": "partitioner.policies.predictive:PredictivePolicy",
    "oracle": "partitioner.policies.oracle:OraclePolicy",
    "delayed-oracle": "partitioner.policies.oracle:DelayedOraclePolicy",
}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

POLICIES = tuple(_CLASSES)
"""Names that :func:`make_policy` knows."""


def make_policy(text: str) -> Policy:
    """Make a policy from its text form: ``NAME`` or ``NAME:parameter=value,parameter=value``.

    Raises
    ------
    ValueError
        If there is no such policy or parameter, or the value is not one it can have; says what there is.

    Examples
    --------
    >>> make_policy("odin:alpha=2").name
    'odin:alpha=2'
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if name not in _CLASSES:
        raise ValueError(f"there is no policy {name!r}; choose one of {', '.join(POLICIES)}")
    module, _, attribute = _CLASSES[name].partition(":")
    make = getattr(import_module(module), attribute)
    values = _values(text, rest, _defaults(make)) if colon else {}
    try:
        policy: Policy = make(**values)
    except ValueError as error:
        raise ValueError(f"policy {text!r}: {error}") from error
    return policy


def _defaults(make: Any) -> dict[str, Any]:
    """Parameters that text can set, with their default values."""
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str)}


def _values(text: str, rest: str, defaults: dict[str, Any]) -> dict[str, Any]:
    has = f"it has {', '.join(f'{key}={value}' for key, value in defaults.items())}" if defaults else "it has none"
    values: dict[str, Any] = {}
    for part in rest.split(","):
        key, equals, written = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"policy {text!r}: {part.strip()!r} is not parameter=value; {has}")
        if key not in defaults:
            raise ValueError(f"policy {text!r} has no parameter {key!r}; {has}")
        if key in values:
            raise ValueError(f"policy {text!r} sets {key!r} twice; leave one out")
        values[key] = _convert(text, key, written, defaults[key])
    return values


def _convert(text: str, key: str, written: str, default: Any) -> Any:
    """Read the value as what its default is."""
    if isinstance(default, bool):
        if written.lower() not in _TRUTH:
            raise ValueError(f"policy {text!r}: {key} is {written!r}; write true or false")
        return _TRUTH[written.lower()]
    try:
        return type(default)(written)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"policy {text!r}: {key} is {written!r}; write {kind}, such as {default}") from error
