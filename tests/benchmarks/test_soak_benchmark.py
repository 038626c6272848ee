"""The soak: slopes and how sure they are, what happens when, and what makes a run fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.checked_load import Counts
from benchmarks.resources import Sample, fd_kinds, left_behind, medians_over, sample, shared_entries, slope_of
from benchmarks.soak import QUANTITIES, Incident, SoakResult, faults, incidents, judge, row
from benchmarks.soak_plot import plot_soak

MIB = 2**20


def at(minute: float, *, driver_mib: float = 300.0, stages: int = 2, log_mib: float = 10.0) -> Sample:
    return Sample(
        60.0 * minute, int(driver_mib * MIB), int(driver_mib * MIB), 60, 40, stages, stages * 200 * MIB, stages * 50,
        stages * 30, 7, 200 * MIB, 3 * MIB, 2, int(log_mib * MIB),
    )  # fmt: skip


def test_a_line_is_found_through_noise_and_stray_points() -> None:
    draw = random.Random(0)
    at_s = [60.0 * k for k in range(30)]
    values = [300.0 + 0.2 * k + draw.gauss(0.0, 0.3) for k in range(30)]
    values[7] = values[20] = 900.0  # two stray points

    slope = slope_of(at_s, values)

    assert slope.per_hour == pytest.approx(12.0, abs=3.0)
    assert slope.low < 12.0 < slope.high
    assert slope.low > 0.0
    assert slope.points == 30


def test_noise_alone_has_no_sure_slope() -> None:
    surely = 0
    for seed in range(200):
        draw = random.Random(seed)
        slope = slope_of([60.0 * k for k in range(24)], [draw.gauss(0.0, 1.0) for _ in range(24)])
        surely += slope.low > 0.0 or slope.high < 0.0
    assert surely <= 20  # 5% of 200 on average


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_points_are_no_line(count: int) -> None:
    with pytest.raises(ValueError, match="measure longer"):
        slope_of([float(k) for k in range(count)], [0.0] * count)


def test_medians_are_of_whole_spans_after_the_warm_up() -> None:
    at_s = [10.0 * k for k in range(12)]
    moments_s, values = medians_over(at_s, at_s, span_s=30.0, since_s=20.0)
    assert moments_s == [35.0, 65.0, 95.0, 125.0]
    assert values == [30.0, 60.0, 90.0, 110.0]


def test_growth_is_found_and_a_stage_less_is_none() -> None:
    flat = [at(k / 6, stages=1 if k % 13 == 0 else 2) for k in range(180)]
    assert not any(verdict.grows for verdict in judge(flat, warmup_s=360.0))
    growing = [at(k / 6, driver_mib=300.0 + 30.0 * k / 180, log_mib=k / 6) for k in range(180)]
    grows = [verdict.name for verdict in judge(growing, warmup_s=360.0) if verdict.grows]
    assert grows == ["driver, RSS", "driver, PSS", "event log"]


def test_what_grows_before_the_warm_up_is_over_does_not_count() -> None:
    samples = [at(k / 6, driver_mib=min(300.0, 10.0 * k)) for k in range(180)]
    assert not any(verdict.grows for verdict in judge(samples, warmup_s=360.0))


def result(minutes: float, samples: list[Sample], **options: object) -> SoakResult:
    counts = options.get("counts", Counts(10, 10, 0, 0, 0, 0))
    assert isinstance(counts, Counts)
    verdicts = tuple(judge(samples, warmup_s=0.0))
    return SoakResult(counts, None, 60.0 * minutes, (), 0, (), tuple(samples), verdicts, {}, "", {}, (), ())


def test_a_run_fails_by_growth_if_it_was_long_enough_and_by_a_lost_request_in_any_case() -> None:
    growing = [at(k / 6, driver_mib=300.0 + k) for k in range(180)]
    assert faults(result(30.0, growing)) == ["driver, RSS grows", "driver, PSS grows"]
    assert faults(result(5.0, growing)) == []
    lost = result(5.0, growing, counts=Counts(10, 9, 1, 0, 0, 0))
    assert faults(lost) == ["1 requests lost, 0 answered twice, 0 changed, 0 refused"]
    left = lost._replace(counts=Counts(10, 10, 0, 0, 0, 0), processes_left=("7 ray",), ended="gone", errors={"E": 2})
    assert faults(left) == ["the pipeline was lost: gone", "2 x E", "left behind: 7 ray"]


def test_rows_name_unit_slope_and_bound() -> None:
    verdict = judge([at(k / 6, driver_mib=300.0 + k) for k in range(180)], warmup_s=0.0)[0]
    assert row(verdict, judged=True) == ["driver, RSS, MiB", "302.5", "476.5", "+360.0 (+360.0..+360.0)", "16", "GROWS"]
    assert row(verdict, judged=False)[-1] == "too short"


def test_what_happens_is_drawn_beforehand_of_each_kind_as_often() -> None:
    planned = incidents(10_000.0, every_s=5.0, seed=1)
    assert planned == incidents(10_000.0, every_s=5.0, seed=1) != incidents(10_000.0, every_s=5.0, seed=2)
    assert len(planned) == pytest.approx(2000, rel=0.1)
    assert [one.at_s for one in planned] == sorted(one.at_s for one in planned)
    kinds = [one.kind for one in planned]
    assert all(kinds.count(kind) == pytest.approx(667, rel=0.15) for kind in ("kill", "stop", "load"))
    assert all(0.5 <= one.length_s <= 4.0 for one in planned if one.kind == "stop")
    assert {one.kind for one in incidents(1000.0, every_s=5.0, seed=1, kinds=["stop"])} == {"stop"}


def test_this_process_is_looked_at(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"x" * 100)
    (tmp_path / "run.jsonl.1").write_bytes(b"x" * 50)

    found = sample([2**22 + 1], log=log)

    assert found.driver_rss_nbytes > 0
    assert found.driver_fds > 0
    assert found.stages == found.stages_fds == 0
    assert found.log_nbytes == 150
    assert all(quantity.read(found) >= 0 for quantity in QUANTITIES)


def test_open_descriptors_are_told_by_kind(tmp_path: Path) -> None:
    before = fd_kinds()
    with (tmp_path / "file").open("wb"):
        more = fd_kinds()
    assert more[str(tmp_path / "file")] == 1
    assert fd_kinds() == before


def test_processes_that_have_ended_are_not_left_behind() -> None:
    assert left_behind([2**22 + 1], since=shared_entries(), wait_s=0.0) == ([], [])


def test_a_run_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "soak.png"
    samples = [at(k / 6) for k in range(12)]
    said = plot_soak(path, samples, [10.0] * 12, [Incident(20.0, "kill", 0.0), Incident(40.0, "load", 3.0)])
    assert said == f"drawn: {path}"
    assert path.stat().st_size > 1000
