# Sourced by the other scripts. "ensure_venv EXTRA" makes .venv and installs this project with that extra;
# it does nothing when that was done before with the same pyproject.toml and constraints.txt.
# PYTHON names the interpreter to build it from (default: the first suitable one on the PATH).
# shellcheck shell=bash

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        [ "$candidate" = "${PYTHON:-}" ] && fail "PYTHON=$PYTHON is no Python 3.11 or newer"
    done
    fail "Python 3.11 or newer is needed, and python3 is $(python3 --version 2>/dev/null || echo missing);" \
        "install one and name it: PYTHON=/path/to/python3.11 $0"
}

ensure_venv() { # EXTRA
    local extra=$1 python stamp wanted
    stamp=".venv/.odin-$extra"
    if [ ! -e .venv/bin/python ]; then
        python=$(find_python) || exit 1
        echo "== making .venv with $("$python" --version)"
        if ! "$python" -m venv .venv; then
            rm -rf .venv # half of one would pass for a whole one next time
            fail "$python cannot make a virtual environment: install its venv module" \
                "(Debian, Ubuntu: apt install python3-venv)"
        fi
    fi
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail ".venv/bin/python does not run, or is older than 3.11: remove $PWD/.venv and start again"
    # An editable install remembers where it stands, so the folder belongs to what the stamp says.
    wanted=$(pwd && cat pyproject.toml constraints.txt)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "== installing .[$extra] into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" \
            --constraint constraints.txt || fail "pip install .[$extra] failed"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
