"""The file that names a model's classes: read, or refused with its path and what it should be."""

import pytest

from odin.server.served import read_labels


def test_a_line_per_class(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog or fox\n\nbird\n")
    assert read_labels(tmp_path / "classes.txt") == ("cat", "dog or fox", "", "bird")


def test_what_is_no_file_of_labels(tmp_path):
    """It was told as FileNotFoundError with a number, and as a codec that cannot decode."""
    (tmp_path / "flower.jpg").write_bytes(b"\xff\xd8\xff")
    problems = {"gone": "No such file or directory", ".": "Is a directory", "flower.jpg": "no text in UTF-8"}
    for name, why in problems.items():
        with pytest.raises(ValueError, match=rf"labels .*: {why}.*; name a file with a line per class"):
            read_labels(tmp_path / name)
