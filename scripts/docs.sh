#!/usr/bin/env bash
# The API reference, from the docstrings, as HTML pages: scripts/docs.sh [FOLDER]   (default: build/docs)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
. scripts/venv.sh
ensure_venv docs
exec .venv/bin/python scripts/api_reference.py "${1:-build/docs}"
