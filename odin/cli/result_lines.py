"""One line of JSON per image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import torch

from odin.models.labels import top_classes
from odin.requests.stream import Outcome

__all__ = ["json_line"]


def json_line(
    outcome: Outcome[Any],
    *,
    image: str | PathLike[str],
    labels: Sequence[str] | None = None,
    top: int = 5,
    repeat: int | None = None,
) -> str:
    """The record of one image, without line end.

    ``{"image", "top": [{"index", "label", "probability"}, ...], "latency_ms"}`` for a classifier; ``"outputs"`` in
    place of ``"top"``, with shape, dtype, mean, min and max of every tensor, for other models; ``{"image", "error"}``
    where there is no result. Numbers that JSON cannot write (NaN, infinity) are null.

    Parameters
    ----------
    outcome
        Result or error; the result is what the model gives for one image, leading size 1.
    image
        Path as it is to appear.
    labels
        Class names; used where there is one per class.
    top
        Number of classes.
    repeat
        Number of the pass over the inputs, if there are several.
    """
    record: dict[str, Any] = {"image": fspath(image)}
    if repeat is not None:
        record["repeat"] = repeat
    if outcome.error is not None:
        reason = getattr(outcome.error, "reason", None)  # an ImageError repeats the path, which is in "image"
        record["error"] = reason or f"{type(outcome.error).__name__}: {outcome.error}"
        return json.dumps(record)
    if is_scores(outcome.value):
        [scores] = outcome.value
        record["top"] = [
            {"index": best.index, "label": best.label, "probability": number(best.probability)}
            for best in top_classes(
                scores, labels if labels is not None and len(labels) == len(scores) else None, count=top
            )
        ]
    else:
        record["outputs"] = [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            | statistics(tensor)
            for name, tensor in named_tensors(outcome.value)
        ]
    if outcome.latency_s is not None:
        record["latency_ms"] = round(outcome.latency_s * 1e3, 3)
    return json.dumps(record, allow_nan=False)


def is_scores(value: Any) -> bool:
    """Whether an output is one image's class scores: a float tensor ``(1, C)`` with at least two classes."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim == 2
        and value.shape[0] == 1
        and value.shape[1] > 1
    )


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nested output with their places in it: ``out``, ``0.boxes``."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from named_tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, inner in enumerate(value):
            yield from named_tensors(inner, f"{name}.{index}" if name else str(index))


def statistics(tensor: torch.Tensor) -> dict[str, float | None]:
    """Mean, least and greatest value; nothing for an empty tensor."""
    if tensor.numel() == 0 or tensor.is_complex():
        return {}
    values = tensor.double()
    return {
        "mean": number(values.mean().item()),
        "min": number(values.min().item()),
        "max": number(values.max().item()),
    }


def number(value: float) -> float | None:
    """The value to six decimal places of its own size; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
