#!/usr/bin/env bash
# msgspec writes nan and infinity as null, without an error, and refuses to read that null back as a float.
# So what a typed record wrote cannot be read by the same type; each null has to be put right first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check msgspec==0.22.0
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import msgspec


class Reading(msgspec.Struct):
    seconds: float


print("msgspec", msgspec.__version__)
written = [msgspec.json.encode(Reading(value)) for value in (math.nan, math.inf, -math.inf)]
print("nan, infinity and -infinity are written as", *written)
try:
    print("read back:", msgspec.json.decode(written[0], type=Reading))
    sys.exit("it comes back: no longer so")
except msgspec.ValidationError as error:
    print("read back:", error)
if set(written) != {b'{"seconds":null}'}:
    sys.exit("they are written in another way: no longer so")
PYTHON
