#!/usr/bin/env bash
# Lint, format, types, import contracts, API reference, all tests; stops at the first that fails.
#   scripts/test.sh           everything; tests that start Ray run beside the others, since they mostly wait
#   scripts/test.sh --fast    before each commit: no Ray, no processes, fewer examples of each property
#   scripts/test.sh -k plan   other arguments go to pytest, which then runs once; they may follow --fast
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

both_parts() {
    local ray=0 others=0 told with_ray
    told=$(mktemp)
    mapfile -t with_ray < <(grep -rl --include='test_*.py' 'mark\.ray\b' tests) # the rest need not be imported twice
    python -m pytest -q -m ray -o cache_dir=.pytest_cache/ray "${with_ray[@]}" >"$told" 2>&1 &
    python -m pytest -q -m "not ray" || others=$?
    wait $! || ray=$?
    echo "== tests that start Ray"
    cat "$told"
    rm -f "$told"
    return $((ray || others))
}

ensure_venv test
export PATH="$PWD/.venv/bin:$PATH" # the tests' own subprocesses find this odin and this ray
step "lint" ruff check
step "format" ruff format --check
step "types" mypy
step "import contracts" lint-imports
step "API reference" python scripts/api_reference.py build/docs
if [[ ${1:-} == --fast ]]; then
    shift
    step "fast tests" python -m pytest -q -m "not ray and not gpu and not slow" --hypothesis-profile=fast "$@"
elif (($#)); then
    step "tests" python -m pytest -q "$@"
else
    step "tests" both_parts
fi
echo "PASSED: lint, format, types, import contracts, API reference, tests"
