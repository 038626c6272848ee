#!/usr/bin/env bash
# A local Ray ends with the thread that called ray.init(), not with the process.
#
# Ray starts its raylet and control process so that the kernel ends them when their parent does (PR_SET_PDEATHSIG). To
# Linux the parent is the thread that forked. So after ray.init() in a worker thread, for example of a pool, Ray works
# for the whole process until that thread ends, and is gone a moment later. Remedy: call ray.init() in the main thread,
# or in one that lives as long as Ray is needed.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==$RAY" psutil==7.2.2
cat >"$folder/program.py" <<'PROGRAM'
import threading, time
import ray
import psutil

def raylets():
    children = psutil.Process().children(recursive=True)
    return [c for c in children if c.name() == "raylet" and c.status() != psutil.STATUS_ZOMBIE]

leave = threading.Event()

def start():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    leave.wait()

thread = threading.Thread(target=start)
thread.start()
while not ray.is_initialized():
    time.sleep(0.1)
time.sleep(5)
while_it_lives = len(raylets())
leave.set()
thread.join()
time.sleep(5)
after = len(raylets())
print(f"ray {ray.__version__}: {while_it_lives} raylet while the thread that called ray.init() lives, {after} after its "
      f"end; ray.is_initialized() says {ray.is_initialized()}", flush=True)
import os
os._exit(0 if (while_it_lives, after) == (1, 0) else 1)
PROGRAM
if (cd "$folder" && timeout 120 venv/bin/python program.py); then echo "As described."; else echo "No longer so."; exit 1; fi
