"""Numbers of models as text: one for all, or ``NAME=NUMBER`` for some."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["by_model"]


def by_model(text: str, names: Sequence[str], *, option: str) -> dict[str, float]:
    """Read a number for each model.

    Parameters
    ----------
    text
        Joined by commas: a number for all models, ``NAME=NUMBER`` for one.
    names
        Of the models.
    option
        Named in errors.

    Raises
    ------
    ValueError
        If a number is not above 0, there is no such model, or one has no number.

    Examples
    --------
    >>> by_model("500,vgg16=900", ["resnet50", "vgg16"], option="--p95-ms")
    {'resnet50': 500.0, 'vgg16': 900.0}
    """
    common: float | None = None
    own: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        value = _number(number, part, option)
        if not equals:
            if common is not None:
                raise ValueError(f"{option} {text}: two numbers for all models; write NAME=NUMBER for one of them")
            common = value
        elif name not in names:
            raise ValueError(f"{option} {text}: no model is called {name!r}; there are {', '.join(names)}")
        else:
            own[name] = value
    found = own if common is None else {name: own.get(name, common) for name in names}
    if left := [name for name in names if name not in found]:
        raise ValueError(
            f"{option} {text}: no number for {', '.join(left)}; add one for all models, or {left[0]}=NUMBER"
        )
    return {name: found[name] for name in names}


def _number(text: str, part: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{option}: {part.strip()!r} is no number above 0, nor NAME=NUMBER")
    return value
