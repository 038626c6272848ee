"""Timing tables: what is computed from measured passes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from patience import PROMPT_S

from odin_lab.inject.named import NAMED
from odin_lab.timings import ALONE, Block, TimingTable, synthetic_timings


def block(scenario, number, *passes):
    return Block(scenario, number, np.array(passes, dtype=float))


def table(*blocks, scenarios=("cpu-50",), layers=("a", "b")):
    return TimingTable(
        model="m",
        device="cpu:1",
        cpu_model="Some CPU",
        system="Linux 6",
        created="2026-01-01T00:00:00+00:00",
        torch_version="2.6",
        layers=layers,
        intensity=np.arange(1.0, 1 + len(layers)),
        send_s=np.full(len(layers) + 1, 1e-4),
        receive_s=np.full(len(layers) + 1, 6e-5),
        scenarios=scenarios,
        loads=tuple(f"{name}@cpu:1" for name in scenarios),
        blocks=blocks,
        rounds=2,
        passes=2,
        passes_alone=1,
    )


DRIFTING = (  # the machine becomes three times as slow between the rounds
    block(ALONE, 0, (1, 2)),
    block("cpu-50", 0, (2, 6), (4, 6)),
    block(ALONE, 0, (2, 2)),
    block(ALONE, 1, (3, 6)),
    block("cpu-50", 1, (9, 18), (9, 18)),
    block(ALONE, 1, (6, 6)),
)


def test_a_block_is_compared_with_those_alone_around_it():
    found = table(*DRIFTING)
    # round 0: mean 9 of 3.5, round 1: 27 of 10.5
    assert found.round_slowdowns("cpu-50").tolist() == pytest.approx([9 / 3.5, 27 / 10.5])
    quartiles = np.quantile([8 / 3.5, 10 / 3.5, 18 / 7, 18 / 7], [0.25, 0.5, 0.75])
    assert found.spread("cpu-50") == pytest.approx(tuple(quartiles))
    assert found.slowdown("cpu-50") @ found.baseline_s() == pytest.approx(found.baseline_s().sum() * 9 / 3.5)
    assert found.slowdown(ALONE).tolist() == [1.0, 1.0]


def test_the_baseline_is_the_median_of_all_passes_alone():
    found = table(*DRIFTING)
    assert found.baseline_s().tolist() == [2.5, 4.0]
    assert found.alone_s == pytest.approx((4 + 9) / 2)
    assert found.passes_s().tolist() == [[1, 2], [2, 2], [3, 6], [6, 6]]
    assert found.pass_rounds().tolist() == [0, 0, 1, 1]
    assert found.pass_rounds("cpu-50").tolist() == [0, 0, 1, 1]


def test_noise_is_what_is_left_within_a_block_and_drift_what_is_between_blocks():
    first = block(ALONE, 0, (1, 2), (2, 2), (2, 3))
    found = table(first, *DRIFTING[1:])
    assert found.residuals().tolist() == pytest.approx(np.log([3 / 4, 1, 5 / 4, 1, 1, 1]).tolist())
    assert found.residuals("cpu-50").tolist() == pytest.approx(np.log([8 / 9, 10 / 9, 1, 1]).tolist())
    at_s, level = found.drift()
    assert at_s.tolist() == [6, 12 + 18 + 2, 12 + 18 + 4 + 4.5, 12 + 18 + 4 + 9 + 54 + 6]
    assert level.tolist() == pytest.approx(np.log(np.array([4, 4, 9, 12]) / 6).tolist())


def test_a_round_is_not_compared_with_another_one():
    found = table(*DRIFTING[:2], *DRIFTING[3:])  # nothing alone after the first block
    assert found.round_slowdowns("cpu-50").tolist() == pytest.approx([9 / 3, 27 / 10.5])


def test_scenarios_that_were_not_measured_are_told():
    with pytest.raises(
        ValueError, match=r"m was not measured under 'cpu-5'; did you mean 'cpu-50'\? There is alone, cpu"
    ):
        table(*DRIFTING).slowdown("cpu-5")
    with pytest.raises(ValueError, match="there is alone, cpu-50"):
        table(*DRIFTING).residuals("rain")


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ((block(ALONE, 0, (1, 2)),), "no passes of cpu-50"),
        ((block("cpu-50", 0, (1, 2)),), "no passes of alone"),
        ((*DRIFTING, block("rain", 1, (1, 2))), "passes of rain, not announced"),
        ((block(ALONE, 0, (1, 2)), block("cpu-50", 1, (1, 2))), "no passes alone beside it"),
        ((*DRIFTING, block(ALONE, 1, (1, 2, 3))), r"shape \(1, 3\), where there are 2 layers"),
        ((*DRIFTING, block(ALONE, 1, (1, -2))), "no positive number of seconds"),
        ((*DRIFTING, block(ALONE, 1, (1, np.nan))), "no positive number of seconds"),
        ((*DRIFTING, block(ALONE, 1, (0, 0))), "no positive number of seconds"),
    ],
)
def test_tables_that_cannot_be_are_refused(blocks, problem):
    with pytest.raises(ValueError, match=problem):
        table(*blocks)


def test_shapes_have_to_fit():
    with pytest.raises(ValueError, match=r"send_s has shape \(2,\), where 2 layers need \(3,\)"):
        replace(table(*DRIFTING), send_s=np.zeros(2))
    with pytest.raises(ValueError, match="name each once"):
        replace(table(*DRIFTING), scenarios=("cpu-50", "cpu-50"))


# ---------------------------------------------------------------- synthetic
def test_synthetic_tables_say_so_and_repeat():
    first, again, other = synthetic_timings(), synthetic_timings(), synthetic_timings(seed=1)
    assert first.model == "synthetic-18"
    assert "synthetic" in first.cpu_model
    assert first.scenarios == tuple(NAMED)
    assert (first.passes_s() == again.passes_s()).all()
    assert first.alone_s == pytest.approx(0.08, rel=0.02)
    assert not np.allclose(first.baseline_s(), other.baseline_s())


def test_synthetic_slowdowns_follow_the_formula():
    found = synthetic_timings(10)
    assert np.median(found.round_slowdowns("cpu-100")) == pytest.approx(2.0, rel=0.02)
    assert found.slowdown("cpu-100x4") == pytest.approx(np.full(10, 5.0), rel=0.06)
    memory = found.slowdown("membw-100") / 2
    assert np.corrcoef(memory, found.intensity)[0, 1] < -0.95
    assert np.std(found.residuals()) == pytest.approx(0.02, rel=0.25)


def test_synthetic_tables_of_other_sizes():
    assert synthetic_timings(1, scenarios=0).scenarios == ()
    assert synthetic_timings(1000, scenarios=2).layer_count == 1000
    with pytest.raises(ValueError, match="layers is 0"):
        synthetic_timings(0)
    with pytest.raises(ValueError, match="there are 12"):
        synthetic_timings(scenarios=13)


@pytest.mark.slow
def test_tables_need_neither_torch_nor_ray():
    code = "import sys, odin_lab.timings; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROMPT_S, check=True)
    assert found.stdout.strip() == "[]"
