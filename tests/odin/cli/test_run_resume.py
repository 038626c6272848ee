"""Results are never lost by a second start, and ``--resume`` does what is missing, and only that.

A second ``odin run --output FILE`` emptied FILE as soon as it started, also if it then failed for a wrong option.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import killed_run
import numpy as np
import pytest
import torch
from PIL import Image

from odin.cli.main import main
from odin.cli.run_output import count_missing, open_output, remaining
from odin.models.weight_files import model_digest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images in the current folder's ``images``, and a pipeline of no stages in place of one on Ray."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        picture = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("odin.pipeline.Pipeline", killed_run.ChainAlone)
    monkeypatch.setattr(killed_run.ChainAlone, "started", 0)
    return tmp_path


def odin_run(*options, model="tiny", images="images", output="out.jsonl"):
    given = [] if output is None else ["--output", output]
    return main(["run", f"killed_run:{model}", "--input", images, *given, *options])


def records(name="out.jsonl", *, latencies=True):
    found = [json.loads(line) for line in Path(name).read_text().splitlines()]
    return found if latencies else [{k: v for k, v in record.items() if k != "latency_ms"} for record in found]


def names(name="out.jsonl"):
    return [(record["image"][-5:], record.get("repeat", 0)) for record in records(name)]


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


# --- a second start --------------------------------------------------------------------------------------------------


def test_a_second_start_leaves_the_results_and_says_what_to_do(folder, capsys):
    assert odin_run() == 0
    before = Path("out.jsonl").read_bytes()
    assert odin_run() == 2
    message = told(capsys)
    assert all(text in message for text in ("--output out.jsonl", "--resume", "--overwrite"))
    assert Path("out.jsonl").read_bytes() == before
    assert killed_run.ChainAlone.started == 1  # it was told before anything was started
    assert odin_run("--overwrite", "--limit", "2") == 0
    assert names() == [("0.png", 0), ("1.png", 0)]


@pytest.mark.parametrize("wrong", [["--batch", "2"], ["--plan", "x"]])
def test_a_start_that_fails_changes_nothing(folder, monkeypatch, wrong):
    assert odin_run(model="no_classes") == 0
    before = Path("out.jsonl").read_bytes(), Path("out.jsonl.run.json").read_bytes()

    class Refuses:
        def __init__(self, *_, **__):
            raise ValueError("such a plan there is not")

    monkeypatch.setattr("odin.pipeline.Pipeline", Refuses)
    Image.new("RGB", (20, 20)).save("images/9.png")
    for choice in ("--overwrite", "--resume"):
        assert odin_run(choice, *wrong, model="no_classes") == 2
        assert (Path("out.jsonl").read_bytes(), Path("out.jsonl.run.json").read_bytes()) == before


def test_an_empty_file_holds_no_results(folder):
    Path("out.jsonl").touch()
    assert odin_run() == 0
    assert len(records()) == 6


@pytest.mark.parametrize("choice", ["--resume", "--overwrite"])
def test_standard_output_has_nothing_to_go_on_from(folder, capsys, choice):
    assert odin_run(choice, output=None) == 2
    assert choice in (message := told(capsys))
    assert "--output FILE" in message


def test_devices_and_pipes_are_written_to_as_ever(folder, capsys):
    assert odin_run(output="/dev/null") == 0
    assert not Path("/dev/null.run.json").exists()
    assert odin_run("--resume", output="/dev/null") == 2
    assert "kept no results" in told(capsys)
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    reader.start()
    assert odin_run(output="pipe") == 0
    reader.join()
    assert len(read[0].splitlines()) == 6


def test_resume_and_overwrite_exclude_each_other(folder):
    with pytest.raises(SystemExit) as caught:
        odin_run("--resume", "--overwrite")
    assert caught.value.code == 2


def test_two_runs_do_not_write_to_one_file(folder, capsys):
    with open_output("out.jsonl"):
        for choice in ([], ["--resume"], ["--overwrite"]):
            assert odin_run(*choice) == 2
            assert "another odin run is writing to it" in told(capsys)
    assert odin_run() == 0


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny", ()),
        ("tiny", ("--repeat", "2")),
        ("tiny", ("--batch", "4")),
        ("tiny", ("--top", "1", "--limit", "4")),
        ("no_classes", ()),
        ("groups_of_two", ("--batch", "2")),
    ],
)
def test_wherever_it_was_cut_off_the_results_are_those_of_a_whole_run(folder, model, options):
    assert odin_run(*options, model=model, output="whole.jsonl") == 0
    whole, expected = Path("whole.jsonl").read_bytes(), records("whole.jsonl", latencies=False)
    third = whole.index(b"\n", whole.index(b"\n") + 1)  # the end of the second line
    for size in (1, third - 1, third, third + 1, third + 2, len(whole) // 2, len(whole) - 1, len(whole)):
        Path("out.jsonl").write_bytes(whole[:size])
        shutil.copy("whole.jsonl.run.json", "out.jsonl.run.json")
        assert odin_run("--resume", *options, model=model) == 0
        assert records(latencies=False) == expected
        kept = whole[: whole.rindex(b"\n", 0, size) + 1] if b"\n" in whole[:size] else b""
        assert Path("out.jsonl").read_bytes().startswith(kept)


def test_a_finished_run_needs_no_stages(folder, capsys):
    assert odin_run() == 0
    before = Path("out.jsonl").read_bytes()
    assert odin_run("--resume") == 0
    assert "out.jsonl has 6 of 6 results already" in capsys.readouterr().out
    assert (killed_run.ChainAlone.started, Path("out.jsonl").read_bytes()) == (1, before)


def test_without_a_file_resume_begins(folder):
    assert odin_run("--resume") == 0
    assert len(records()) == 6


def test_failed_images_are_tried_again_and_told_once(folder, capsys):
    """The lines in flight when a stage is lost are errors: they are no results to skip."""
    good = Path("images/2.png").read_bytes()
    Path("images/2.png").write_bytes(good[:200])
    assert odin_run() == 1
    Path("out.jsonl").chmod(0o640)
    assert odin_run("--resume") == 1  # still broken
    assert sorted(names()) == [(f"{number}.png", 0) for number in range(6)]
    Path("images/2.png").write_bytes(good)
    capsys.readouterr()
    assert odin_run("--resume") == 0
    assert "out.jsonl has 5 of 6 results already" in capsys.readouterr().out
    assert sorted(names()) == [(f"{number}.png", 0) for number in range(6)]
    assert not any("error" in record for record in records())
    assert Path("out.jsonl").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in Path().iterdir()) == ["images", "out.jsonl", "out.jsonl.run.json"]


def test_a_link_stays_a_link(folder):
    Path("elsewhere").mkdir()
    Path("out.jsonl").symlink_to("elsewhere/results.jsonl")
    Path("images/0.png").write_bytes(b"no image")
    assert odin_run("--limit", "2") == 1
    assert odin_run("--resume") == 1
    assert Path("out.jsonl").is_symlink()
    assert Path("elsewhere/results.jsonl.run.json").exists()
    assert len(records()) == 6


def test_more_inputs_and_other_ways_to_write_them(folder):
    assert odin_run("--limit", "2") == 0
    assert odin_run("--resume", images="./images/../images") == 0
    assert Counter(name for name, _ in names()) == {f"{number}.png": 1 for number in range(6)}
    assert odin_run("--resume", images=str(folder / "images")) == 0
    assert len(records()) == 6


def test_an_input_that_is_named_twice_has_two_lines(folder):
    assert main(["run", "killed_run:tiny", "--input", "images/1.png", "images/1.png", "--output", "out.jsonl"]) == 0
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[: whole.index(b"\n") + 1])
    resumed = ["run", "killed_run:tiny", "--input", "images/1.png", "images/1.png", "--output", "out.jsonl", "--resume"]
    assert main(resumed) == 0
    assert names() == [("1.png", 0), ("1.png", 0)]


# --- what must be the same -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--top", "3"), "--top 5, this run has --top 3"),
        (("--image-size", "24"), "no --image-size, this run has --image-size 24"),
        (("--precision", "float16"), "no --precision, this run has --precision float16"),
        (("--batch", "2"), "--batch 1, this run has --batch 2"),
        (("--repeat", "2"), "--repeat 1, this run has --repeat 2"),
    ],
)
def test_other_options_are_refused(folder, capsys, options, words):
    assert odin_run("--limit", "3") == 0
    before = Path("out.jsonl").read_bytes()
    assert odin_run("--resume", *options) == 2
    assert words in (message := told(capsys))
    assert "--overwrite" in message
    assert Path("out.jsonl").read_bytes() == before


def test_what_only_makes_it_faster_may_change(folder):
    assert odin_run("--limit", "3") == 0
    assert odin_run("--resume", "--loaders", "1", "--policy", "static", "--max-in-flight", "1", "--plan", "1|1") == 0
    assert len(records()) == 6


def test_another_model_is_refused(folder, capsys):
    assert odin_run("--limit", "3") == 0
    assert odin_run("--resume", model="tiny_otherwise") == 2
    assert "model killed_run:tiny, this run has model killed_run:tiny_otherwise" in told(capsys)


def test_weights_are_told_by_their_values(folder, capsys):
    """A file may be another one under the same name."""
    model, _ = killed_run.tiny()
    torch.save(model.state_dict(), "a.pth")
    shutil.copy("a.pth", "copy.pth")
    assert odin_run("--limit", "3", "--weights", "a.pth") == 0
    assert odin_run("--resume", "--limit", "4", "--weights", "copy.pth") == 0
    other, _ = killed_run.tiny_otherwise()
    torch.save(other.state_dict(), "b.pth")
    assert odin_run("--resume", "--weights", "b.pth") == 2
    assert "written with --weights a.pth, this run has --weights b.pth" in told(capsys)
    os.replace("b.pth", "a.pth")
    assert odin_run("--resume", "--weights", "a.pth") == 2
    assert "other weights (a.pth has changed)" in told(capsys)


def test_a_factory_that_draws_new_weights_each_time_cannot_be_resumed(folder, capsys):
    assert odin_run("--limit", "3", model="unseeded") == 0
    assert odin_run("--resume", model="unseeded") == 2
    assert "not the same every time" in told(capsys)


NO_RESULTS = [b"not json\n{}\n", b'{"image": "a.png"}\n[1]\n{"image": "b.png"}\n', b"\x00\xff\n\n"]


@pytest.mark.parametrize("content", NO_RESULTS)
def test_a_file_that_holds_something_else_is_left_alone(folder, capsys, content):
    assert odin_run("--limit", "1") == 0
    Path("out.jsonl").write_bytes(content)
    assert odin_run("--resume") == 2
    assert "is no result of odin run" in told(capsys)
    assert Path("out.jsonl").read_bytes() == content


@pytest.mark.parametrize("settings", [None, "", "[]", '{"model": "tiny"}'])
def test_results_of_unknown_origin_are_left_alone(folder, capsys, settings):
    assert odin_run("--limit", "1") == 0
    path = Path("out.jsonl.run.json")
    path.unlink() if settings is None else path.write_text(settings)
    before = Path("out.jsonl").read_bytes()
    assert odin_run("--resume") == 2
    assert "nobody knows what out.jsonl was written with" in told(capsys)
    assert Path("out.jsonl").read_bytes() == before


def test_relative_names_belong_to_their_folder(folder, capsys, monkeypatch):
    assert odin_run("--limit", "3") == 0
    monkeypatch.chdir(folder / "images")
    assert odin_run("--resume", images="../images", output="../out.jsonl") == 2
    assert f"relative to {folder}" in told(capsys)


# --- killed ----------------------------------------------------------------------------------------------------------


def test_killed_in_the_middle(folder):
    """``kill -9`` while an image was being read: nothing is lost, done twice or left locked."""
    good = Path("images/3.png").read_bytes()
    os.remove("images/3.png")
    os.mkfifo("images/3.png")  # whoever reads it waits
    options = ["killed_run:tiny", "--input", "images", "--output", "out.jsonl", "--max-in-flight", "1"]
    with subprocess.Popen(
        [sys.executable, killed_run.__file__, *options],
        env={**os.environ, "PYTHONPATH": str(Path(killed_run.__file__).parent)},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            with contextlib.closing(os.fdopen(os.open("images/3.png", os.O_WRONLY), "wb")):  # until it reads
                while Path("out.jsonl").read_bytes().count(b"\n") < 3:
                    assert process.poll() is None
                process.send_signal(signal.SIGKILL)
                process.wait()
        finally:
            process.kill()
    with open("out.jsonl", "ab") as file:
        file.write(b'{"image": "images/3.png", "top": [{"ind')  # as if it had died while it wrote
    os.remove("images/3.png")
    Path("images/3.png").write_bytes(good)
    assert odin_run("--resume") == 0
    assert names() == [(f"{number}.png", 0) for number in range(6)]
    assert odin_run(output="whole.jsonl") == 0
    assert records(latencies=False) == records("whole.jsonl", latencies=False)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_requests_are_done_whole():
    paths = [Path(f"/{letter}") for letter in "abcdef"]
    done = {("/a", 0): 1, ("/b", 0): 1, ("/c", 0): 1}
    assert [(str(key.path), key.written) for key in remaining(paths, repeat=1, batch=2, done=done)] == [
        ("/c", True),
        ("/d", False),
        ("/e", False),
        ("/f", False),
    ]
    assert count_missing(paths, 1, done) == 3
    assert count_missing(paths, 2, done) == 9
    assert list(remaining(paths, repeat=1, batch=4, done={(str(path), 0): 1 for path in paths})) == []


def test_the_digest_sees_every_value():
    model, _ = killed_run.tiny()
    same, _ = killed_run.tiny()
    other, _ = killed_run.tiny_otherwise()
    assert model_digest(model) == model_digest(same) != model_digest(other)
    assert model_digest(model) != model_digest(model.half())
    exported = torch.export.export(killed_run.tiny()[0], (torch.zeros(1, 3, 16, 16),))
    assert model_digest(exported) == model_digest(torch.export.export(same, (torch.zeros(1, 3, 16, 16),)))
