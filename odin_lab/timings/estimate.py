"""How much each layer is slowed down, out of passes that say it with much noise.

A load on the same core and the model take turns of milliseconds. A layer that is shorter than a turn runs either as
fast as ever or is suspended for a whole turn, so the median of its times says "not slowed down" while the pass takes
twice as long: means are needed, and the mean of a few passes is uncertain. With, for one layer,

::

    m      mean over passes of (seconds under load / median seconds alone around them)
    e      variance of that mean: K / seconds alone, as if suspensions met all layers by chance, with K from the
           scatter of all layers (that of one layer alone is too small where none happened to meet it)
    c, b   centre of m over the layers, weighted by their time, and how much they differ by more than e explains

the estimate ``c + b / (b + e) (m - c)`` takes from a layer what it says for certain and else what all layers say
(empirical Bayes; Morris, JASA 78, 1983). All are scaled so that the layers' times add up to the slowdown of the pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Compared", "estimate_slowdown", "pass_slowdowns"]

FloatArray = NDArray[np.float64]

Compared = Sequence[tuple[FloatArray, FloatArray]]
"""For each round seconds under load, shape (passes, layers), and seconds alone around them, likewise."""


def pass_slowdowns(compared: Compared) -> FloatArray:
    """Slowdown of a whole pass in each round: mean seconds under load / mean seconds alone; shape (rounds,)."""
    return np.array([loaded_s.sum(axis=1).mean() / alone_s.sum(axis=1).mean() for loaded_s, alone_s in compared])


def estimate_slowdown(compared: Compared, baseline_s: FloatArray) -> FloatArray:
    """Slowdown of each layer, shape (layers,); the median round's for the pass as a whole.

    Parameters
    ----------
    compared
        What was measured.
    baseline_s
        Seconds of each layer alone, shape (layers,): how much it counts. A layer that takes none is as slow as the
        pass.
    """
    overall = float(np.median(pass_slowdowns(compared)))
    rows = []
    for loaded_s, alone_s in compared:
        median_s = np.median(alone_s, axis=0)
        rows.append(np.divide(loaded_s, median_s, out=np.full_like(loaded_s, overall), where=median_s > 0))
    ratios = np.concatenate(rows)
    mean, share = ratios.mean(axis=0), baseline_s / baseline_s.sum()
    error = np.full_like(mean, np.inf)
    if len(ratios) > 1:
        scatter_s = float((ratios.var(axis=0, ddof=1) * baseline_s**2).sum() / baseline_s.sum())
        np.divide(scatter_s / len(ratios), baseline_s, out=error, where=baseline_s > 0)
    centre = float(share @ mean)
    timed = share > 0
    between = max(0.0, float(share[timed] @ ((mean - centre) ** 2 - error)[timed]))
    trust = np.divide(between, between + error, out=np.zeros_like(mean), where=between + error > 0)
    own = centre + trust * (mean - centre)
    return np.asarray(own * (overall / float(share @ own)))
