#!/usr/bin/env bash
# A Ray cluster for ODIN: scripts/cluster.sh up | join ADDRESS | status | down   (--help says more)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/venv.sh
. "$root/scripts/venv.sh"
[ -x "$root/.venv/bin/odin" ] || (cd "$root" && ensure_venv demo)
exec "$root/.venv/bin/odin" cluster "$@"
