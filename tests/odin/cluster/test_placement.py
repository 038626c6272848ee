"""Where stages go: what is known to be taken is refused before a process is started for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin.cluster import placement
from odin.cluster.placement import place
from odin.stages.device import Device, DeviceError
from odin.stages.lease import Lease


def test_a_device_of_this_node_that_a_pipeline_holds_is_refused_before_ray_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second pipeline of one program waited two minutes for Ray, whose CPUs the first one had all taken."""
    monkeypatch.setenv("ODIN_LEASE_DIR", str(tmp_path))
    monkeypatch.setattr(placement, "_alive_nodes", list)
    monkeypatch.setattr(placement, "_find_node", lambda name, alive: name or "here")
    one, two = Device("cpu", (0,)), Device("cpu", (1,))
    with Lease(two, label="pipeline of a test"):
        for share in (False, True):
            with pytest.raises(DeviceError, match=r"cpu:1 is in use by pid \d+, pipeline of a test"):
                place([one, two], share=share)
        assert place([one]) == [(one, "here")]
        assert place([one, two._replace(node="there")]) == [(one, "here"), (two, "there")]
    assert place([one, two]) == [(one, "here"), (two, "here")]
    with Lease(two, label="pipeline of a test", share=True):
        assert place([one, two], share=True) == [(one, "here"), (two, "here")]
