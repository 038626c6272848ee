"""The table of rivals: what it says of who is ahead."""

from __future__ import annotations

import pytest

from benchmarks.alternatives.__main__ import DEFAULT, REFERENCE, TITLES, costs, main, row
from benchmarks.alternatives.run_process import ALTERNATIVES, REPLICAS, Figures, load_alternative


def figures(rate_hz, disturbed_hz=5.0):
    return Figures(rate_hz, 0.2, 0.4, 0.1, 0.1, disturbed_hz, 0.8, 300 * 2**20, 200 * 2**20, "")


def test_odin_is_ahead_behind_or_neither_by_the_rounds():
    ours = [figures(rate) for rate in (20.0, 21.0, 22.0, 20.0, 21.0, 22.0)]
    trials = {
        REFERENCE: ours,
        "ray-serve": [figures(f.throughput_hz / 2) for f in ours],
        "replicas-openvino": [figures(f.throughput_hz * 1.25) for f in ours],
        "torch-folded": [figures(f.throughput_hz * ratio) for f, ratio in zip(ours, (1.1, *[0.9] * 5), strict=True)],
    }

    def told(name):
        return row(name, trials, lambda figures: figures.throughput_hz, costs)

    assert told("ray-serve")[1:4] == ("10.50 (10.00..11.00)", "2.00 (2.00..2.00)", "ahead")
    assert told("replicas-openvino")[2:4] == ("0.80 (0.80..0.80)", "behind")
    assert told("torch-folded")[3] == "no difference seen"  # five rounds of six
    assert told(REFERENCE) == (
        TITLES[REFERENCE],
        "21.00 (20.00..22.00)",
        "-",
        "-",
        "200.0",
        "400.0",
        "100.0",
        "300",
        "200",
    )
    few = {name: own[:5] for name, own in trials.items()}
    assert row("ray-serve", few, lambda figures: figures.throughput_hz, costs)[3] == "no difference seen"


def test_everybody_has_a_title_and_can_be_imported(tmp_path):
    assert TITLES.keys() == ALTERNATIVES.keys() >= {*DEFAULT, *REPLICAS, REFERENCE}
    assert all(callable(load_alternative(name, tmp_path)) for name in ("odin", "odin-onnxruntime", *REPLICAS))


def test_weights_are_not_for_replicas(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--weights", str(tmp_path / "x.pth")])
    assert "take no weights here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--load", "nonsense"])
    assert "nonsense" in capsys.readouterr().err
