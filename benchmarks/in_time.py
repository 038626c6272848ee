"""Requests with deadlines through a family, live: how many are answered in time, how rightly, and by what."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import odin
from benchmarks.common import Environment, Figure, interleave, report, summarize, with_quartiles
from benchmarks.open_loop import begin_each
from odin.family.facts import Facts
from odin.models.labelled import Labelled
from odin.reduction.accuracy import Interval, wilson
from odin.reduction.manifest import read_manifest
from odin_lab.inject import Injector, Load
from odin_lab.simulator.variants import Asked, FamilyResult

__all__ = ["Block", "Kept", "busy", "facts_of", "in_turns", "kept_of_blocks", "kept_of_runs", "report_kept", "serve"]


class Block(NamedTuple):
    """What became of a short trace.

    Attributes
    ----------
    requests
        All that were sent.
    in_time, right
        Answered within the deadline by a variant that is as accurate as asked for; of these, classified rightly.
    by_variant
        Of those in time, how many each variant answered.
    """

    requests: int
    in_time: int
    right: int
    by_variant: dict[str, int]


class Kept(NamedTuple):
    """What one contender kept with so many busy cores.

    Attributes
    ----------
    how
        ``"live"`` or ``"simulated"``.
    in_time
        Share of the requests, median and quartiles of blocks or seeds.
    right
        Rightly classified, of those in time; None in simulation.
    answered_by
        How many requests in time each variant answered.
    """

    how: str
    contender: str
    busy: int
    requests: int
    in_time: Figure
    right: Interval | None
    answered_by: str


def serve(family: odin.Family, images: Labelled, trace: Sequence[Asked], *, warm: int = 0, seed: int = 0) -> Block:
    """Send a random image at each moment of the trace; the first ``warm`` requests are not counted.

    A deadline counts from the moment at which the request should have been sent, not from when it was; the sender never
    waits for the family, as clients from outside would not.
    """
    draws = random.Random(seed)
    indices = [draws.randrange(len(images.classes)) for _ in trace]
    counts: Counter[str] = Counter()
    by_variant: Counter[str] = Counter()

    async def ask(number: int, due_s: float) -> None:
        index, want = indices[number], trace[number].want
        left_s = due_s + want.latency_s - time.perf_counter()
        if left_s <= 0:
            return
        x = images.inputs[index : index + 1]
        try:
            answer = await family.asubmit(x, accuracy=want.accuracy, latency_s=left_s, accuracy_budget=want.budget)
        except odin.OdinError:
            return
        late = time.perf_counter() > due_s + want.latency_s
        if number >= warm and not late and answer.accuracy >= want.accuracy:
            counts["in time"] += 1
            counts["right"] += int(answer.value.argmax()) == int(images.classes[index])
            by_variant[answer.variant] += 1

    async def send() -> None:
        moments = [asked.at_s for asked in trace]
        await asyncio.gather(*await begin_each(ask, moments, begin_s=time.perf_counter()))

    asyncio.run(send())
    return Block(len(trace) - warm, counts["in time"], counts["right"], dict(by_variant))


@contextmanager
def busy(injector: Injector, devices: Sequence[odin.Device]) -> Iterator[None]:
    """Keep a program computing on each of these devices: whatever else computes there takes twice as long."""
    handles = [injector.start(Load("cpu", device)) for device in devices]
    try:
        yield
    finally:
        for handle in handles:
            handle.stop()


def facts_of(name: str, folder: Path) -> list[Facts]:
    """The variants of a folder of ``odin reduce``, by what each takes on one core alone; for the simulator."""
    seconds = {form.name: form.seconds for form in read_manifest(folder).forms}
    facts = []
    for one in odin.Variant(name, forms=folder).with_forms():
        took_s, accuracy = seconds[one.form], one.accuracy
        assert accuracy is not None
        facts.append(
            Facts(
                one.name,
                took_s,
                0.0,
                accuracy=accuracy,
                cost_s=took_s,
                form=one.form,
                lost=one.accuracy_lost or 0.0,
            )
        )
    return facts


def in_turns(cells: Mapping[str, Callable[[int], Block]], *, blocks: int, seed: int) -> dict[str, list[Block]]:
    """Serve so many blocks of each cell, in turns; the same traces in each, whose seeds are told."""

    def served(cell: Callable[[int], Block]) -> Callable[[], Block]:
        seeds = iter(range(seed, seed + blocks))
        return lambda: cell(next(seeds))

    each = {name: served(cell) for name, cell in cells.items()}
    return interleave(each, rounds=blocks, warmup=0, seed=seed)


def kept_of_runs(contender: str, busy: int, runs: Sequence[FamilyResult]) -> Kept:
    """What a contender kept in simulation, one run for each seed."""
    by_variant: Counter[str] = Counter()
    for run in runs:
        by_variant.update(run.by_variant)
    return Kept(
        "simulated",
        contender,
        busy,
        sum(run.requests for run in runs),
        summarize([run.kept / run.requests for run in runs]),
        None,
        _told(by_variant),
    )


def _told(by_variant: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(by_variant.items()))


def kept_of_blocks(contender: str, busy: int, blocks: Sequence[Block]) -> Kept:
    """What a contender kept live."""
    right, answered = sum(block.right for block in blocks), sum(block.in_time for block in blocks)
    by_variant: Counter[str] = Counter()
    for block in blocks:
        by_variant.update(block.by_variant)
    return Kept(
        "live",
        contender,
        busy,
        sum(block.requests for block in blocks),
        summarize([block.in_time / block.requests for block in blocks]),
        wilson(right, answered) if answered else None,
        _told(by_variant),
    )


def report_kept(title: str, kept: Sequence[Kept], environment: Environment) -> None:
    """Print the table."""
    report(
        title,
        ("contender", "how", "busy cores", "requests", "in time %", "right of these %", "answered by"),
        [
            (
                one.contender,
                one.how,
                str(one.busy),
                str(one.requests),
                with_quartiles(one.in_time, lambda share: f"{share * 100:.1f}"),
                "-" if one.right is None else f"{one.right.value * 100:.2f}",
                one.answered_by,
            )
            for one in kept
        ],
        environment,
    )
