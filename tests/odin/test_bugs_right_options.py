"""Values of options that are right and were refused, or used otherwise than given."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

import odin.pipeline
from odin.options import check_batch, check_options


class Named(os.PathLike):
    """A path that is no pathlib's."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_a_log_may_be_any_path(tmp_path):
    check_options(log=Named(tmp_path / "run.jsonl"), share_devices=True, stages=["cpu:0"])


@pytest.mark.parametrize("batch", [np.uint8(200), np.int64(3), True])
def test_a_batch_of_numpys_is_a_plain_number(batch):
    chain = SimpleNamespace(inputs=[SimpleNamespace(shape=(1, 3, 8, 8))], dynamic_batch=True, name="any")
    assert type(check_batch(chain, batch)) is int
    assert check_batch(chain, batch) == batch


def test_stages_that_can_be_read_only_once(monkeypatch):
    """They were read to be checked; afterwards there were none: "a pipeline needs at least one stage"."""
    seen = []

    def loaded(*_, **__):
        raise LookupError("far enough")

    monkeypatch.setattr(odin.pipeline, "check_options", lambda **options: seen.append(tuple(options["stages"])))
    monkeypatch.setattr(odin.pipeline, "to_source", loaded)
    with pytest.raises(LookupError, match="far enough"):
        odin.Pipeline("resnet18", stages=(text for text in ("cpu:0", "cpu:1")))
    assert [str(device) for device in seen[0]] == ["cpu:0", "cpu:1"]
