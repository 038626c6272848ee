"""For how long Ray's processes go on without their control process (GCS), where ODIN starts them."""

from __future__ import annotations

__all__ = ["PATIENCE", "PATIENCE_S"]

PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Environment variable, read by each process of Ray when it starts. Without it: one minute, then they end."""
PATIENCE_S = 7 * 24 * 3600
"""A week: stages serve without the GCS."""
