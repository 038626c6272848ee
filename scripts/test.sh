#!/usr/bin/env bash
# Lint, format, types, import contracts, all tests; stops at the first that fails. Arguments go to pytest:
#   scripts/test.sh -k plan
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/venv.sh
. scripts/venv.sh

step() { # NAME COMMAND...
    local name=$1
    shift
    echo "== $name"
    "$@" || {
        printf 'FAILED: %s (%s)\n' "$name" "$*" >&2
        exit 1
    }
}

ensure_venv test
export PATH="$PWD/.venv/bin:$PATH" # the tests' own subprocesses find this odin and this ray
step "lint" ruff check
step "format" ruff format --check
step "types" mypy
step "import contracts" lint-imports
step "tests" python -m pytest -q "$@"
echo "PASSED: lint, format, types, import contracts, tests"
