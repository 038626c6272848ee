"""How long layers take by the number of samples in a micro-batch: what is expected, and what was measured.

Layers are timed with one sample and with a full micro-batch. What is expected between lies on the straight line through
both, a cost for each call and one for each sample::

    t(n) = t(1) + (t(batch) - t(1)) * (n - 1) / (batch - 1)

A measured time of ``n`` samples is compared with others as if the micro-batch had been full: times t(batch) / t(n) of
the layers that were run. So one of three samples does not look like a stage that has become faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from odin.monitor.events import RunStarted
from odin.monitor.timing import RequestTimeline, StageTiming

__all__ = ["SampleTimes", "StageRow"]


class StageRow(NamedTuple):
    """Seconds of one stage for some number of samples: of each layer, and of all from each cut on."""

    layer_s: list[float]
    behind_s: list[float]

    def between_s(self, first: int, last: int) -> float:
        """Seconds of the layers ``[first, last)``."""
        return self.behind_s[first] - self.behind_s[last]

    @classmethod
    def of(cls, layer_s: Iterable[float]) -> StageRow:
        """Add up from the last layer on."""
        layers = [float(seconds) for seconds in layer_s]
        return cls(layers, [*itertools.accumulate(reversed(layers), initial=0.0)][::-1])


class SampleTimes:
    """What the layers of each stage take with nothing else running.

    Parameters
    ----------
    full_s
        Seconds of each layer on each stage's device for a full micro-batch, shape (stages, layers).
    single_s
        The same for one sample; None or empty if that is not known: then all micro-batches are taken to be full.
    batch
        Samples in a full one.

    Examples
    --------
    >>> times = SampleTimes([[0.8, 0.4]], [[0.1, 0.4]], batch=8)
    >>> [round(times.at(samples)[0].layer_s[0], 9) for samples in (1, 4, 8, 9)]
    [0.1, 0.4, 0.8, 0.8]
    >>> round(times.share(0, 1), 9)
    0.416666667
    """

    def __init__(
        self,
        full_s: Iterable[Iterable[float]],
        single_s: Iterable[Iterable[float]] | None = None,
        *,
        batch: int = 1,
    ) -> None:
        self.full: Sequence[StageRow] = [StageRow.of(row) for row in full_s]
        self.batch = batch
        single = [StageRow.of(row) for row in (() if single_s is None else single_s)]
        fits = [len(row.layer_s) for row in single] == [len(row.layer_s) for row in self.full]
        self._by_samples = {1: single} if fits and batch > 1 else {}

    @classmethod
    def of_run(cls, run: RunStarted) -> Self:
        """Those that a run's first event tells."""
        stages = run.stages
        return cls([stage.baseline_s for stage in stages], [stage.single_s for stage in stages], batch=run.batch)

    def at(self, samples: int) -> Sequence[StageRow]:
        """One row for each stage; 0 samples: not known, and taken to be a full micro-batch."""
        if not self._by_samples or not 0 < samples < self.batch:
            return self.full
        rows = self._by_samples.get(samples)
        if rows is None:
            part = (samples - 1) / (self.batch - 1)
            rows = self._by_samples[samples] = [
                StageRow.of(one_s + part * (all_s - one_s) for one_s, all_s in zip(*layers, strict=True))
                for layers in zip(self._layers_of(1), self._layers_of(self.batch), strict=True)
            ]
        return rows

    def _layers_of(self, samples: int) -> list[list[float]]:
        return [row.layer_s for row in self.at(samples)]

    def share(self, stage: int, samples: int) -> float:
        """Seconds of the whole chain for so many samples, over those for a full micro-batch."""
        full_s = self.full[stage].behind_s[0]
        return self.at(samples)[stage].behind_s[0] / full_s if full_s > 0 else 1.0

    def as_full(self, timeline: RequestTimeline) -> RequestTimeline:
        """The timings that a full micro-batch would have had; the same object if it was one."""
        rows = self.at(timeline.samples)
        if rows is self.full:
            return timeline
        return timeline._replace(stages=tuple(self._as_full(timing, rows) for timing in timeline.stages))

    def _as_full(self, timing: StageTiming, rows: Sequence[StageRow]) -> StageTiming:
        stage, first, last = timing[:3]
        if stage >= len(rows) or last >= len(rows[stage].behind_s):
            return timing  # of another pipeline, as a log may have it
        full, row = self.full[stage], rows[stage]
        expected_s = row.between_s(first, last)
        if not expected_s > 0:  # it ran no layers, or no time was measured for them
            return timing
        factor = full.between_s(first, last) / expected_s
        layers = range(first, last)
        layer_s = tuple(
            took_s * (full.layer_s[layer] / row.layer_s[layer] if row.layer_s[layer] > 0 else factor)
            for layer, took_s in zip(layers, timing.layer_s, strict=False)
        )
        return timing._replace(
            wall_s=factor * timing.wall_s,
            cpu_s=factor * timing.cpu_s,
            run_delay_s=factor * timing.run_delay_s,
            layer_s=layer_s,
        )
