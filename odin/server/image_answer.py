"""The answer to a request whose input is an image file: the best classes, with their names and probabilities.

::

    {"model_name": "resnet50", "model_version": "1",
     "classes": [{"index": 281, "label": "tabby", "probability": 0.72}, ...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from odin.models.labels import top_classes
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferResponse

__all__ = ["write_classes"]

_ROUNDING = 1e-3


def write_classes(answer: InferResponse, labels: Sequence[str] | None, *, count: int) -> dict[str, Any]:
    """Return the best classes of an answer by its first output, best first.

    Parameters
    ----------
    answer
        Its first output is ``(1, classes)`` or ``(classes,)``: probabilities, or else logits.
    labels
        One name per class, if they are known; without them classes have no ``label``.
    count
        How many; all if there are fewer.

    Raises
    ------
    RequestError
        If the output is of another form.
    """
    output = answer.outputs[0]
    shape = output.array.shape
    if output.datatype.name not in ("FP16", "FP32", "FP64") or len(shape) not in (1, 2) or shape[:-1] not in ((), (1,)):
        raise RequestError(
            FailureKind.INVALID,
            f"output {output.name!r} of {output.datatype.name} with shape {list(shape)} has no classes: send a tensor, "
            "and read its values",
        )
    values = output.array.reshape(-1).astype(np.float64)
    if values.min(initial=0.0) >= 0 and abs(values.sum() - 1) < _ROUNDING:  # no logits: these are probabilities
        with np.errstate(divide="ignore"):
            values = np.log(values)
    known = labels if labels is not None and len(labels) == len(values) else None
    best = top_classes(torch.from_numpy(values), known, count=count)
    classes = [
        {"index": one.index, "probability": one.probability}
        if one.label is None
        else {"index": one.index, "label": one.label, "probability": one.probability}
        for one in best
    ]
    told = {"parameters": dict(answer.parameters)} if answer.parameters else {}
    return {"model_name": answer.model, "model_version": answer.version, "classes": classes, **told}
