#!/usr/bin/env bash
# A driver that refers to an object in Ray's store ends some seconds after its raylet has died, with exit status 1 and
# without an exception; one that refers to none lives on.
#
# One would expect calls to Ray to raise an error. When the control process (GCS) has missed the node for long enough
# (RAY_health_check_..., some 15 s by default), it says that the node is dead; the driver then tries to recover its
# objects there, finds the connection to the store closed, and ends: no exception, no atexit, no finally. Remedy for a
# program that is to outlive its raylet: let go of all object references as soon as that has died.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==$RAY" psutil==7.2.2
cat >"$folder/program.py" <<'PROGRAM'
import os, sys, time
os.environ["RAY_health_check_period_ms"] = "500"
import psutil, ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
kept = ray.put(bytearray(1 << 20))
if sys.argv[1] == "without":
    del kept
[raylet] = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
raylet.kill()
try:
    time.sleep(20)
    print(ray.__version__, sys.argv[1], "an object: lives after 20 s", flush=True)
except BaseException as error:
    print(sys.argv[1], "an object:", type(error).__name__, flush=True)
for child in psutil.Process().children(recursive=True):
    child.kill()
os._exit(0)
PROGRAM
cd "$folder"
status=0
timeout 100 venv/bin/python program.py with >with.out 2>/dev/null || status=$?
without=0
timeout 100 venv/bin/python program.py without 2>/dev/null | grep "lives after" || without=1
echo "ray $RAY: a driver with an object in the store ended with status $status and said: '$(grep -c "an object" with.out || true)' lines"
if [[ $status == 1 && $without == 0 ]] && ! grep -q "an object" with.out; then echo "As described."; else echo "No longer so."; exit 1; fi
