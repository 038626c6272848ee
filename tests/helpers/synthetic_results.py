"""Synthetic results, made up from a seed, for tests of the report: nothing in them was measured or simulated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from odin_lab.report.results import QUANTILES, SLO_LEVELS, Cell, DetectionPoint, Results, Timeline, Validation

POLICIES = ("relay", "filter", "odin:alpha=2", "odin:alpha=10", "lls", "static", "oracle", "delayed-oracle")
_QUALITY = {
    "relay": 0.99,
    "filter": 0.975,
    "odin:alpha=2": 0.86,
    "odin:alpha=10": 0.83,
    "lls": 0.82,
    "static": 0.68,
    "oracle": 1.0,
    "delayed-oracle": 0.985,
    "ray-serve": 0.61,
    "torch-2-threads": 0.52,
}
_CHANGES = {
    "relay": 0.0,
    "filter": 1.4,
    "odin:alpha=2": 5.2,
    "odin:alpha=10": 14.0,
    "lls": 6.5,
    "static": 0.0,
    "oracle": 2.0,
}
_MODELS = ("resnet152", "resnet50", "vgg16")


def synthetic_cell(
    study: str,
    model: str,
    policy: str,
    *,
    quality: float,
    devices: int = 4,
    period: float = 10.0,
    duration: float = 10.0,
    repeat: int = 0,
) -> Cell:
    """A cell whose numbers follow from its quality, a share of the oracle's throughput."""
    peak_hz = 30.0 * devices / 4
    throughput_hz = 0.8 * peak_hz * quality
    p50_s = 0.25 / quality
    quantiles_s = tuple(
        p50_s * (0.7 + 0.3 * (q / 0.5) if q < 0.5 else 1 + 3 * (q - 0.5) ** 2 / quality) for q in QUANTILES
    )
    live = study.startswith("live")
    return Cell(
        study=study,
        model=model,
        policy=policy,
        devices=devices,
        period=period,
        duration=duration,
        repeat=repeat,
        requests=4000,
        lost=0,
        events=40,
        throughput_hz=throughput_hz,
        peak_hz=peak_hz,
        latency_mean_s=p50_s,
        latency_p50_s=p50_s,
        latency_p99_s=quantiles_s[99],
        latency_quantiles_s=quantiles_s,
        below_peak=tuple(min(1.0, (level / quality) ** 6 * 0.5) for level in SLO_LEVELS),
        exploring=0.02 * _CHANGES.get(policy, 1.0),
        trials_per_event=_CHANGES.get(policy, 1.0),
        changes_per_event=math.nan if policy in ("ray-serve", "torch-2-threads") else _CHANGES.get(policy, 1.8),
        of_oracle=math.nan if live else quality,
        of_delayed=math.nan if live else quality / 0.985,
        of_static=quality / 0.68,
        memory_bytes=(1.2e9 + 1e8 * len(policy)) if live else math.nan,
    )


def synthetic_grid(policies: tuple[str, ...] = POLICIES, *, repeats: int = 3, seed: int = 0) -> Results:
    """The shape of ``odin simulate paper``: grid, scaling, timelines, detection."""
    random = np.random.default_rng(seed)
    cells = []
    for model in _MODELS:
        for period in (2.0, 10.0, 100.0):
            for duration in (2.0, 10.0, 100.0):
                for repeat in range(repeats):
                    for policy in policies:
                        best = _QUALITY.get(policy, 0.9)
                        hard = 0.04 * (1 - best) * (100 / period) ** 0.5 * (duration / 10) ** 0.2
                        quality = best if policy == "oracle" else best - hard + random.normal(0, 0.004)
                        cells.append(
                            synthetic_cell(
                                "grid", model, policy, quality=quality, period=period, duration=duration, repeat=repeat
                            )
                        )
    for devices in (4, 8, 12, 20, 28, 36, 44, 52):
        for repeat in range(repeats):
            for policy in policies:
                fall = (1 - _QUALITY.get(policy, 0.9)) * (devices / 52) ** 0.5
                quality = 1.0 if policy == "oracle" else 1 - fall + random.normal(0, 0.01)
                cells.append(
                    synthetic_cell("scaling", "resnet152", policy, quality=quality, devices=devices, repeat=repeat)
                )
    return Results(
        command="odin simulate paper --output synthetic.json",
        created="2026-01-01T00:00:00+00:00",
        environment={"cpu": "synthetic (no machine)", "python": "3.11.7", "data": "SYNTHETIC"},
        cells=tuple(cells),
        timelines=tuple(synthetic_timeline("grid", policy, devices=4, seed=seed) for policy in policies),
        detections=synthetic_detections(),
        notes=("SYNTHETIC numbers from a seed, for tests of the report: see `tests/synthetic_results.py`.",),
    )


def synthetic_timeline(study: str, policy: str, *, devices: int, seed: int = 0, seconds: float = 60.0) -> Timeline:
    """Throughput that falls with interference and comes back sooner under better policies."""
    random = np.random.default_rng(seed)
    at_s = np.linspace(0, seconds, 1200)
    events = [(6.0, 21.0, 1, "cpu-100x2"), (26.0, 41.0, devices - 1, "membw-100"), (33.0, 50.0, 0, "cpu-50")]
    rate_hz = np.full(at_s.size, 30.0)
    changes = []
    late_s = {"filter": 0.5, "oracle": 0.0, "delayed-oracle": 0.3, "lls": 4.0}.get(policy, 3.0)
    for start_s, stop_s, device, _ in events:
        under = (at_s >= start_s) & (at_s < stop_s)
        rate_hz[under] *= 0.8
        rate_hz[under & ((at_s < start_s + late_s) | (policy == "static"))] *= 0.6
        if policy != "static":
            changes += [(start_s + late_s, f"{9 - device}|{9 + device}"), (stop_s + late_s, "9|9")]
    if policy.startswith("odin"):
        changes += [(start_s + late_s * k / 6, "8|10") for start_s, *_ in events for k in range(1, 6)]
    rate_hz = rate_hz * np.exp(random.normal(0, 0.03, at_s.size))
    return Timeline(
        study=study,
        model="resnet50",
        policy=policy,
        title="three events (synthetic)",
        at_s=tuple(at_s),
        throughput_hz=tuple(rate_hz),
        latency_s=tuple(4 / rate_hz),
        interference=tuple(events),
        changes=tuple(sorted(changes)),
        peak_hz=30.0,
    )


def synthetic_detections() -> tuple[DetectionPoint, ...]:
    """Delays some way above their bounds."""
    points = []
    for at, detector in enumerate(("cusum", "page-hinkley", "adwin")):
        for noise in (0.05, 0.1, 0.2):
            for slowdown in (1.1, 1.25, 1.5, 2.0, 3.0):
                bound = 7.0 / (math.log(slowdown) ** 2 / (2 * noise**2))
                delay = max(1.0, bound * (1.2 + 0.6 * at)) + 0.3 * at
                points.append(DetectionPoint(detector, noise, slowdown, delay, bound, 1.0, 0.01 * at))
    return tuple(points)


def synthetic_live(*, repeats: int = 5, seed: int = 1) -> Results:
    """The shape of ``odin bench live``."""
    random = np.random.default_rng(seed)
    policies = ("filter", "odin:alpha=2", "odin:alpha=10", "lls", "static", "ray-serve", "torch-2-threads")
    cells = tuple(
        synthetic_cell(
            "live",
            "resnet50",
            policy,
            quality=_QUALITY[policy] * math.exp(random.normal(0, 0.03)),
            devices=2,
            period=20.0,
            duration=10.0,
            repeat=repeat,
        )
        for repeat in range(repeats)
        for policy in policies
    )
    validations = tuple(
        Validation(name, policy, 14 * _QUALITY[policy], 14.3 * _QUALITY[policy], 0.4, 0.41 + 0.06 * at)
        for name in ("calm", "one load")
        for at, policy in enumerate(("filter", "lls", "static"))
    )
    return Results(
        command="odin bench live --output synthetic-live.json",
        created="2026-01-02T00:00:00+00:00",
        environment={"cpu": "synthetic (no machine)", "cores": "2", "data": "SYNTHETIC"},
        cells=cells,
        timelines=tuple(synthetic_timeline("live", policy, devices=2) for policy in policies[:5]),
        validations=validations,
    )


def write_synthetic(folder: Path) -> tuple[Path, Path]:
    """Both as files."""
    return synthetic_grid().write(folder / "grid.json"), synthetic_live().write(folder / "live.json")
