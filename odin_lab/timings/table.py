"""Measured passes through a model, and what they say: baselines, slowdowns, spread, noise.

Passes lie in blocks, in order of time. Every block under a scenario has a block alone before it and one after it, and
is compared with these two only, so that a machine's drift does not pass for interference::

    round 0:   alone | cpu-50 | alone    alone | membw-100 | alone    ...
    round 1:   alone | membw-25 | alone  ...                                 the same scenarios in another order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from odin_lab.timings.estimate import estimate_slowdown, pass_slowdowns

__all__ = ["ALONE", "Block", "TimingTable"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ALONE = "alone"
"""What passes without a load are called where a scenario's name would stand."""


class Block(NamedTuple):
    """Passes one right after the other under the same conditions.

    Attributes
    ----------
    scenario
        Name of the scenario, or :data:`ALONE`.
    round
        Which round of measurements, from 0.
    layer_s
        Seconds of each layer in each pass, shape (passes, layers).
    """

    scenario: str
    round: int
    layer_s: FloatArray


@dataclass(frozen=True, eq=False)
class TimingTable:
    """One model's layer times on one device.

    Attributes
    ----------
    model, device
        What ran, and where, with each load on the same cores.
    cpu_model, system
        The machine.
    created
        When measuring began, ISO 8601, UTC.
    torch_version
        The PyTorch that ran the model.
    layers
        The layers' names.
    intensity
        Floating-point operations of each layer per byte of weights, inputs and outputs, shape (layers,).
    send_s, receive_s
        Seconds to send, to receive, what crosses each cut, shape (layers + 1,), the model's input and output included.
    scenarios
        Names of the scenarios, without :data:`ALONE`.
    loads
        Each scenario's load in text form, such as ``cpu@cpu:1*0.5``.
    blocks
        All passes, in order of time.
    rounds, passes, passes_alone
        How often each scenario was measured; passes of a block under a scenario, and of one alone.
    quick
        Whether it was a trial, with few passes: not for conclusions.
    seed
        Of the order of scenarios.
    fingerprint
        Of the chain: what the layers compute.

    Raises
    ------
    ValueError
        If shapes do not fit together, times are not positive numbers, or a scenario has no block, or one without a
        block alone beside it.
    """

    model: str
    device: str
    cpu_model: str
    system: str
    created: str
    torch_version: str
    layers: tuple[str, ...]
    intensity: FloatArray
    send_s: FloatArray
    receive_s: FloatArray
    scenarios: tuple[str, ...]
    loads: tuple[str, ...]
    blocks: tuple[Block, ...]
    rounds: int
    passes: int
    passes_alone: int
    quick: bool = False
    seed: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        count = len(self.layers)
        if count < 1:
            raise ValueError("a timing table without layers; measure it anew")
        shapes = {"intensity": (count,), "send_s": (count + 1,), "receive_s": (count + 1,)}
        for name, shape in shapes.items():
            if (found := getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {found}, where {count} layers need {shape}; measure it anew")
        if ALONE in self.scenarios or len(set(self.scenarios)) < len(self.scenarios):
            raise ValueError(f"scenarios are {', '.join(self.scenarios)}; name each once, and not {ALONE!r}")
        if len(self.loads) != len(self.scenarios):
            raise ValueError(f"{len(self.loads)} loads for {len(self.scenarios)} scenarios; measure it anew")
        for block in self.blocks:
            if block.layer_s.ndim != 2 or block.layer_s.shape[1] != count or not len(block.layer_s):
                raise ValueError(f"a block has shape {block.layer_s.shape}, where there are {count} layers")
            total_s = block.layer_s.sum(axis=1)
            if not np.isfinite(block.layer_s).all() or (block.layer_s < 0).any() or (total_s <= 0).any():
                raise ValueError(f"a pass of scenario {block.scenario!r} took no positive number of seconds")
        missing = sorted({*self.scenarios, ALONE} - {block.scenario for block in self.blocks})
        foreign = sorted({block.scenario for block in self.blocks} - {*self.scenarios, ALONE})
        if missing or foreign:
            what = f"no passes of {', '.join(missing)}" if missing else f"passes of {', '.join(foreign)}, not announced"
            raise ValueError(f"there are {what}; measure it anew")
        for index, block in enumerate(self.blocks):
            if block.scenario != ALONE and not self._around(index):
                raise ValueError(f"a block of {block.scenario!r} has no passes alone beside it; measure it anew")

    @property
    def layer_count(self) -> int:
        """Layers of the chain."""
        return len(self.layers)

    @property
    def alone_s(self) -> float:
        """Median seconds of a whole pass alone."""
        return float(np.median(self.passes_s().sum(axis=1)))

    def passes_s(self, scenario: str = ALONE) -> FloatArray:
        """Seconds of each layer in each pass under a scenario, or alone, in order of time; shape (passes, layers).

        Raises
        ------
        ValueError
            If the scenario was not measured.
        """
        return np.concatenate([block.layer_s for block in self._blocks(scenario)])

    def pass_rounds(self, scenario: str = ALONE) -> IntArray:
        """Round of each of those passes, shape (passes,)."""
        return np.concatenate(
            [np.full(len(block.layer_s), block.round, dtype=np.int64) for block in self._blocks(scenario)]
        )

    def baseline_s(self) -> FloatArray:
        """Median seconds of each layer alone, shape (layers,)."""
        return np.asarray(np.median(self.passes_s(), axis=0))

    def slowdown(self, scenario: str) -> FloatArray:
        """Slowdown of each layer under a scenario, shape (layers,); see :mod:`odin_lab.timings.estimate`.

        Passes under load are compared with those alone just before and after. The layers' times add up to those of
        the round with the median slowdown. 1 for :data:`ALONE`.
        """
        if scenario == ALONE:
            return np.ones(self.layer_count)
        return estimate_slowdown(self._compared(scenario), self.baseline_s())

    def round_slowdowns(self, scenario: str) -> FloatArray:
        """Slowdown of a whole pass in each round, mean / mean, in order of time, shape (rounds,)."""
        return pass_slowdowns(self._compared(scenario))

    def spread(self, scenario: str) -> tuple[float, float, float]:
        """Quartiles of the slowdown of single passes: each one's seconds / the median alone around its block."""
        ratios = [
            loaded_s.sum(axis=1) / np.median(alone_s.sum(axis=1)) for loaded_s, alone_s in self._compared(scenario)
        ]
        low, median, high = np.quantile(np.concatenate(ratios), (0.25, 0.5, 0.75)).tolist()
        return low, median, high

    def residuals(self, scenario: str = ALONE) -> FloatArray:
        """What neighbouring passes differ by: ln(seconds of a pass / median of its block), in order of time, (passes,).

        A block are the passes that were measured one right after the other.
        """
        noise = []
        for block in self._blocks(scenario):
            total_s = block.layer_s.sum(axis=1)
            noise.append(np.log(total_s / np.median(total_s)))
        return np.concatenate(noise)

    def drift(self) -> tuple[FloatArray, FloatArray]:
        """Drift of undisturbed times, as on a host that others use, from block to block.

        Returns
        -------
        tuple
            Seconds of passes before the middle of each block of passes alone, shape (blocks,): pauses do not count.
            And ln(median of that block / median of all such blocks), shape (blocks,).
        """
        lasts_s = np.array([block.layer_s.sum() for block in self.blocks])
        middle_s = np.cumsum(lasts_s) - lasts_s / 2
        alone = np.array([block.scenario == ALONE for block in self.blocks])
        level = np.array([np.log(np.median(block.layer_s.sum(axis=1))) for block in self._blocks(ALONE)])
        return middle_s[alone], level - np.median(level)

    def _blocks(self, scenario: str) -> Sequence[Block]:
        self._check(scenario)
        return [block for block in self.blocks if block.scenario == scenario]

    def _compared(self, scenario: str) -> list[tuple[FloatArray, FloatArray]]:
        """Passes of each block of a scenario, and those alone around it."""
        self._check(scenario)
        return [
            (block.layer_s, np.concatenate(self._around(index)))
            for index, block in enumerate(self.blocks)
            if block.scenario == scenario
        ]

    def _around(self, index: int) -> list[FloatArray]:
        """Passes alone just before and after a block, in the same round."""
        near = [self.blocks[i] for i in (index - 1, index + 1) if 0 <= i < len(self.blocks)]
        return [block.layer_s for block in near if block.scenario == ALONE and block.round == self.blocks[index].round]

    def _check(self, scenario: str) -> None:
        if scenario not in self.scenarios and scenario != ALONE:
            close = get_close_matches(scenario, self.scenarios, n=1)
            hint = f"did you mean {close[0]!r}? There is" if close else "there is"
            raise ValueError(
                f"{self.model} was not measured under {scenario!r}; {hint} {', '.join((ALONE, *self.scenarios))}"
            )
