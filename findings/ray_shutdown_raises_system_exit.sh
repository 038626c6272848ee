#!/usr/bin/env bash
# Ray: ray.get in one thread raises SystemExit(0) when another thread calls ray.shutdown(), so that a program which
# disconnects in the background ends with status 0 and without a word. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cat >"$folder/program.py" <<'PYTHON'
import threading
import time

import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         _temp_dir=__file__.removesuffix("/program.py") + "/ray")


@ray.remote
def sleep() -> None:
    time.sleep(600)


threading.Timer(3.0, ray.shutdown).start()
print("ray", ray.__version__, flush=True)
try:
    ray.get(sleep.remote())
except BaseException as error:
    print("ray.get raised", repr(error), "an Exception:", isinstance(error, Exception), flush=True)
PYTHON
said=$(RAY_USAGE_STATS_ENABLED=0 timeout 120 "$folder/venv/bin/python" "$folder/program.py")
echo "$said"
grep -q "ray.get raised SystemExit(0) an Exception: False" <<<"$said"
