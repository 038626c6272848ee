#!/usr/bin/env bash
# psutil, Linux: a process that was killed may be a zombie to psutil while it holds its file locks still. Linux ends the
# threads of a process one after another; the first may be over, which is all that its state tells, while others still
# have the files open. psutil.wait_procs waits until they have ended, if it is asked to. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q psutil==7.2.2
cat >"$folder/holder.py" <<'PYTHON'
import fcntl
import sys
import threading
import time

file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
memory = bytearray(400 * 2**20)
for place in range(0, len(memory), 4096):
    memory[place] = 1
for _ in range(20):
    threading.Thread(target=time.sleep, args=(1000,)).start()
print("holds it", flush=True)
PYTHON
cat >"$folder/program.py" <<'PYTHON'
import fcntl
import subprocess
import sys

import psutil


def is_held(path: str) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


holder, path = sys.argv[1:]
zombies_that_hold = held_after = 0
for _ in range(5):
    with subprocess.Popen([sys.executable, holder, path], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        process = psutil.Process(child.pid)
        child.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            pass
        zombies_that_hold += is_held(path)
        psutil.wait_procs([process], timeout=10)
        held_after += is_held(path)
print("psutil", psutil.__version__)
print(f"of 5 killed processes {zombies_that_hold} were zombies that held their lock; after wait_procs {held_after} held it")
sys.exit(0 if zombies_that_hold > 0 and held_after == 0 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/program.py" "$folder/holder.py" "$folder/lock"
