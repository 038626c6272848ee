#!/usr/bin/env bash
# With Ray Serve's throughput setting the blocking form of a deployment's handle works in no program.
#
# A handle's answer has .result() for ordinary code and can be awaited in a coroutine. One would expect a setting that is
# about speed, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, to change neither. It makes the handle's router run in the event loop of
# the thread that calls .remote(); a thread without one raises RuntimeError ("No event loop running"), and awaiting in a
# coroutine is the only way left. The same program answers without the setting.
set -euo pipefail
RAY=2.60.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[serve]==$RAY"
cat >"$folder/program.py" <<'PROGRAM'
import asyncio, os, subprocess, sys

PROGRAM = """
import asyncio, sys, ray
from ray import serve

@serve.deployment
class Double:
    def __call__(self, x):
        return 2 * x

ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False)
handle = serve.run(Double.bind())
try:
    if sys.argv[1] == "blocking":
        print("told: answer", handle.remote(21).result(timeout_s=60))
    else:
        async def ask():
            return await handle.remote(21)
        print("told: answer", asyncio.run(ask()))
except Exception as error:
    print(f"told: {type(error).__name__}: {error}".splitlines()[0])
serve.shutdown()
"""

def outcome(way, setting):
    settings = {**os.environ, "RAY_SERVE_THROUGHPUT_OPTIMIZED": setting}
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], env=settings, capture_output=True, text=True, timeout=240)
    told = [line.removeprefix("told: ") for line in done.stdout.splitlines() if line.startswith("told: ")]
    return told[0] if told else f"no answer, status {done.returncode}"

import ray
seen = {(way, setting): outcome(way, setting) for setting in "01" for way in ("blocking", "awaited")}
print(f"ray {ray.__version__}:", "; ".join(f"{way}, setting {setting}: {told}" for (way, setting), told in seen.items()))
expected = seen["blocking", "0"] == seen["awaited", "0"] == seen["awaited", "1"] == "answer 42"
raise SystemExit(0 if expected and "event loop" in seen["blocking", "1"] else 1)
PROGRAM
if timeout 900 "$folder/venv/bin/python" "$folder/program.py"; then echo "As described."; else echo "No longer so."; exit 1; fi
