#!/usr/bin/env bash
# Ray takes a program's SIGTERM away, and aborts the program three seconds after one.
#
# A program that sets a SIGTERM handler and then calls ray.init() loses it: Ray sets a Python handler of its own, and
# below it one in C++ (absl's failure handler). That prints a native stack trace for an ordinary SIGTERM and starts an
# alarm, so that a program which needs more than three seconds to end in order dies by SIGABRT (exit status 134).
# Remedy: set the handler again after ray.init(), and after ray.shutdown(), which resets SIGTERM to its default.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==$RAY"
cat >"$folder/program.py" <<'PROGRAM'
import os, signal, sys, time
import ray

def mine(number, frame):
    print("the program's own handler", flush=True)
    raise SystemExit(0)

signal.signal(signal.SIGTERM, mine)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print("kept" if signal.getsignal(signal.SIGTERM) is mine else "replaced", flush=True)
if sys.argv[1:] == ["again"]:
    signal.signal(signal.SIGTERM, mine)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
finally:
    time.sleep(6)  # what a program does to end in order: finish requests, write files
    print("ended in order", flush=True)
PROGRAM
run() { (cd "$folder" && timeout 120 venv/bin/python program.py "$@" >"$folder/out" 2>&1) && echo 0 || echo $?; }

echo "ray $("$folder/venv/bin/python" -c 'import ray; print(ray.__version__)')"
status=$(run)
echo "handler set before ray.init(): exit status $status, output:"
cat "$folder/out"
seen=true
grep -q replaced "$folder/out" && grep -q "SIGTERM received" "$folder/out" && [ "$status" = 134 ] || seen=false
grep -q "own handler\|ended in order" "$folder/out" && seen=false
status=$(run again)
echo "handler set again after it: exit status $status, output:"
cat "$folder/out"
grep -q "own handler" "$folder/out" && grep -q "ended in order" "$folder/out" && [ "$status" = 0 ] || seen=false
if $seen; then echo "As described."; else echo "No longer so."; exit 1; fi
