"""Measures a model's layers alone and under each scenario, in rounds, and goes on where it was broken off."""

from __future__ import annotations

import platform
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from odin.partitioner.transfer import TransferCost, measure_transfer
from odin.stages.device import Device, DeviceError, cpu_model
from odin_lab.inject.injector import Injector, check_local_device
from odin_lab.inject.load import LoadError
from odin_lab.inject.measure import Reference, RunsPasses, measure_load
from odin_lab.inject.named import NAMED, check_name, named_load
from odin_lab.inject.play import Starts
from odin_lab.timings.files import SUFFIX, TimingsError, file_name, read_timings, write_timings
from odin_lab.timings.partial import Measured, Partial
from odin_lab.timings.table import ALONE, Block, TimingTable

__all__ = ["Progress", "Settings", "find_recorded", "partial_path", "record", "schedule"]

_PASSES_S, _QUICK_PASSES_S = 1.0, 0.25
_SETTLE_S = 0.1
_LEAST_PASSES, _MOST_PASSES = 3, 60


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes
    ----------
    model
        As for :func:`odin.load_source`.
    device
        Cores of this machine that the model and the loads are bound to.
    scenarios
        Names of scenarios.
    rounds
        How often each is measured.
    passes
        Through the model in each measurement; None takes as many as fit into a second, at least 3, at most 60.
    quick
        A quarter of a second in place of that second.
    seed
        Of the order of the scenarios within rounds.
    fine
        Whether to cut the model into many small layers, also within blocks: for simulations of many devices.

    Raises
    ------
    ValueError
        If there is nothing to measure, or a scenario is unknown.
    DeviceError
        If the device is none of this machine's cores.
    """

    model: str
    device: Device
    scenarios: tuple[str, ...] = tuple(NAMED)
    rounds: int = 5
    passes: int | None = None
    quick: bool = False
    seed: int = 0
    fine: bool = False

    @property
    def name(self) -> str:
        """What the table is called: the model, with ``-fine`` if it is cut finely."""
        return f"{self.model}-fine" if self.fine else self.model

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; measure at least 1")
        if self.passes is not None and self.passes < _LEAST_PASSES:
            raise ValueError(f"passes is {self.passes}; a median takes at least {_LEAST_PASSES}")
        if not self.scenarios:
            raise LoadError(f"no scenario to measure; there is {', '.join(NAMED)}")
        for name in self.scenarios:
            check_name(name)
            if self.scenarios.count(name) > 1:
                raise LoadError(f"{name} is named {self.scenarios.count(name)} times; name it once")
        check_local_device(self.device)
        if self.device.kind != "cpu":
            raise DeviceError(f"{self.device}: the named scenarios are loads of cores; name some, such as --on cpu:1")

    def compared(self) -> dict[str, Any]:
        """What has to be the same when a recording goes on."""
        return {
            "model": self.name,
            "device": str(self.device),
            "scenarios": list(self.scenarios),
            "rounds": self.rounds,
            "seed": self.seed,
            "cpu_model": cpu_model(),
            "system": f"{platform.system()} {platform.release()}",
        }


class Step(NamedTuple):
    """One measurement."""

    round: int
    scenario: str

    @property
    def weight(self) -> int:
        """How long it takes, roughly, in tenths of what its passes would take alone."""
        load = NAMED[self.scenario]
        return round(25 + 13 * (1 + load.intensity * load.threads))


class Progress(NamedTuple):
    """How far it is: what is measured next, and how much of all is done."""

    step: Step
    done: int
    total: int


class Runs(RunsPasses, Protocol):
    """What is disturbed, and its description; see :class:`odin_lab.inject.measure.Reference`."""

    layers: tuple[str, ...]
    torch_version: str
    fingerprint: str
    intensity: tuple[float, ...]
    cut_nbytes: tuple[int, ...]


def schedule(scenarios: Sequence[str], rounds: int, seed: int) -> tuple[Step, ...]:
    """All measurements in order of time: every scenario once per round, in an order of its own."""
    steps = []
    for number in range(rounds):
        order = list(scenarios)
        random.Random(f"{seed} {number}").shuffle(order)  # a round's order does not depend on where it was broken off
        steps += [Step(number, name) for name in order]
    return tuple(steps)


def partial_path(folder: Path, name: str) -> Path:
    """Where an unfinished recording lies."""
    return folder / (file_name(name).removesuffix(SUFFIX) + ".partial.jsonl")


def find_recorded(settings: Settings, folder: Path) -> TimingTable | None:
    """The finished table of these settings; None if there is none yet.

    Raises
    ------
    TimingsError
        If there is one of other settings, or another machine, or something else.
    """
    path = folder / file_name(settings.name)
    if not path.exists():
        return None
    table = read_timings(path)
    found = {name: getattr(table, name) for name in settings.compared()} | {"scenarios": list(table.scenarios)}
    asked = settings.compared()
    if settings.passes is not None:
        found["passes"], asked["passes"] = table.passes, settings.passes
    found["quick"], asked["quick"] = table.quick, settings.quick
    _check_same(path, found, asked)
    return table


def record(
    settings: Settings,
    folder: Path,
    *,
    restart: bool = False,
    notify: Callable[[Progress], None] = lambda progress: None,
    start_model: Callable[[Settings], AbstractContextManager[Runs]] | None = None,
    start_loads: Callable[[], AbstractContextManager[Starts]] = Injector,
    transfer: Callable[[], TransferCost] = measure_transfer,
) -> TimingTable:
    """Measure a model and write its table into a folder, after what an earlier run that was broken off left there.

    Parameters
    ----------
    settings
        What, where, how often.
    folder
        Where the table is written, and what has been measured until then.
    restart
        Measure anew whatever is there.
    notify
        Told before each measurement.
    start_model, start_loads
        Make what runs the model (default: :class:`~odin_lab.inject.measure.Reference`), and what starts loads.
    transfer
        Measures what it costs to hand values on.

    Raises
    ------
    TimingsError
        If what is there was measured under other settings, on another machine, or with other layers; or cannot be
        written.
    LoadError
        If there is no such model.
    LoadFailedError
        If the model's process, or a load, does not run.
    """
    if not restart and (found := find_recorded(settings, folder)) is not None:
        return found
    path = folder / file_name(settings.name)
    asked: dict[str, Any] = {**settings.compared(), "passes_asked": settings.passes, "quick": settings.quick}
    with ExitStack() as stack:
        partial = stack.enter_context(Partial(partial_path(folder, settings.name), restart=restart))
        if partial.header is not None:  # before a model is loaded, which takes a while
            _check_same(partial.path, partial.header, asked)
        model = stack.enter_context((start_model or _reference)(settings))
        injector = stack.enter_context(start_loads())
        asked |= {"torch_version": model.torch_version, "layers": list(model.layers), "fingerprint": model.fingerprint}
        model.run(2)
        if partial.header is None:
            alone_s = statistics.median(map(sum, model.run(_LEAST_PASSES)))
            partial.begin({**asked, **_constants(settings, model, alone_s, transfer())})
        else:
            _check_same(partial.path, partial.header, asked)
        header = partial.header
        assert header is not None
        _measure(settings, partial, header, model, injector, notify)
        table = _table(settings, header, partial.measured)
        try:
            write_timings(table, path)
        except OSError as error:
            raise TimingsError(f"cannot write {path}: {error.strerror or error}") from error
        partial.remove()
    return table


def _reference(settings: Settings) -> AbstractContextManager[Runs]:
    return Reference(settings.model, settings.device, fine=settings.fine)


def _constants(settings: Settings, model: Runs, alone_s: float, transfer: TransferCost) -> dict[str, Any]:
    """What is settled once, when a recording begins."""
    budget_s = _QUICK_PASSES_S if settings.quick else _PASSES_S
    passes = settings.passes or min(_MOST_PASSES, max(_LEAST_PASSES, round(budget_s / alone_s)))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "passes": passes,
        "passes_alone": max(_LEAST_PASSES, ceil(passes / 2)),
        "settle": max(1, ceil(_SETTLE_S / alone_s)),
        "intensity": list(model.intensity),
        "send_s": transfer.send_s(model.cut_nbytes).tolist(),
        "receive_s": transfer.receive_s(model.cut_nbytes).tolist(),
    }


def _measure(
    settings: Settings,
    partial: Partial,
    header: dict[str, Any],
    model: Runs,
    injector: Starts,
    notify: Callable[[Progress], None],
) -> None:
    """Do all measurements that have not been done."""
    steps = schedule(settings.scenarios, settings.rounds, settings.seed)
    there = {Step(measured.round, measured.scenario) for measured in partial.measured}
    done, total = sum(step.weight for step in there), sum(step.weight for step in steps)
    for step in steps:
        if step in there:
            continue
        notify(Progress(step, done, total))
        passes = measure_load(
            model,
            injector,
            named_load(step.scenario, settings.device),
            name=step.scenario,
            alone=header["passes_alone"],
            loaded=header["passes"],
            after=header["passes_alone"],
            settle=header["settle"],
        )
        partial.add(Measured(step.round, step.scenario, passes))
        done += step.weight


def _table(settings: Settings, header: dict[str, Any], measured: Sequence[Measured]) -> TimingTable:
    blocks = []
    for number, scenario, passes in measured:
        conditions = zip((ALONE, scenario, ALONE), passes, strict=True)
        blocks += [Block(name, number, np.array(seconds, dtype=np.float64)) for name, seconds in conditions]
    return TimingTable(
        model=settings.name,
        device=header["device"],
        cpu_model=header["cpu_model"],
        system=header["system"],
        created=header["created"],
        torch_version=header["torch_version"],
        layers=tuple(header["layers"]),
        intensity=np.array(header["intensity"], dtype=np.float64),
        send_s=np.array(header["send_s"]),
        receive_s=np.array(header["receive_s"]),
        scenarios=settings.scenarios,
        loads=tuple(str(named_load(name, settings.device)) for name in settings.scenarios),
        blocks=tuple(blocks),
        rounds=settings.rounds,
        passes=header["passes"],
        passes_alone=header["passes_alone"],
        quick=settings.quick,
        seed=settings.seed,
        fingerprint=header["fingerprint"],
    )


def _check_same(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise unless what is there was measured as it is to be now."""
    for name, value in asked.items():
        if found.get(name) != value:
            there, here = (_short(x) for x in (found.get(name), value))
            what = "the model has other layers now" if name in ("layers", "fingerprint") else f"{name} is {there} there"
            now = "" if name in ("layers", "fingerprint") else f" and {here} now"
            raise TimingsError(
                f"{path} was recorded otherwise: {what}{now}. Give the same settings on the same machine, choose "
                "another --output, or measure anew with --restart"
            )


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
