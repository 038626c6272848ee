"""Files of timing tables: what is written is read, and anything else is told."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin_lab.timings import TimingsError, load_timings, read_timings, shipped_timings, synthetic_timings, write_timings
from odin_lab.timings.files import file_name

TABLE = synthetic_timings(5, scenarios=3)


@pytest.fixture
def path(tmp_path):
    return write_timings(TABLE, tmp_path / "a" / "m.csv.gz")


def lines(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def rewrite(path, found):
    path.write_bytes(gzip.compress("\n".join([*found, ""]).encode()))


def change(path, **values):
    first, *rest = lines(path)
    rewrite(path, [f"# {json.dumps({**json.loads(first[1:]), **values})}", *rest])


def test_what_is_written_is_read(path):
    found = load_timings(path)
    for name in ("model", "device", "cpu_model", "system", "created", "torch_version", "layers", "scenarios", "loads"):
        assert getattr(found, name) == getattr(TABLE, name)
    for name in ("rounds", "passes", "passes_alone", "seed", "fingerprint"):
        assert getattr(found, name) == getattr(TABLE, name)
    for name in ("intensity", "send_s", "receive_s"):
        np.testing.assert_allclose(getattr(found, name), getattr(TABLE, name), rtol=1e-4)
    assert [(block.scenario, block.round, block.layer_s.shape) for block in found.blocks] == [
        (block.scenario, block.round, block.layer_s.shape) for block in TABLE.blocks
    ]
    for ours, theirs in zip(found.blocks, TABLE.blocks, strict=True):
        np.testing.assert_allclose(ours.layer_s, theirs.layer_s, rtol=1e-3)
    assert load_timings(str(path)).model == TABLE.model


def test_equal_tables_are_equal_files(path, tmp_path):
    again = write_timings(load_timings(path), tmp_path / "again.csv.gz")
    assert again.read_bytes() == path.read_bytes()


def test_any_csv_reader_reads_it(path):
    """As pandas.read_csv(path, comment="#") does."""
    rows = list(csv.DictReader(line for line in lines(path) if not line.startswith("#")))
    alone_us = [float(row["layer0"]) for row in rows if row["scenario"] == "alone"]
    assert np.median(alone_us) == pytest.approx(TABLE.baseline_s()[0] * 1e6, rel=1e-3)
    assert {row["scenario"] for row in rows} == {"alone", *TABLE.scenarios}


def test_pandas_reads_it(path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(path, comment="#")
    assert list(frame.columns) == ["scenario", "round", "pass", *TABLE.layers]
    assert frame.query("scenario == 'alone'")["layer0"].median() == pytest.approx(TABLE.baseline_s()[0] * 1e6, rel=1e-3)


def test_it_is_read_uncompressed_too(path):
    plain = path.with_name("m.csv")
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    assert load_timings(plain).alone_s == load_timings(path).alone_s


def test_it_can_be_read_by_others_and_nothing_else_is_left(path):
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["m.csv.gz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_timings(synthetic_timings(3), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["m.csv.gz"]


# ---------------------------------------------------------------- what is none
@given(st.data())
def test_a_file_cut_anywhere_is_told(data):
    with tempfile.TemporaryDirectory() as folder:
        path = write_timings(synthetic_timings(2, scenarios=1), Path(folder) / "m.csv.gz")
        packed = path.read_bytes()
        path.write_bytes(packed[: data.draw(st.integers(0, len(packed) - 1))])
        with pytest.raises(TimingsError, match=r"cut off|no timing table|damaged"):
            read_timings(path)


def test_lines_cut_off_a_plain_file_are_missed(path):
    plain = path.with_name("m.csv")
    plain.write_text("\n".join(lines(path)[:-1]) + "\n")
    with pytest.raises(TimingsError, match=r"m\.csv is damaged \(\d+ passes of \d+\): fetch or record it again"):
        load_timings(plain)


def test_a_flipped_byte_is_told(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(TimingsError, match="damaged"):
        read_timings(path)


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"# {}\n", b"# [1]\n", b"#" * 99, b'# {"format": "odin-profile"}\n']
)
def test_other_files_are_told(tmp_path, content):
    for name, data in (("x.csv", content), ("x.csv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TimingsError, match="is no timing table: its first line has no 'odin-timings'"):
            read_timings(tmp_path / name)


def test_no_text_is_told(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TimingsError, match="it is not text"):
        read_timings(tmp_path / "x.csv.gz")


def test_newer_versions_are_told(path):
    change(path, version=2)
    with pytest.raises(TimingsError, match="is of version 2, and this ODIN reads up to 1: update ODIN"):
        read_timings(path)


@pytest.mark.parametrize("version", [0, "1", None, 1.5])
def test_versions_that_there_are_not(path, version):
    change(path, version=version)
    with pytest.raises(TimingsError, match=f"says it is of version {version!r}"):
        read_timings(path)


@pytest.mark.parametrize(
    "values",
    [
        {"layers": ["a"]},
        {"layers": None},
        {"intensity": [1.0]},
        {"send_s": "abc"},
        {"scenarios": ["cpu-25", "cpu-50"]},
        {"rounds": "many"},
        {"rows": 3},
    ],
)
def test_damaged_headers_are_told(path, values):
    change(path, **values)
    with pytest.raises(TimingsError, match=r"is damaged \(.*\): fetch or record it again"):
        read_timings(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alone,0,0,1,1", "line 10 has 5 values of 8"),
        ("{start},1,1,1,1,x", "could not convert"),
        ("{start},1,1,1,1,nan", "no positive number"),
        ("alone,0,7,1,1,1,1,1", "line 10 is out of order"),
        ("", "line 10 has 0 values"),
    ],
)
def test_damaged_rows_are_told(path, line, problem):
    found = lines(path)
    found[9] = line.format(start=",".join(found[9].split(",")[:3]))
    rewrite(path, found)
    with pytest.raises(TimingsError, match=problem):
        read_timings(path)


def test_missing_files_and_names_are_told(tmp_path):
    with pytest.raises(TimingsError, match=r"cannot read .*x\.csv\.gz: No such file"):
        load_timings(tmp_path / "x.csv.gz")
    with pytest.raises(TimingsError, match="cannot read"):
        load_timings(tmp_path)
    with pytest.raises(TimingsError, match=r"no timings of 'nonsense' are shipped .*odin record nonsense"):
        load_timings("nonsense")


def test_what_is_shipped_can_be_read():
    for name in shipped_timings():
        assert load_timings(name).layer_count > 1
        assert load_timings(name).scenarios


def test_odd_layer_names_survive(tmp_path):
    odd = replace(TABLE, layers=("a,b", '"q"', "#1", "pass", "é\n"))
    path = write_timings(odd, tmp_path / "odd.csv.gz")
    assert load_timings(path).layers == odd.layers


@pytest.mark.parametrize(
    ("model", "name"),
    [("resnet50", "resnet50"), ("mobilenet_v2", "mobilenet_v2"), ("timm:a.b/c", "timm-a-b-c"), ("../..", "model")],
)
def test_names_of_files(model, name):
    assert file_name(model) == f"{name}.csv.gz"
