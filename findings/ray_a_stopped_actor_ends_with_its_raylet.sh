#!/usr/bin/env bash
# An actor of Ray that is stopped (SIGSTOP) at the moment at which its raylet dies is ended by the kernel.
#
# A running actor outlives its node's raylet, and one would expect a stopped one to do so too, and to go on when it is
# let go on. But the raylet is its parent, in another process group of the same session. When the raylet ends, the
# actor's group is orphaned; a group that is orphaned while a member of it is stopped is sent SIGHUP and SIGCONT by the
# kernel (POSIX), and Ray's workers leave SIGHUP at its default, which ends them. Remedy for who serves: ignore SIGHUP in
# the actor's process.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==$RAY" psutil==7.2.2
cat >"$folder/program.py" <<'PROGRAM'
import ctypes, os, signal, time
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "100000"
import psutil, ray

ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

@ray.remote
class Actor:
    def __init__(self, ignores):
        if ignores:
            libc = ctypes.CDLL(None)
            libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
            libc.signal(int(signal.SIGHUP), int(signal.SIG_IGN))

    def pid(self):
        return os.getpid()

running, stopped, ignoring = actors = [Actor.remote(ignores) for ignores in (False, False, True)]
pids = ray.get([actor.pid.remote() for actor in actors])
for pid in pids[1:]:
    os.kill(pid, signal.SIGSTOP)
time.sleep(0.5)
[raylet] = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
raylet.kill()
time.sleep(3)

def lives(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

said = [lives(pid) for pid in pids]
for pid in pids:
    if lives(pid):
        os.kill(pid, signal.SIGKILL)
print(f"ray {ray.__version__}: after its raylet was killed an actor that ran lives: {said[0]}; one that was stopped: "
      f"{said[1]}; one that was stopped and ignores SIGHUP: {said[2]}", flush=True)
for child in psutil.Process().children(recursive=True):
    child.kill()
os._exit(0 if said == [True, False, True] else 1)
PROGRAM
if (cd "$folder" && timeout 300 venv/bin/python program.py 2>/dev/null); then echo "As described."; else echo "No longer so."; exit 1; fi
