"""The structure of what a function returned on the example, and whether it returns the same again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_form", "form_of"]


def form_of(value: Any) -> str:
    """Structure of a value as text: containers and their keys, what is a tensor or a number, and everything else.

    Examples
    --------
    >>> form_of({"scores": [0.5, True], "label": "cat"})
    "{'scores': [float, bool], 'label': 'cat'}"
    """
    if isinstance(value, Tensor):
        return "Tensor"
    if isinstance(value, (bool, int, float)):
        return type(value).__name__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {form_of(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(form_of, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(form_of, value)) + ")"
    return repr(value)


def check_form(value: Any, form: str) -> Any:
    """Return a value that has the structure that the example's had.

    Raises
    ------
    ValueError
        If it has another one.
    """
    if (found := form_of(value)) != form:
        raise ValueError(
            f"a function of the model returned {found:.200}, and on the example {form:.200}; return the same structure "
            "for all values"
        )
    return value
