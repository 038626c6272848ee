"""Measures what each named scenario does to a model that runs on the same core."""

from __future__ import annotations

import platform
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from odin.stages.device import Device, DeviceError, cpu_model
from odin_lab.inject.calibration import Calibration, Effect
from odin_lab.inject.injector import Injector, check_local_device
from odin_lab.inject.measure import SETTLE_PASSES, Passes, Reference, RunsPasses, measure_load
from odin_lab.inject.named import NAMED, named_load
from odin_lab.inject.play import Starts

__all__ = ["calibrate", "measure_effects"]

_ROUNDS, _PASSES_S = 5, 1.5
_QUICK_ROUNDS, _QUICK_PASSES_S = 1, 0.7
_LEAST_PASSES, _MOST_PASSES = 3, 100


def calibrate(
    model: str,
    device: Device,
    *,
    quick: bool = False,
    names: Sequence[str] = tuple(NAMED),
    notify: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Calibration:
    """Measure every named scenario on a device of this machine.

    Parameters
    ----------
    model
        As for :func:`odin.load_source`.
    device
        Cores that the model and the loads are bound to.
    quick
        One round of fewer passes: about a minute for a ResNet50, to see the order of things.
    names
        Which scenarios.
    notify
        Told before each measurement: the scenario, how many are done, how many there are.

    Raises
    ------
    DeviceError, LoadError
        If the device or the model cannot be.
    LoadFailedError
        If the model's process, or a load, does not run.
    """
    check_local_device(device)
    if device.kind != "cpu":
        raise DeviceError(f"{device}: the named scenarios are loads of cores; name some, such as --on cpu:1")
    with ExitStack() as stack:
        reference = stack.enter_context(Reference(model, device))
        injector = stack.enter_context(Injector())
        rounds, budget_s = (_QUICK_ROUNDS, _QUICK_PASSES_S) if quick else (_ROUNDS, _PASSES_S)
        reference.run(SETTLE_PASSES)
        alone_s = statistics.median(map(sum, reference.run(_LEAST_PASSES)))
        passes = min(_MOST_PASSES, max(_LEAST_PASSES, round(budget_s / alone_s)))
        effects, alone_s = measure_effects(
            reference, injector, device, names, rounds=rounds, passes=passes, notify=notify
        )
        return Calibration(
            model=model,
            device=str(device),
            cpu_model=cpu_model(),
            system=f"{platform.system()} {platform.release()}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            torch_version=reference.torch_version,
            rounds=rounds,
            passes=passes,
            alone_s=alone_s,
            layers=reference.layers,
            effects=effects,
        )


def measure_effects(
    reference: RunsPasses,
    injector: Starts,
    device: Device,
    names: Sequence[str],
    *,
    rounds: int,
    passes: int,
    seed: int = 0,
    notify: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> tuple[tuple[Effect, ...], float]:
    """Measure scenarios in rounds, each alone and under load right after, so that a machine's drift cancels.

    Returns
    -------
    tuple of Effect
        In the order of ``names``.
    float
        Median seconds of a pass alone.
    """
    order = random.Random(seed)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    layer_ratios: dict[str, Passes] = {name: [] for name in names}
    all_alone_s: list[float] = []
    for number in range(rounds):
        shuffled = list(names)
        order.shuffle(shuffled)
        for position, name in enumerate(shuffled):
            notify(name, number * len(names) + position, rounds * len(names))
            load = named_load(name, device)
            alone, disturbed, _ = measure_load(reference, injector, load, name=name, alone=passes, loaded=passes)
            alone_s = statistics.median(map(sum, alone))
            layer_alone_s = [statistics.median(seconds) for seconds in zip(*alone, strict=True)]
            all_alone_s += map(sum, alone)
            ratios[name] += [sum(seconds) / alone_s for seconds in disturbed]
            layer_ratios[name] += [
                [now_s / then_s if then_s > 0 else 1.0 for now_s, then_s in zip(seconds, layer_alone_s, strict=True)]
                for seconds in disturbed
            ]
    effects = []
    for name in names:
        low, median, high = statistics.quantiles(ratios[name], n=4, method="inclusive")
        by_layer = tuple(statistics.median(values) for values in zip(*layer_ratios[name], strict=True))
        effects.append(Effect(name, median, low, high, by_layer))
    return tuple(effects), statistics.median(all_alone_s)
