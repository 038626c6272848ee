"""``odin engines``: its table, its images, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from small_pipelines import images, small_chain

from odin.cli import engine_rows
from odin.cli.engine_data import engine_data
from odin.cli.engine_report import EngineReport, EngineRow, Measured, render_engines
from odin.cli.engine_rows import Opened, measure_rounds, measure_rows, open_all
from odin.cli.labelled_images import true_classes
from odin.cli.main import main
from odin.models.sources import load_source
from odin.stages.device import Device, usable_cores

CORE = Device("cpu", usable_cores()[:1])

REPORT = EngineReport(
    model="vgg16",
    device="cpu:0",
    processor="AMD EPYC",
    batch=1,
    rounds=15,
    images=128,
    rows=(
        EngineRow("torch", "float32", Measured(0.2345, 0.0021, 0.2301, 553.4e6, 0.0, 128, 100)),
        EngineRow("onnxruntime", "int8", Measured(0.0512, 0.0011, 0.0501, 138.4e6, 0.0234, 126, 99)),
        EngineRow("openvino", "bfloat16", problem="this processor has no bfloat16 instructions"),
    ),
    notes=("Outputs were compared on images of photographs.",),
)

DRAWN = """\
vgg16 on cpu:0 (AMD EPYC), 1 image per request, 15 rounds, engines in turn

engine      precision     ms    ±  ratio    MB error    same right
──────────────────────────────────────────────────────────────────
onnxruntime int8       51.20 1.10  1.00 138.4  0.02 126/128 77.3%
torch       float32   234.50 2.10  4.58 553.4     0 128/128 78.1%
"""


def drawn(report: EngineReport) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    console.print(render_engines(report))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def test_the_table():
    lines, wanted = drawn(REPORT).splitlines(), DRAWN.splitlines()
    for line, expected in zip(lines, wanted, strict=False):
        if not expected.startswith("─"):
            assert line.split() == expected.split()
    assert max(map(len, lines)) <= 80
    text = drawn(REPORT)
    assert "not measured:\nopenvino bfloat16 this processor has no bfloat16 instructions" in text
    assert text.rstrip().endswith("Outputs were compared on images of photographs.")


def test_accuracy_is_shown_only_where_it_is_known():
    rows = tuple(
        dataclasses.replace(row, measured=row.measured and dataclasses.replace(row.measured, right=None))
        for row in REPORT.rows
    )
    heading = drawn(dataclasses.replace(REPORT, rows=rows)).splitlines()[2]
    assert heading.split()[-1] == "same"


def test_json():
    found = json.loads(json.dumps(REPORT.to_json()))
    assert found["rows"][1]["measured"]["image_s"] == 0.0512
    assert found["rows"][2] == {
        "engine": "openvino",
        "precision": "bfloat16",
        "measured": None,
        "problem": "this processor has no bfloat16 instructions",
    }


class Clock:
    """Moves only when an engine computes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def engine(self, seconds: float, scores: list[list[float]]) -> Opened:
        def run(inputs: object) -> list[np.ndarray]:
            self.now_s += seconds
            return [np.array(scores, dtype=np.float32)]

        return Opened(run, 100.0)


def test_rounds_take_turns():
    clock, order = Clock(), list[str]()

    def engine(name: str) -> Opened:
        one = clock.engine(1.0, [[0.0]])
        return Opened(lambda inputs: (order.append(name), one.run(inputs))[1], 0.0)

    opened = {("torch", "float32"): engine("a"), ("openvino", "float32"): engine("b")}
    times_s = measure_rounds(opened, (), CORE, rounds=3, clock=clock)
    assert times_s == {key: [1.0] * 3 for key in opened}
    assert order == ["a", "b"] * (3 + 2)  # two to warm up


def test_rows_compare_with_torch_in_float32():
    clock = Clock()
    opened = {
        ("torch", "float32"): clock.engine(0.4, [[0.0, 2.0], [4.0, 1.0]]),
        ("onnxruntime", "int8"): clock.engine(0.1, [[1.0, 0.5], [4.0, 1.0]]),
    }
    problems = {("openvino", "float32"): "not installed"}
    batches = [(torch.zeros(2, 1),)]
    first, second, third = measure_rows(opened, problems, batches, CORE, labels=(1, 0), rounds=4, clock=clock)
    assert first.measured == Measured(pytest.approx(0.2), pytest.approx(0.0), pytest.approx(0.2), 100.0, 0.0, 2, 2)
    assert second.measured is not None
    assert second.measured.image_s == pytest.approx(0.05)
    assert second.measured.largest_error == pytest.approx(1.5 / 4)
    assert (second.measured.same_top, second.measured.right) == (1, 1)
    assert third == EngineRow("openvino", "float32", problem="not installed")


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        engine_rows, "missing_packages", lambda engine: ("onnxruntime", "onnx") if engine == "onnxruntime" else ()
    )

    def refuse(chain: object, engine: str, **options: object) -> object:
        if engine == "openvino":
            raise ValueError("small cannot be exported to ONNX")
        return make_form(chain, engine, **options)

    make_form = engine_rows.make_form
    monkeypatch.setattr(engine_rows, "make_form", refuse)
    chain = small_chain()
    opened, problems = open_all(lambda _: chain, CORE, batch=1, calibration=images(1))
    assert list(opened) == [("torch", "float32")]
    assert (
        problems["onnxruntime", "int8"] == "onnxruntime, onnx not installed: pip install 'odin-pipeline[onnxruntime]'"
    )
    assert problems["openvino", "float32"] == "small cannot be exported to ONNX"
    assert "does not compute in int8 on CPU cores" in problems["torch", "int8"]
    (output,) = opened["torch", "float32"].run(tuple(images(1)))
    np.testing.assert_array_equal(output, chain(images(1)[0]).numpy())


class TestData:
    """Which images, and what they show."""

    def test_classes_by_name_or_number(self):
        paths = [Path("data/Great_White_Shark/a.jpg"), Path("data/tench/deep/b.jpg"), Path("data/0/c.jpg")]
        assert true_classes(paths, Path("data"), ["tench", "goldfish", "great white shark"]) == (2, 0, 0)
        assert true_classes([*paths, Path("data/d.jpg")], Path("data"), ["tench"]) is None
        with pytest.raises(ValueError, match=r"data/tench is no class of the model: name folders .*--labels FILE"):
            true_classes(paths[1:], Path("data"), None)

    def test_a_folder_per_class(self, tmp_path: Path):
        source = load_source("resnet18", image_size=32)
        (tmp_path / "images" / "tabby").mkdir(parents=True)
        (tmp_path / "images" / "ox").mkdir()
        for path in ("ox/1.png", "tabby/1.png", "tabby/2.png"):
            Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / "images" / path)
        labels = tmp_path / "labels.txt"
        labels.write_text("ox\ntabby\n")
        data = engine_data(source, data=str(tmp_path / "images"), labels=str(labels), calibration=None, count=10)
        assert data.labels == (0, 1, 1)
        assert [tuple(tensor.shape) for tensor in data.inputs] == [(3, 3, 32, 32)]
        batches = data.batches(2)
        assert [len(inputs[0]) for inputs in batches] == [2]
        assert data.labels_of(batches) == (0, 1)
        assert "The weights are random" in data.notes[0]
        with pytest.raises(ValueError, match="3 images are no request of 4: give more images"):
            data.batches(4)

    def test_noise_without_images(self):
        source = load_source("resnet18", image_size=32)
        data = engine_data(source, data=None, labels=None, calibration=None, count=10)
        assert data.labels is None
        assert data.inputs[0].shape == (32, 3, 32, 32)
        assert any("compared on noise: give images by --data" in note for note in data.notes)
        with pytest.raises(ValueError, match="--labels names the classes of images: give these, too"):
            engine_data(source, data=None, labels="labels.txt", calibration=None, count=10)

    def test_models_without_images(self):
        source = SimpleNamespace(name="text", preprocess=None, random_weights=False)
        with pytest.raises(ValueError, match="text: how to turn image files into its input is not known"):
            engine_data(source, data="folder", labels=None, calibration=None, count=10)


@pytest.mark.parametrize("device", ["gpu:0", "cpu:0-1", "cpu:0,cpu:1"])
def test_one_core_only(device: str, capsys: pytest.CaptureFixture[str]):
    assert main(["engines", "resnet18", "--device", device]) == 2
    assert f"--device {device}: engines are compared on one core, such as cpu:0" in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_rows, "missing_packages", lambda engine: () if engine == "torch" else (engine,))
    assert main(["engines", "resnet18", "--image-size", "32", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["engine"] for row in found["rows"] if row["measured"]] == ["torch"]
    assert found["images"] == 32
    assert found["rows"][0]["measured"]["same_top"] == 32
