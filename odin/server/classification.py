"""Triton's classification extension: the best classes of an output instead of its values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import Tensor

__all__ = ["classified"]


def classified(output: Tensor, count: int, labels: Sequence[str] | None) -> Tensor:
    """Return the best classes, best first, as texts ``VALUE:INDEX`` or ``VALUE:INDEX:LABEL``.

    Parameters
    ----------
    output
        Values of shape ``(samples, classes)``, or ``(classes,)``.
    count
        How many; all if there are fewer.
    labels
        One name per class, if they are known.

    Raises
    ------
    RequestError
        If the output has another number of axes, or elements without an order.
    """
    values = output.array
    if values.ndim not in (1, 2) or output.datatype.name in ("BYTES", "BF16"):
        raise RequestError(
            FailureKind.INVALID,
            f"output {output.name!r} of {output.datatype.name} with shape {list(values.shape)} has no classes: ask for "
            "its values",
        )
    named = labels if labels is not None and len(labels) == values.shape[-1] else None
    best = np.argsort(-values.astype(np.float64), axis=-1, kind="stable")[..., :count]
    texts = np.empty(best.shape, object)
    for place, index in np.ndenumerate(best):
        text = f"{values[(*place[:-1], index)]:f}:{index}"
        texts[place] = (text if named is None else f"{text}:{named[int(index)]}").encode()
    return output._replace(datatype=DATATYPES["BYTES"], array=texts)
