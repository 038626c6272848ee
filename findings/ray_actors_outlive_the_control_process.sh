#!/usr/bin/env bash
# Ray's actors go on, and answer calls, without the control process (GCS) and without the raylet, if they are told to
# wait for them, and then nothing ends them.
#
# One would expect a cluster without its head to stop, or its actors to end with their node's raylet. An actor that runs
# is called directly by the process that has its handle. With RAY_gcs_rpc_server_reconnect_timeout_s raised (a minute by
# default, after which raylet and workers end themselves) an actor answers for as long as it likes after the GCS was
# killed; only new actors cannot be started. What ends it is the driver's own ray.shutdown(), though there is no GCS
# that could tell of it. Remedy for who serves: stay connected, and raise the timeout where Ray is started.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==$RAY" psutil==7.2.2
cat >"$folder/program.py" <<'PROGRAM'
import os, sys, time
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "100000"
os.environ["RAY_raylet_death_check_interval_milliseconds"] = "100000000"
import psutil, ray

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

@ray.remote
class Actor:
    def pid(self):
        return os.getpid()

actor = Actor.remote()
pid = ray.get(actor.pid.remote())
[gcs] = [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]
gcs.kill()
time.sleep(75)  # longer than the default
answers = ray.get(actor.pid.remote(), timeout=10) == pid
try:
    starts = bool(ray.get(Actor.remote().pid.remote(), timeout=10))
except ray.exceptions.GetTimeoutError:
    starts = False
started = psutil.Process().children(recursive=True)
raylet = [p for p in started if p.name() == "raylet"]
for process in raylet:
    process.kill()
    process.wait()  # a zombie would count as alive
time.sleep(10)
lives = psutil.pid_exists(pid)
ray.shutdown()
end_s = time.monotonic() + 20
while psutil.pid_exists(pid) and time.monotonic() < end_s:
    time.sleep(0.5)
ended = not psutil.pid_exists(pid)
for process in started:
    if process.is_running():
        process.kill()
print(f"ray {ray.__version__}: 75 s after its GCS was killed the actor answers: {answers}, a new one starts: {starts}; "
      f"10 s after its raylet was killed as well it lives: {lives}; 20 s after ray.shutdown() it has ended: {ended}", flush=True)
os._exit(0 if (answers, starts, lives, ended) == (True, False, True, False) else 1)
PROGRAM
if (cd "$folder" && timeout 300 venv/bin/python program.py 2>/dev/null); then echo "As described."; else echo "No longer so."; exit 1; fi
