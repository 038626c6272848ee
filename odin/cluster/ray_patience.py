"""For how long Ray's processes go on without the two that they depend on, where ODIN starts them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["GCS_PATIENCE", "be_patient"]

GCS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable, read by each process of Ray when it starts. Without it: one minute without the control process
(GCS), then they end."""
_RAYLET_CHECK = "RAY_raylet_death_check_interval_milliseconds"
"""Likewise, how often a worker looks whether its raylet lives. Without it: each second; without a raylet it ends."""
_S = 7 * 24 * 3600
"""A week: stages serve without both."""


def be_patient(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have those that are started with this environment go on without them; what is set already stays."""
    environment.setdefault(GCS_PATIENCE, str(_S))
    environment.setdefault(_RAYLET_CHECK, str(1000 * _S))
