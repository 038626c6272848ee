"""The ODIN paper's evaluation as one study: models x periods x durations x policies, then ResNet152 on 4 to 52 devices.

::

    grid      every model, 4 devices:  period {2, 10, 100} x duration {2, 10, 100} x policies x repeats
    scaling   the deepest model, {4, 8, 16, 26, 39, 52} devices: the same cells x policies x fewer repeats
    timelines two telling cells of one model;  detection: delay against the bound

A repeat is a seed: repeat r of every cell has the noise and events of ``seed + r``, for every policy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from odin_lab.report.comparison import is_ours
from odin_lab.report.results import Cell, DetectionPoint, Timeline
from odin_lab.simulator.metrics import paired
from odin_lab.simulator.study import Contestant, DetectionJob, Job, Outcome, RunJob, Setup, Stretch, StudyError
from odin_lab.simulator.summary import PAPER
from odin_lab.timings import TimingsError, TimingTable, load_timings, shipped_timings
from odin_lab.timings.files import file_name

__all__ = [
    "DEVICES",
    "MODELS",
    "POLICIES",
    "REQUESTS",
    "SCALING_DEVICES",
    "STEPS",
    "PaperStudy",
    "gather",
    "paper_notes",
    "paper_study",
]

MODELS = ("vgg16", "resnet50", "resnet152")
SCALING_MODELS = ("resnet152-fine", "resnet152")  # the first that there is
DEVICES = 4
SCALING_DEVICES = (4, 8, 16, 26, 39, 52)
REQUESTS = 4000
STEPS = (2, 10, 100)
"""Periods, and durations, in requests."""
POLICIES = tuple(
    Contestant.parse(text)
    for text in (
        "static",
        "lls",
        "lls (serial)",
        "odin:alpha=2",
        "odin:alpha=2 (serial)",
        "odin:alpha=10",
        "odin:alpha=10 (serial)",
        "filter",
        "relay",
        "delayed-oracle (answered)",
        "delayed-oracle",
        "oracle",
    )
)
"""The paper's, which explore serially, as a pipeline that goes on serving would have them too; ours; the yardsticks."""
_SHOWN = ("static", "lls", "odin:alpha=10", "filter", "relay", "delayed-oracle")
_STRETCHES = {(100, 100): 600, (10, 10): 200}  # cells shown over time, and requests of them
_DETECTORS = ("cusum", "threshold")
_NOISE_CVS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class PaperStudy:
    """What is to be run.

    Attributes
    ----------
    models
        Timing tables of the grid by what names them: a shipped model, or a path.
    scaling
        The same for the study over devices; empty for none.
    contestants
        Policies.
    devices, scaling_devices, requests, steps
        Of each run; periods and durations are all pairs of ``steps``. Between the fewest and the most devices of the
        scaling study only pairs of equals are run.
    repeats, scaling_repeats, seed
        Repeat r has seed ``seed + r``.
    detection
        Whether detectors are measured too.
    """

    models: Mapping[str, TimingTable]
    scaling: Mapping[str, TimingTable] = field(default_factory=dict)
    contestants: tuple[Contestant, ...] = POLICIES
    devices: int = DEVICES
    scaling_devices: tuple[int, ...] = SCALING_DEVICES
    requests: int = REQUESTS
    steps: tuple[int, ...] = STEPS
    repeats: int = 3
    scaling_repeats: int = 1
    seed: int = 0
    detection: bool = True

    def __post_init__(self) -> None:
        for name in ("repeats", "scaling_repeats"):
            if getattr(self, name) < 1:
                raise StudyError(f"{getattr(self, name)} {name.replace('_', ' ')}: at least 1 is needed")

    def jobs(self) -> tuple[Job, ...]:
        """All runs, repeat by repeat, so that a study that is broken off holds whole repeats."""
        grid = [
            self._job("grid", table, self.devices, cell, contestant, repeat)
            for repeat in range(self.repeats)
            for table in self.models
            for cell in itertools.product(self.steps, repeat=2)
            for contestant in self.contestants
        ]
        scaling = [
            self._job("scaling", table, devices, cell, contestant, repeat)
            for repeat in range(self.scaling_repeats)
            for table in self.scaling
            for devices in sorted(self.scaling_devices, reverse=True)
            for cell in itertools.product(self.steps, repeat=2)
            if len(set(cell)) == 1 or devices in (min(self.scaling_devices), max(self.scaling_devices))
            for contestant in self.contestants
            if not contestant.serial
        ]
        detection = [DetectionJob(name, cv, self.seed) for name in _DETECTORS for cv in _NOISE_CVS]
        return (*grid, *(detection if self.detection else ()), *scaling)

    def _job(
        self, study: str, table: str, devices: int, cell: tuple[int, ...], contestant: Contestant, repeat: int
    ) -> RunJob:
        period, duration = cell
        setup = Setup(study, table, devices, self.requests, period, duration)
        stretch = None
        shown = _STRETCHES.get((period, duration), 0)
        if shown and study == "grid" and repeat == 0 and table == self._shown_table and str(contestant) in _SHOWN:
            stretch = Stretch(f"period {period}, duration {duration}, {devices} devices", 0, shown)
        return RunJob(setup, contestant, self.seed + repeat, repeat, stretch)

    @property
    def _shown_table(self) -> str:
        names = list(self.models)
        return "resnet50" if "resnet50" in names else names[0]

    @property
    def own(self) -> tuple[str, ...]:
        """Policies that are held against the goals: ours, and those that are not the study's own."""
        known = {str(contestant) for contestant in POLICIES}
        return tuple(text for text in map(str, self.contestants) if is_ours(text) or text not in known)


def paper_study(
    *,
    models: Sequence[str] = (),
    scaling: str | None = None,
    extra: Sequence[Contestant] = (),
    requests: int | None = None,
    repeats: int | None = None,
    scaling_repeats: int = 1,
    seed: int = 0,
    quick: bool = False,
) -> PaperStudy:
    """Put the study together, and see that there are timings for it.

    Parameters
    ----------
    models
        Models of the grid by name or path of their timing tables; default: the paper's three.
    scaling
        The model of the study over devices, in the same way; default: ResNet152 if the grid is the paper's, else the
        last of ``models``.
    extra
        Policies beside those of the study.
    requests, repeats, scaling_repeats, seed
        Sizes; the default is the paper's 4,000 requests, and 3 repeats.
    quick
        1,000 requests, one repeat, and three numbers of devices, for a look.

    Raises
    ------
    StudyError
        If timings are missing; says how to record them.
    """
    tables = _load(models or MODELS)
    if scaling is None:
        there = [name for name in SCALING_MODELS if name in shipped_timings()]
        scaling = list(tables)[-1] if models else there[0]
    contestants = tuple(dict.fromkeys((*POLICIES, *extra)))
    sizes = (SCALING_DEVICES[0], 16, SCALING_DEVICES[-1]) if quick else SCALING_DEVICES
    return PaperStudy(
        tables,
        _load((scaling,)),
        contestants,
        scaling_devices=sizes,
        requests=(1000 if quick else REQUESTS) if requests is None else requests,
        repeats=(1 if quick else 3) if repeats is None else repeats,
        scaling_repeats=scaling_repeats,
        seed=seed,
    )


def _load(names: Sequence[str]) -> dict[str, TimingTable]:
    """Timing tables by what names them."""
    tables, missing = {}, []
    shipped = shipped_timings()
    for name in dict.fromkeys(names):
        if name in MODELS and name not in shipped:
            missing.append(name)
            continue
        tables[name] = load_timings(name)
        if not tables[name].scenarios:
            raise TimingsError(f"{name} was recorded without scenarios; record it with odin record --scenarios paper12")
    if missing:
        places = [f"timings/{file_name(name)}" if name in missing else name for name in names]
        files = " ".join(f"--model {place}" for place in places)
        raise StudyError(
            f"no timings of {', '.join(missing)} are shipped: record them on a machine that does nothing else by "
            f"odin record {' '.join(missing)} --scenarios paper12, then odin simulate paper {files}"
        )
    by_model: dict[str, str] = {}
    for name, table in tables.items():
        if other := by_model.get(table.model):
            raise StudyError(f"{other} and {name} are both timings of {table.model}; leave one of them out")
        by_model[table.model] = name
    return tables


def paper_notes(study: PaperStudy) -> tuple[str, ...]:
    """What a reader of the results must know."""
    notes = [
        PAPER,
        "Policies marked (serial) let requests through one at a time while they explore, as the paper has it; the "
        "others go on serving, as the live pipeline does. All see changes through the same detector, cusum.",
        f"Every cell: {study.requests} requests in a closed loop, interference on random devices by random ones of the "
        f"table's scenarios, noise as measured; repeat r has seed {study.seed} + r. Repeats: {study.repeats} on "
        f"{study.devices} devices, {study.scaling_repeats} for scaling.",
    ]
    for name, table in {**study.models, **study.scaling}.items():
        notes.append(
            f"{table.model}: {table.layer_count} layers, {table.cpu_model}, {table.device}, {table.created}, "
            f"scenarios {', '.join(table.scenarios)}"
        )
        most = max(study.scaling_devices) if name in study.scaling else study.devices
        if table.layer_count < most:
            notes.append(
                f"{table.model} has {table.layer_count} layers, so on {most} devices some have none; timings of a "
                "finer chain would leave policies more to move"
            )
    return tuple(notes)


def gather(outcomes: Sequence[Outcome]) -> tuple[tuple[Cell, ...], tuple[Timeline, ...], tuple[DetectionPoint, ...]]:
    """All cells, with their ratios to the references, timelines and detection points, in an order of their own."""
    cells = paired([cell for outcome in outcomes for cell in outcome.cells])
    timelines = (line for outcome in outcomes for line in outcome.timelines)
    detections = (point for outcome in outcomes for point in outcome.detections)
    return (
        tuple(sorted(cells, key=lambda cell: cell.key)),
        tuple(sorted(timelines, key=lambda line: (line.study, line.model, line.title, line.policy))),
        tuple(sorted(detections, key=lambda point: (point.detector, point.noise_cv, point.slowdown))),
    )
