"""Runtimes are imported as they are, but send nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from odin.partitioner.engines.runtimes import import_runtime


def test_openvino_reports_nothing_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # What the real one does: "import openvino" forks a process that tells a server of it.
    tmp_path.joinpath("openvino_telemetry.py").write_text("def send(): return 'sent'\n")
    tmp_path.joinpath("openvino.py").write_text(
        "try:\n    from openvino_telemetry import send\n"
        "except ImportError:\n    def send(): return 'nothing'\n"
        "said = send()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("openvino", "openvino_telemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)  # so that the fake one goes again afterwards
    del sys.modules["openvino"]
    assert import_runtime("openvino").said == "nothing"
    assert "openvino_telemetry" not in sys.modules


def test_one_that_is_not_installed():
    with pytest.raises(ImportError, match="no_such_runtime"):
        import_runtime("no_such_runtime")
