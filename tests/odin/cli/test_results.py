import json
from pathlib import Path

import pytest
import torch

from odin.cli.result_lines import json_line
from odin.models.images import ImageError
from odin.requests.stream import Outcome


def record(value=None, *, error=None, latency_s=None, **options):
    line = json_line(Outcome("key", value, error, latency_s), image=Path("a/b.jpg"), **options)
    assert "\n" not in line
    return json.loads(line)


def test_classes():
    scores = torch.log(torch.tensor([[0.2, 0.7, 0.1]]))
    assert record(scores, latency_s=0.0123456, labels=("x", "y", "z"), top=2) == {
        "image": "a/b.jpg",
        "top": [
            {"index": 1, "label": "y", "probability": pytest.approx(0.7, abs=1e-6)},
            {"index": 0, "label": "x", "probability": pytest.approx(0.2, abs=1e-6)},
        ],
        "latency_ms": 12.346,
    }


def test_labels_for_another_number_of_classes_are_left_out():
    assert record(torch.zeros(1, 3), labels=("x", "y"), top=1)["top"][0]["label"] is None


def test_repeat():
    assert record(torch.zeros(1, 3), repeat=4)["repeat"] == 4


def test_errors():
    assert record(error=ImageError(Path("a/b.jpg"), "truncated")) == {"image": "a/b.jpg", "error": "truncated"}
    assert record(error=RuntimeError("stage 1 is gone")) == {
        "image": "a/b.jpg",
        "error": "RuntimeError: stage 1 is gone",
    }


def test_not_a_number_is_null():
    assert [best["probability"] for best in record(torch.full((1, 3), torch.nan), top=2)["top"]] == [None, None]


def test_outputs_that_are_no_class_scores_are_described():
    value = {"out": torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), "aux": (torch.zeros(1, 2, 0, dtype=torch.int64),)}
    assert record(value) == {
        "image": "a/b.jpg",
        "outputs": [
            {"name": "out", "shape": [1, 1, 2, 2], "dtype": "float32", "mean": 3.0, "min": 1.0, "max": 6.0},
            {"name": "aux.0", "shape": [1, 2, 0], "dtype": "int64"},
        ],
    }


@pytest.mark.parametrize("shape", [(1, 1), (3,), (1, 2, 2)])
def test_what_counts_as_class_scores(shape):
    assert set(record(torch.zeros(shape))) == {"image", "outputs"}


def test_half_precision_scores():
    assert record(torch.tensor([[0.0, 5.0]], dtype=torch.bfloat16), top=1)["top"][0]["index"] == 1
