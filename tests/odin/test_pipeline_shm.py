"""A container's /dev/shm may hold 64 MB: channels do not need it, and the weights go elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PROMPT_S

from odin.stages.device import usable_cores

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(len(usable_cores()) < 2, reason="two stages need two cores"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("mount") is None,
        reason="a /dev/shm of its own needs root, unshare and mount",
    ),
]

SERVE = """
import os, sys
import torch
from torch import nn
import odin
from odin.stages.device import usable_cores

if __name__ == "__main__":
    free = os.statvfs("/dev/shm")
    assert free.f_blocks * free.f_frsize <= 64 * 2**20
    torch.manual_seed(0)
    # 36 MB of weights and slots of 16 MB: more than /dev/shm has
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(48),
                          nn.Flatten(), nn.Linear(16 * 48 * 48, 256)).eval()
    x = torch.randn(1, 4, 512, 512)
    chain = odin.build_chain(model, (x,))
    with odin.Pipeline(chain, stages=[f"cpu:{core}" for core in usable_cores()[:2]], policy="static") as pipe:
        for plan in ("1|2", "2|1", "0|3"):
            pipe.migrate(plan)
            assert torch.equal(pipe(x), chain(x))
    print("served", len(chain.layers))
"""


def test_a_small_shared_memory_filesystem_is_enough(tmp_path: Path):
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    probe = ["unshare", "--mount", "sh", "-c", small, "sh"]
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let root mount a filesystem in a namespace")
    environment = {**os.environ, "ODIN_LEASE_DIR": str(tmp_path / "leases")}
    done = subprocess.run(
        [*probe, sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * PROMPT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("served")
