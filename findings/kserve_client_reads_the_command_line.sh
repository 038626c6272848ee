#!/usr/bin/env bash
# Importing KServe's Python client reads the command line of whatever program imports it.
#
# One would expect "from kserve import InferenceRESTClient" to leave sys.argv to the program. The package's server is
# imported along, and its module parses the command line by argparse (parse_known_args) as it is imported: an option that
# KServe has too, with a value that it does not take, such as --workers many, ends the program with status 2 and KServe's
# message. Remedy for who writes a program with options: take them out of sys.argv before the import, and put them back.
set -euo pipefail
KSERVE=0.21.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "kserve==$KSERVE"
cat >"$folder/program.py" <<'PROGRAM'
import importlib.metadata, subprocess, sys

PROGRAM = "import sys\nfrom kserve import InferenceRESTClient\nprint('imported', sys.argv[1:])"

def outcome(*options):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *options], capture_output=True, text=True, timeout=120)
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]

plain, own, shared = outcome(), outcome("--mine", "1"), outcome("--workers", "many")
print(f"kserve {importlib.metadata.version('kserve')}: status and last line without options {plain}; --mine 1 {own}; "
      f"--workers many {shared}")
raise SystemExit(0 if plain[0] == own[0] == 0 and shared[0] == 2 and "--workers" in shared[1] else 1)
PROGRAM
if timeout 600 "$folder/venv/bin/python" "$folder/program.py"; then echo "As described."; else echo "No longer so."; exit 1; fi
