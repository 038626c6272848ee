import io
import itertools
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from odin.cli.main import main
from odin.cli.run import run_images
from odin.models.images import Preprocess, load_image
from odin.models.labels import top_classes
from odin.models.sources import load_source
from odin.partitioner.chain import build_chain
from odin.process.signals import Signals


def tiny():
    """A classifier of 16 x 16 images into five classes, and its example; the factory of the command's tests."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return model.eval(), (torch.zeros(1, 3, 16, 16),)


class InProcess:
    """The chain itself behind the pipeline's ``submit``: one thread, requests in order."""

    def __init__(self, chain):
        self.chain = chain
        self.pool = ThreadPoolExecutor(1)
        self.before_submit = lambda number: None
        self.submitted = 0

    def submit(self, value):
        self.before_submit(self.submitted)
        self.submitted += 1
        return self.pool.submit(self.chain, value)


@pytest.fixture(scope="module")
def source():
    model, example = tiny()
    return load_source(model, example_input=example)


@pytest.fixture
def pipe(source):
    pipe = InProcess(build_chain(source.model, source.example_args))
    yield pipe
    pipe.pool.shutdown()


@pytest.fixture
def folder(tmp_path):
    """Six images, the third of them cut off."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    broken = folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:500])
    return folder


def run_folder(pipe, folder, source, **options):
    """Run over a folder; gives report, error, records, and what was printed."""
    output, printed = io.StringIO(), io.StringIO()
    console = Console(file=printed, width=200)
    paths = sorted(folder.iterdir())
    report, error = run_images(pipe, paths, source, output, console, **({"window": 3} | options))
    return report, error, [json.loads(line) for line in output.getvalue().splitlines()], printed.getvalue()


def expected_record(source, chain, path, top=5):
    scores = chain(load_image(path, source.preprocess))[0]
    return [
        {"index": best.index, "label": best.label, "probability": pytest.approx(best.probability, rel=1e-5)}
        for best in top_classes(scores, count=top)
    ]


# --- run_images --------------------------------------------------------------------------------------------------


def test_every_image_has_its_line_and_the_broken_one_its_reason(pipe, folder, source):
    report, error, records, printed = run_folder(pipe, folder, source)
    assert error is None
    assert (report.completed, report.failed, report.ending) == (5, 1, "done")
    assert [record["image"] for record in records] == [str(folder / f"{number}.png") for number in range(6)]
    assert set(records[2]) == {"image", "error"}
    assert f"{folder}/2.png: {records[2]['error']}" in printed
    for number in (0, 1, 3, 4, 5):
        assert records[number]["top"] == expected_record(source, pipe.chain, folder / f"{number}.png")
        assert records[number]["latency_ms"] > 0


def test_in_batches(pipe, folder, source):
    _, _, records, _ = run_folder(pipe, folder, source, batch=4, top=2)
    assert pipe.submitted == 2
    for number in (0, 1, 3, 4, 5):
        assert records[number]["top"] == expected_record(source, pipe.chain, folder / f"{number}.png", top=2)


def test_repeated(pipe, folder, source):
    report, _, records, printed = run_folder(pipe, folder, source, repeat=3)
    assert (report.completed, report.failed) == (15, 3)
    assert [record["repeat"] for record in records] == [number for number in range(3) for _ in range(6)]
    assert printed.count("failed:") == 1  # the same file is not told of again


def test_lines_are_written_as_results_come(pipe, folder, source):
    seen = []

    class Output(io.StringIO):
        def flush(self):
            seen.append(self.getvalue().count("\n"))

    run_images(pipe, sorted(folder.iterdir()), source, Output(), Console(file=io.StringIO()), window=2)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_what_the_pipeline_did_before_it_broke_is_kept(pipe, folder, source):
    def break_down(number):
        if number == 3:
            raise RuntimeError("stage 1 is gone")

    pipe.before_submit = break_down
    report, error, records, _ = run_folder(pipe, folder, source)
    assert str(error) == "stage 1 is gone"
    assert (report.completed, report.failed, report.ending) == (3, 1, "broken off")
    assert [record["image"][-5:] for record in records] == ["0.png", "1.png", "2.png", "3.png"]


def test_interrupt_finishes_what_is_in_flight(pipe, folder, source):
    def interrupt(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    pipe.before_submit = interrupt
    before = signal.getsignal(signal.SIGINT)
    report, error, records, printed = run_folder(pipe, folder, source, repeat=1000)
    assert signal.getsignal(signal.SIGINT) is before
    assert error is None
    assert report.ending == "interrupted"
    assert (pipe.submitted, report.completed, len(records)) == (3, 3, 4)
    assert "a second Ctrl-C drops it" in printed


def test_second_interrupt_drops_what_is_in_flight(pipe, folder, source):
    class Output(io.StringIO):
        def flush(self):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    output = Output()
    with Signals(clock=itertools.count().__next__):  # two signals at the same moment would be one
        report, error = run_images(
            pipe, sorted(folder.iterdir()), source, output, Console(file=io.StringIO()), window=3
        )
    assert error is None
    assert report.ending == "interrupted"
    [line] = output.getvalue().splitlines()
    assert json.loads(line)["image"] == str(folder / "0.png")


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--input", "/nowhere"], "input /nowhere does not exist"),
        (["resnet99", "--input", "FOLDER"], "unknown model 'resnet99'"),
        (["resnet18", "--input", "EMPTY"], "no images in"),
        (["torch.nn:Identity", "--input", "FOLDER", "--weights", "/w.pth"], "no such file"),
        (
            ["resnet18", "--input", "FOLDER", "--output", "/nowhere/x.jsonl"],
            "there is no folder /nowhere",
        ),
    ],
)
def test_wrong_usage_is_status_two(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path / "empty")}
    assert main(["run", *(places.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch=0", "--repeat=-1", "--limit=x"])
def test_numbers_are_checked(capsys, option):
    with pytest.raises(SystemExit) as caught:
        main(["run", "resnet18", "--input", ".", option])
    assert caught.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err


class LessTheMean(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).mean((2, 3))


def groups_of_two():
    """A model whose images depend on each other."""
    return LessTheMean().eval(), (torch.rand(2, 3, 16, 16),)


def single_images():
    return LessTheMean().eval(), (torch.rand(1, 3, 16, 16),)


@pytest.mark.parametrize(
    ("factory", "batch", "message"),
    [
        ("groups_of_two", "1", "takes 2 images at a time, no more and no less; give --batch 2"),
        ("groups_of_two", "4", "takes 2 images at a time, no more and no less; give --batch 2"),
        ("single_images", "2", "takes 1 image at a time, no more and no less; leave it out"),
    ],
)
def test_images_that_depend_on_each_other_go_as_the_example_did(folder, capsys, factory, batch, message):
    """It said that such a model takes only one image at a time, whatever its example."""
    assert main(["run", f"{__name__}:{factory}", "--input", str(folder), "--batch", batch]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.ray
def test_through_real_stages(folder, tmp_path, two_cores, capsys, source):
    results = tmp_path / "results.jsonl"
    chain = build_chain(source.model, source.example_args)
    plan = f"1|{len(chain.layers) - 1}"
    options = ["--stages", ",".join(two_cores), "--plan", plan, "--batch", "2", "--output", str(results)]
    assert main(["run", f"{__name__}:tiny", "--input", str(folder), *options]) == 1  # one image is broken
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert ["error" in record for record in records] == [False, False, True, False, False, False]
    assert source.preprocess == Preprocess.for_size(16, 16)
    for number in (0, 1, 3, 4, 5):
        assert records[number]["top"] == expected_record(source, chain, folder / f"{number}.png")
    printed = capsys.readouterr().out
    assert "done: 5 images" in printed
    for device in two_cores:
        assert device in printed


@pytest.mark.ray
def test_results_to_standard_output_alone(folder, two_cores, capsys):
    arguments = ["--input", str(folder / "0.png"), str(folder / "1.png"), "--stages", two_cores[0], "--limit", "1"]
    assert main(["run", f"{__name__}:tiny", *arguments]) == 0
    captured = capsys.readouterr()
    [line] = captured.out.splitlines()
    assert json.loads(line)["image"] == str(folder / "0.png")
    assert "done: 1 image in" in captured.err
