"""``odin reduce``: what it writes can be read, run and chosen from; what makes no sense is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from digits_model import digit_images, trained_digits

import odin
from odin.cli.main import main
from odin.fleet.packed import PackedFolder
from odin.reduction.manifest import FILE, read_manifest


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    held_out = digit_images()[1]
    images = held_out.inputs
    program = torch.export.export(trained_digits()[1.0], (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    program.example_inputs = ((images[:1],), {})
    torch.export.save(program, folder / "digits.pt2")
    np.savez(folder / "held_out.npz", inputs=images.numpy(), classes=held_out.classes.numpy())
    return folder


@pytest.fixture(scope="module")
def reduced(digits):
    output = digits / "reduced"
    command = ["reduce", str(digits / "digits.pt2"), "--labelled", str(digits / "held_out.npz")]
    assert main([*command, "--output", str(output), "--exits", "2", "--budget", "5%", "--packed", "--json"]) == 0
    return output


def test_what_is_written_can_be_read_and_run(reduced):
    manifest = read_manifest(reduced)
    assert manifest.model == "digits"
    assert manifest.budget == 0.05
    full, *exits = manifest.forms
    assert [form.kind for form in manifest.forms] == ["full", "exit", "exit"]
    assert full.judgement.images == 360
    image = digit_images()[1].inputs[:1]
    for form in manifest.forms:
        source = odin.load_source(reduced / form.file)
        chain = odin.build_chain(source.torch_model, source.example_args)
        assert chain.dynamic_batch
        assert source.example_args[0].shape == (1, 1, 8, 8)
        assert len(chain.layers) == form.layers
        assert chain(image).shape == (1, 10)
        assert form.seconds > 0
    assert all(form.flops_share < 0.9 for form in exits)


def test_the_full_models_file_is_the_model_bit_for_bit(digits, reduced):
    image = digit_images()[1].inputs[:3]
    first, again = (
        odin.build_chain(odin.load_source(path).torch_model, (image,))(image)
        for path in (digits / "digits.pt2", reduced / "digits-full.pt2")
    )
    assert torch.equal(first, again)


def test_forms_within_the_budget_are_packed(reduced):
    folder = PackedFolder(reduced)
    within = [f"digits-{form.name}" for form in read_manifest(reduced).forms if form.judgement.lost.value <= 0.05]
    assert folder.names() == sorted(within)
    assert "digits-full" in within
    folder.close()


def test_the_table_and_its_notes(digits, capsys):
    command = ["reduce", str(digits / "digits.pt2"), "--labelled", str(digits / "held_out.npz")]
    output = digits / "again"
    assert main([*command, "--output", str(output), "--exits", "3,", "--widths", "0.5"]) == 0
    told = capsys.readouterr()
    assert "full *" in told.out
    assert "exit-3" in told.out
    assert "width 0.5 was not made: an exported program cannot be narrowed" in told.err
    assert "360 images cannot tell a loss of 0.30%" not in told.err  # it is one image
    assert (output / "accuracy.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budget", "1.5"], "accuracy budget of 1.5"),
        (["--budget", "much"], "'much' is no share: write 0.3% or 0.003"),
        (["--held-out", "0"], "--held-out 0"),
        (["--exits", "-1"], "no number of exits"),
        (["--exits", "0"], "makes nothing"),
        (["--exits", "0,3"], "no number of exits"),
        (["--exits", "99,"], "no exit can be put at cut 99"),
        (["--widths", "1.5"], "no shares of channels"),
        (["--images", "8"], "are too few to train an exit by"),
        (["--labelled", "nowhere"], "--labelled nowhere: no such folder or file"),
    ],
)
def test_options_that_make_no_sense(digits, tmp_path, capsys, arguments, told):
    command = ["reduce", str(digits / "digits.pt2"), "--labelled", str(digits / "held_out.npz")]
    try:
        status = main([*command, "--output", str(tmp_path / "out"), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_weights_are_refused(tmp_path, capsys):
    (tmp_path / "0").mkdir()
    status = main(["reduce", "resnet18", "--labelled", str(tmp_path), "--output", str(tmp_path / "out")])
    assert status == 2
    assert (
        "resnet18 has random weights, which cannot be reduced: give trained ones by --weights"
        in capsys.readouterr().err
    )


def test_a_manifest_of_another_kind(tmp_path, reduced):
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path)
    content = json.loads((reduced / FILE).read_text())
    for change in ({"format": "odin-reduced-9"}, {"budget": 2}, {"forms": 3}):
        (tmp_path / FILE).write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match="make it anew by odin reduce"):
            read_manifest(tmp_path)
    content["forms"][0]["file"] = "../elsewhere.pt2"
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no file of this folder"):
        read_manifest(tmp_path)
