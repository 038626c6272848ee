"""One contender of the overload benchmark, measured once, in a process of its own.

``python -m benchmarks.overload_trial FOLDER``: reads ``task.json``, ``images.npy`` and ``expected.npy`` there, writes
``result.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.common import LoadResult, plain
from benchmarks.open_loop import Figures, closed_loop_async, figures_of, open_loop, poisson_s
from benchmarks.overload_contenders import CONTENDERS, Contender, Task
from benchmarks.spells import coming_and_going, spells
from odin_lab.inject.load import Load

__all__ = ["Reference", "Settings", "Trial", "TrialResult", "main"]

TOLERANCE = 1e-3  # of the largest output
PATIENCE_S = 10.0
GENERATOR_NICE = -10
_MOST_ERRORS = 5


class Reference(Struct, frozen=True):
    """What the same for everybody is made of: ODIN's latency of one request at a time, and its capacity."""

    alone_s: float
    capacity_hz: float


class Settings(Struct, frozen=True):
    """What to measure; ``reference`` is None where that is what is measured.

    Attributes
    ----------
    factors
        Arrivals per second, as multiples of the reference's capacity.
    loads
        Text of a load, or empty for none, each of them with every factor.
    seconds, skip_s
        Of a trial, and the first seconds of it that do not count.
    late_bound
        Most that the generator may be late (p99), as a part of the deadline.
    seed
        Of arrivals and loads: the same for all contenders.
    """

    contender: str
    model: str
    cores: tuple[int, ...]
    factors: tuple[float, ...]
    loads: tuple[str, ...]
    seconds: float
    skip_s: float
    deadlines: float
    late_bound: float
    on_s: float
    off_s: float
    ongoing: int
    queued: int
    seed: int
    reference: Reference | None = None


class Trial(Struct, frozen=True):
    """One open loop: which load, how many times the capacity came, what came of it, the first errors."""

    load: str
    factor: float
    figures: Figures
    errors: tuple[str, ...]


class TrialResult(Struct, frozen=True):
    """All of one contender in one round.

    Attributes
    ----------
    alone_s
        Median latency of one request at a time.
    capacity_hz
        Closed loop by the same path, by load: before and after the trials without one, and once with each other.
    """

    settings: str
    alone_s: float
    capacity_hz: dict[str, list[float]]
    trials: list[Trial]


def check_outputs(outputs: Sequence[Any], expected: Any) -> None:
    """RuntimeError if a contender computes something else than the model."""
    for row, output in enumerate(outputs):
        error = np.abs(np.asarray(output).reshape(-1) - expected[row]).max() / np.abs(expected[row]).max()
        if not error <= TOLERANCE:  # NaN is wrong as well
            raise RuntimeError(f"image {row} comes out differently: off by {error:.1e} of the largest output")


async def measure(contender: Contender, settings: Settings, expected: Any) -> TrialResult:
    """Alone, capacity, all trials, capacity again."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GENERATOR_NICE)  # of this thread alone
    async with contender.connected():
        check_outputs([await contender.send(row, None) for row in range(len(expected))], expected)

        async def closed(in_flight: int, seconds: float) -> LoadResult:
            return await closed_loop_async(
                contender.send,
                in_flight=in_flight,
                seconds=seconds,
                skip_s=min(settings.skip_s, seconds / 4),
                refusals=contender.refusals,
            )

        full = 2 * len(settings.cores)
        await closed(full, settings.seconds / 4)
        alone_s = (await closed(1, settings.seconds / 2)).p50_s
        capacity_hz = {"": [(await closed(full, settings.seconds / 2)).throughput_hz]}
        trials = []
        for number, text in enumerate(settings.loads if settings.reference is not None else ()):
            load = Load.parse(text) if text else None
            plan = spells(settings.seconds, on_s=settings.on_s, off_s=settings.off_s, seed=settings.seed + number)
            if load is not None:
                with coming_and_going(load, plan, on_event=contender.note_load):
                    capacity_hz[text] = [(await closed(full, settings.seconds)).throughput_hz]
            for factor in settings.factors:
                with coming_and_going(load, plan, on_event=contender.note_load):
                    trials.append(await one_trial(contender, settings, text, factor))
        if trials:
            capacity_hz[""].append((await closed(full, settings.seconds / 2)).throughput_hz)
        return TrialResult(contender.settings, alone_s, capacity_hz, trials)


async def one_trial(contender: Contender, settings: Settings, text: str, factor: float) -> Trial:
    """One open loop at a multiple of the reference's capacity."""
    assert settings.reference is not None  # only then there are trials
    gc.collect()
    gc.freeze()  # a collection of all that torch and Ray have brought would hold up the generator for 0.1 s and more
    deadline_s = settings.deadlines * settings.reference.alone_s
    requests = await open_loop(
        contender.send,
        poisson_s(factor * settings.reference.capacity_hz, settings.seconds, seed=settings.seed),
        deadline_s=deadline_s,
        tell=contender.tell,
        refusals=contender.refusals,
        expiries=contender.expiries,
        patience_s=PATIENCE_S,
    )
    figures = figures_of(
        requests,
        skip_s=settings.skip_s,
        seconds=settings.seconds,
        late_bound_s=settings.late_bound * deadline_s,
    )
    errors = dict.fromkeys(request.error for request in requests if request.error)
    return Trial(text, factor, figures, tuple(errors)[:_MOST_ERRORS])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one contender and write its :class:`TrialResult`."""
    (folder,) = map(Path, argv or sys.argv[1:])
    settings = msgspec.convert(json.loads((folder / "task.json").read_text(encoding="utf-8")), Settings)
    images, expected = np.load(folder / "images.npy"), np.load(folder / "expected.npy")
    deadline_s = settings.deadlines * settings.reference.alone_s if settings.reference else 0.0
    task = Task(settings.model, settings.cores, images, deadline_s, settings.ongoing, settings.queued)
    with CONTENDERS[settings.contender](task) as contender:
        result = asyncio.run(measure(contender, settings, expected))
    (folder / "result.json").write_text(json.dumps(plain(result)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
