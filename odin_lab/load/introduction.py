"""Before any load: does somebody answer, which models are there, what do they take, how long does one request take?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from odin_lab.load.client import (
    CONNECTION,
    INVALID,
    LATE,
    NOT_FOUND,
    NOT_READY,
    REFUSED,
    Client,
    Input,
    ModelFace,
    RequestFailedError,
    Target,
    open_client,
)
from odin_lab.load.samples import fix_shapes, make_samples

__all__ = ["Introduction", "gone", "introduce", "lone_latency_s"]

_FIRST = 5
"""Requests one after the other, the first of which does not count."""


class Introduction(NamedTuple):
    """Whom requests go to, what its server says of it, and what every request has."""

    target: Target
    face: ModelFace
    inputs: tuple[Input, ...]


def gone(url: str) -> str:
    """What is said of a server that answered, and cannot be connected to any more."""
    return f"nothing answers at {url} any more: one connection after the other fails; was the server ended?"


def introduce(target: Target, *, given: Sequence[Input] = (), batch: int = 1) -> Introduction:
    """Ask a server for its model.

    Parameters
    ----------
    target
        Without a model: the only one that is there. ``binary``: where the server takes it.
    given, batch
        See :func:`odin_lab.load.samples.fix_shapes`.

    Raises
    ------
    ConnectionError
        If nothing answers, or the server or the model is not ready.
    ValueError
        If there is no such model, or its inputs are not known.
    """
    with contextlib.closing(open_client(target)) as client:
        _check_server(client, target)
        if not target.model:
            target = msgspec.structs.replace(target, model=_only_model(client))
    with contextlib.closing(open_client(target)) as client:
        face = _face(client, target)
    target = msgspec.structs.replace(target, binary=target.binary and face.binary)
    return Introduction(target, face, fix_shapes(face.inputs, given, batch=batch))


def lone_latency_s(
    known: Introduction, *, images: Path | None, seed: int, clock: Callable[[], float] = time.monotonic
) -> float:
    """Median of some requests one after the other, seconds.

    Raises
    ------
    ConnectionError
        If one is not answered; tells what the server said.
    ValueError
        If there are no images.
    """
    samples = make_samples(known.inputs, count=2, seed=seed, images=images)
    with contextlib.closing(open_client(known.target)) as client:
        prepared = [client.prepare(tensors) for tensors in samples]
        taken_s: list[float] = []
        refused: RequestFailedError | None = None
        for number in range(_FIRST):
            begin_s = clock()
            try:
                client.infer(prepared[number % len(prepared)])
            except RequestFailedError as error:
                if error.kind in (REFUSED, NOT_READY, LATE):
                    refused = error
                    continue  # a deadline that even a lone request does not always keep
                raise ConnectionError(
                    f"model {known.target.model!r} does not answer a single request: {error}"
                ) from error
            taken_s.append(clock() - begin_s)
    if not taken_s:
        deadline = "" if known.target.deadline_ms is None else "; a longer --deadline-ms may help"
        raise ConnectionError(f"model {known.target.model!r} does not answer a single request: {refused}{deadline}")
    kept = sorted(taken_s[1:] or taken_s)
    return kept[len(kept) // 2]


def _check_server(client: Client, target: Target) -> None:
    try:
        client.check_ready(model=False)
    except RequestFailedError as error:
        if error.kind == CONNECTION:
            raise ConnectionError(
                f"nothing answers at {target.url}: {error.text}; start a server there, as with odin serve"
            ) from error
        if error.kind == NOT_FOUND:
            raise ConnectionError(
                f"the server at {target.url} does not speak the Open Inference Protocol: {error}"
            ) from error
        raise ConnectionError(_unusable(f"the server at {target.url}", error)) from error


def _only_model(client: Client) -> str:
    names = client.ready_models()
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError("say --model NAME: the server does not tell which models it has, or has none that is ready")
    raise ValueError(f"say --model NAME: the server has {_listed(names)}")


def _face(client: Client, target: Target) -> ModelFace:
    try:
        face = client.describe()
    except RequestFailedError as error:
        if error.kind not in (INVALID, NOT_FOUND):
            raise ConnectionError(_unusable(f"model {target.model!r}", error)) from error
        names = client.ready_models()
        there = f"; it has {_listed(names)}" if names else ""
        raise ValueError(f"--model {target.model}: the server at {target.url} has no such model{there}") from error
    try:
        client.check_ready(model=True)
    except RequestFailedError as error:
        raise ConnectionError(_unusable(f"model {target.model!r}", error)) from error
    return face


def _unusable(who: str, error: RequestFailedError) -> str:
    if error.kind == NOT_READY:
        return f"{who} is not ready: {error}; try again when it is"
    return f"{who} does not answer a question about it: {error}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(repr, names[:8])) + more
