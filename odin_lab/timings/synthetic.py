"""A timing table out of a formula, for tests, and for trying things without a measurement."""

from __future__ import annotations

from math import pi

import numpy as np

from odin.partitioner.transfer import DEFAULT_HOP_S
from odin.stages.device import Device
from odin_lab.inject.named import NAMED, named_load
from odin_lab.timings.table import ALONE, Block, FloatArray, TimingTable

__all__ = ["synthetic_timings"]

_ROUNDS, _PASSES, _PASSES_ALONE = 5, 8, 4
_PASS_S, _NOISE_CV = 0.08, 0.02
_COPY_S_PER_BYTE = 1e-10
_DEVICE = Device("cpu", (1,))


def synthetic_timings(layers: int = 18, *, scenarios: int = 12, seed: int = 0) -> TimingTable:
    """Make up a table; its model, machine and date say that it is synthetic.

    A pass takes 80 ms. An arithmetic load with n processes that are busy a part i of the time slows every layer down
    by 1 / (1 - i / 2) for n = 1, by 1 + n for more; a load of memory bandwidth slows a layer down by up to a third
    more, the more the fewer operations per byte the layer has. The noise is log-normal, 2%.

    Parameters
    ----------
    layers
        How many.
    scenarios
        How many of the twelve, in their order.
    seed
        Of everything that is random.

    Raises
    ------
    ValueError
        If there is no layer, or there are not so many scenarios.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; make up at least 1")
    if not 0 <= scenarios <= len(NAMED):
        raise ValueError(f"scenarios is {scenarios}; there are {len(NAMED)}: take 0 to {len(NAMED)}")
    random = np.random.default_rng([seed, layers])
    names = tuple(NAMED)[:scenarios]
    shape_s = 1 + 0.4 * np.cos(2 * pi * np.arange(layers) / 5) + random.uniform(-0.3, 0.3, layers)
    baseline_s = _PASS_S * shape_s / shape_s.sum()
    intensity = random.uniform(5.0, 60.0, layers)
    cut_nbytes = np.concatenate([[600_000], np.geomspace(3_200_000, 400_000, layers)])

    def passes(scenario: str, count: int) -> FloatArray:
        whole = random.normal(0.0, _NOISE_CV, (count, 1))  # most of a machine's noise is common to a pass's layers
        own = random.normal(0.0, _NOISE_CV / 2, (count, layers))
        return np.asarray(baseline_s * _slowdown(scenario, intensity) * np.exp(whole + own))

    blocks = []
    for number in range(_ROUNDS):
        if not names:
            blocks.append(Block(ALONE, number, passes(ALONE, _PASSES)))
        for index in random.permutation(len(names)).tolist():
            blocks.append(Block(ALONE, number, passes(ALONE, _PASSES_ALONE)))
            blocks.append(Block(names[index], number, passes(names[index], _PASSES)))
            blocks.append(Block(ALONE, number, passes(ALONE, _PASSES_ALONE)))
    return TimingTable(
        model=f"synthetic-{layers}",
        device=str(_DEVICE),
        cpu_model="synthetic, no machine",
        system="synthetic",
        created="synthetic, not measured",
        torch_version="none",
        layers=tuple(f"layer{index}" for index in range(layers)),
        intensity=intensity,
        send_s=DEFAULT_HOP_S / 2 + cut_nbytes * _COPY_S_PER_BYTE,
        receive_s=np.full(layers + 1, DEFAULT_HOP_S / 2),
        scenarios=names,
        loads=tuple(str(named_load(name, _DEVICE)) for name in names),
        blocks=tuple(blocks),
        rounds=_ROUNDS,
        passes=_PASSES,
        passes_alone=_PASSES_ALONE,
        seed=seed,
        fingerprint="synthetic",
    )


def _slowdown(scenario: str, intensity: FloatArray) -> FloatArray:
    """What a scenario does to layers of an arithmetic intensity, shape (layers,)."""
    if scenario == ALONE:
        return np.ones_like(intensity)
    load = NAMED[scenario]
    shared = 1 / (1 - load.intensity / 2) if load.threads == 1 else 1.0 + load.threads
    if load.kind == "cpu":
        return np.full_like(intensity, shared)
    return shared * (1 + load.intensity / 3 * (1 - intensity / 60.0))
