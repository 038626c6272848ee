"""A program beside which lies a ``monitor.py`` or ``stages.py`` of the user's own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ("monitor", "stages", "partitioner", "graph", "channel", "benchmarks", "cli")

PROGRAM = """
import sys
import monitor, stages, partitioner  # the user's
import torch
from torch import nn
import odin

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))))

if __name__ == "__main__":
    torch.manual_seed(0)
    model, x = Net().eval(), torch.rand(1, 3, 16, 16)
    with odin.Pipeline(model, stages=sys.argv[1].split(","), example_input=x) as pipe, torch.inference_mode():
        assert torch.allclose(pipe(x), model(x), atol=1e-5)
    assert (monitor.WHOSE, stages.WHOSE, partitioner.WHOSE) == ("mine",) * 3
    import odin.monitor.timing, odin.stages.loop, odin.partitioner.plan
    print("served")
"""


@pytest.mark.ray
def test_a_program_has_modules_of_the_names_of_our_folders(tmp_path, two_cores):
    """``import odin`` beside a ``monitor.py`` took that for ODIN's own package and failed; so did Ray's workers."""
    for name in OWN:
        (tmp_path / f"{name}.py").write_text('WHOSE = "mine"\n')
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", ",".join(two_cores)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith("served\n"), done.stdout + done.stderr


def test_folders_are_the_same_under_both_names():
    for name in ("stages", "partitioner", "monitor"):
        assert (ROOT / "odin" / name).samefile(ROOT / name)


def test_what_is_installed_takes_no_names_but_ours(tmp_path):
    """A wheel has odin and odin_lab at its top, and our data."""
    pytest.importorskip("setuptools", minversion="77")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    copied = tmp_path / "tree"
    copied.mkdir()
    for path in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        if path.startswith(("odin", "stages", "partitioner", "monitor")) or "/" not in path:
            there = copied / path
            there.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_symlink():
                there.symlink_to((ROOT / path).readlink())
            else:
                there.write_bytes((ROOT / path).read_bytes())
    subprocess.run([sys.executable, "-c", build], cwd=copied, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"odin", "odin_lab"}
    assert "odin/monitor/timing.py" in inside
    assert "odin/stages/channel/shm.py" in inside
    assert "odin/models/imagenet_classes.txt" in inside
    assert "odin_lab/timings/recorded/vgg16.csv.gz" in inside
