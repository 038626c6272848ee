"""Numbers of models as text: one for all, or ``NAME=NUMBER`` for some."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["by_model"]


def by_model(text: str, names: Sequence[str], *, option: str, of_all: bool = True) -> dict[str, float]:
    """Read a number for each model.

    Parameters
    ----------
    text
        Joined by commas: a number for all models, ``NAME=NUMBER`` for one.
    names
        Of the models.
    option
        Named in errors.
    of_all
        Whether every model must have one.

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
    found = {name: value for name in names if (value := own.get(name, common)) is not None}
    if of_all and (left := [name for name in names if name not in found]):
        raise ValueError(
            f"{option} {text}: no number for {', '.join(left)}; add one for all models, or {left[0]}=NUMBER"
        )
    return found


def _number(text: str, part: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{option}: {part.strip()!r} is no number above 0, nor NAME=NUMBER")
    return value
