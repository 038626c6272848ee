"""Runtimes are imported as they are, but send nothing."""

from __future__ import annotations

import subprocess
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


def test_compiling_with_openvino_leaves_the_signal_stack_of_the_thread():
    """It sets its own, which it unmaps later, in another thread perhaps: the next Ctrl-C ended the process."""
    program = """
import ctypes, faulthandler, gc, os, signal, threading
import torch
from odin.partitioner.chain import build_chain
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.session import open_layers

faulthandler.enable()  # it has a stack for signals
chain = build_chain(torch.nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 8, 8),), keep=False)
form = build_form(chain, engine="openvino")
layers = open_layers(form.model, form.weights)

def stack():
    found = (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, found)
    return list(found)

print(stack()[2])
kept = [layers]
del layers
thread = threading.Thread(target=lambda: (kept.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("told"))
os.kill(os.getpid(), signal.SIGINT)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    size, *rest = done.stdout.split()
    assert rest == ["told", "alive"]
    assert int(size) > 0
