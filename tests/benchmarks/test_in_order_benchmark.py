"""The remedies in order, simulated with forms whose times and accuracies are given; the picture can be drawn."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import in_order
from benchmarks.in_order import CONTENDERS, simulated
from benchmarks.in_order_plot import plot_in_order
from benchmarks.in_time import Block, facts_of, kept_of_blocks
from odin.reduction.accuracy import Interval, Judgement
from odin.reduction.manifest import Form, Manifest, write_manifest

OPTIONS = Namespace(budget=0.003, rate=0.8, deadline=5.0, seed=0)


def write(folder: Path, *forms: tuple[str, float, float, float]) -> None:
    """Name, seconds, accuracy, lost."""
    folder.mkdir()
    made = [
        Form(
            name,
            name,
            f"{name}.pt2",
            3,
            1.0,
            seconds,
            Judgement(1000, Interval(accuracy, 0, 1), Interval(lost, 0, 1), 1, 0),
        )
        for name, seconds, accuracy, lost in forms
    ]
    write_manifest(folder, Manifest("digits", 0.003, "a processor", tuple(made)))


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "large", ("full", 10e-3, 0.99, 0.0), ("exit-3", 4e-3, 0.988, 0.002), ("exit-1", 1e-3, 0.9, 0.09))
    write(tmp_path / "middle", ("full", 5e-3, 0.95, 0.0))
    write(tmp_path / "small", ("full", 2e-3, 0.90, 0.0))
    return tmp_path


def test_variants_of_a_folder_as_the_simulator_takes_them(folder):
    assert [
        (one.name, one.cost_s, one.accuracy, one.form, one.lost) for one in facts_of("large", folder / "large")
    ] == [
        ("large", 10e-3, 0.99, "full", 0.0),
        ("large-exit-3", 4e-3, 0.988, "exit-3", 0.002),
    ]


def test_each_remedy_helps_and_all_together_most(folder, monkeypatch):
    monkeypatch.setattr(in_order, "_SIMULATED_REQUESTS", 500)
    monkeypatch.setattr(in_order, "_SIMULATED_SEEDS", 1)
    kept = {(one.contender, one.busy): one for one in simulated(folder, OPTIONS, devices=2)}
    assert len(kept) == 3 * len(CONTENDERS)

    def share(contender: str, busy: int) -> float:
        return kept[contender, busy].in_time.median

    for busy in (0, 1, 2):
        assert (
            share("all in order", busy) >= max(share(one.name, busy) for one in CONTENDERS) - 0.03
        )  # of promises may break
    assert share("relay alone", 1) > share("no remedy", 1) + 0.1
    assert share("variants alone", 2) > share("no remedy", 2) + 0.1
    assert share("reduced computation alone", 2) > share("no remedy", 2) + 0.1
    assert "exit" not in kept["variants alone", 2].answered_by
    assert "exit-3" in kept["all in order", 2].answered_by
    assert "middle" not in kept["relay alone", 2].answered_by


def test_blocks_are_added_up_and_drawn(tmp_path):
    blocks = [Block(10, 8, 7, {"large": 8}), Block(10, 10, 10, {"large": 9, "small": 1}), Block(10, 9, 9, {"large": 9})]
    kept = kept_of_blocks("relay alone", 0, blocks)
    assert (kept.requests, kept.in_time.median, kept.answered_by) == (30, 0.9, "large 26, small 1")
    assert kept.right.value == 26 / 27
    pytest.importorskip("matplotlib")
    kept = [kept._replace(how=how, busy=busy) for how in ("live", "simulated") for busy in (0, 1)]
    assert plot_in_order(tmp_path / "picture.png", kept) == f"drawn: {tmp_path / 'picture.png'}"
    assert (tmp_path / "picture.png").stat().st_size > 5000
