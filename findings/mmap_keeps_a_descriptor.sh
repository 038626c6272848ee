#!/usr/bin/env bash
# Python: a mapping of shared memory keeps a descriptor of its own. In C a descriptor can be closed once it is mapped, and
# none is left; mmap.mmap duplicates it, so each mapping counts against the limit of open files until it is closed
# (Python 3.13 has trackfd=False for that). Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/program.py" <<'PYTHON'
import mmap
import os
import platform
import sys


def count() -> int:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # of the listing itself
            pass
    return sum("memfd:shown" in name for name in names)


descriptor = os.memfd_create("shown")
os.truncate(descriptor, mmap.PAGESIZE)
mappings = [mmap.mmap(descriptor, mmap.PAGESIZE) for _ in range(3)]
os.close(descriptor)
held = count()
for mapping in mappings:
    mapping.close()
left = count()
print("Python", platform.python_version())
print(f"three mappings, their descriptor closed: {held} descriptors open; mappings closed: {left}")
sys.exit(0 if (held, left) == (3, 0) else 1)
PYTHON
python3 "$folder/program.py"
