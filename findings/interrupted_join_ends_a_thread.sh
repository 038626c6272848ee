#!/usr/bin/env bash
# Thread.join() that a signal's handler interrupts by an exception marks the thread as ended, though it still runs: a
# second join() returns at once, is_alive() is False, and the program's end does not wait for it (Python 3.11).
# Wait for an Event that the thread sets instead. Needs nothing but python3.11. Exits non-zero if it is no longer so.
set -euo pipefail
version=3.11
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/seen.py" <<'END'
import signal
import sys
import threading
import time


def stop(number, frame):
    raise KeyboardInterrupt


may_end, ended = threading.Event(), threading.Event()


def work():
    may_end.wait(30)
    ended.set()


thread = threading.Thread(target=work, daemon=False)
thread.start()
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    thread.join()
except KeyboardInterrupt:
    pass
begin = time.monotonic()
thread.join(5)
waited = time.monotonic() - begin
print("Python", sys.version.split()[0])
print(f"second join(5) waited {waited:.1f} s; is_alive() is {thread.is_alive()}; it has ended: {ended.is_set()}")
seen = waited < 2 and not thread.is_alive() and not ended.is_set()
may_end.set()
sys.exit(0 if seen else 1)
END
timeout 60 "${PYTHON:-python$version}" "$folder/seen.py"
