"""What schemathesis makes of a server's OpenAPI description, for benchmarks/malformed.py."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.malformed_clients import Sent
from benchmarks.malformed_requests import SIZE

__all__ = ["ask_by_description"]

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not whether what fits the description is accepted: it cannot say which shapes and names a model takes."""


async def ask_by_description(address: str, models: Sequence[str], scratch: Path, seconds: int) -> Sent:
    """Let schemathesis ask for about so many seconds; its failures are what was wrong."""
    with urllib.request.urlopen(f"http://{address}/openapi.json") as answer:
        described = json.load(answer)
    file = scratch / "openapi.json"
    file.write_text(json.dumps(_of_these(described, models)))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", str(file), "--url", f"http://{address}"),
        *(
            "--checks",
            ",".join(_CHECKS),
            "--max-time",
            str(seconds),
            "--continue-on-failure",
            "--request-timeout",
            "30",
        ),
        *("--suppress-health-check", "all", "--warnings", "off"),
        *("--exclude-path-regex", "load$"),  # it finds out the names, and unloads what the others ask for
    ]
    begin_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=scratch
    )
    told = (await process.communicate())[0].decode()
    count = re.search(r"([\d,]+) generated", told)
    wrong = (
        [] if process.returncode == 0 and count else [f"schemathesis ended with {process.returncode}: {told[-9000:]}"]
    )
    cases = 0 if count is None else int(count[1].replace(",", ""))
    return Sent(cases, Counter(), (time.perf_counter() - begin_s) / max(1, cases), wrong)


def _of_these(described: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """The description, with the names of models and of their input, so that most requests get as far as a model."""
    for path, operations in described["paths"].items():
        for parameter in operations.get("parameters", ()) if path.startswith("/v2/models/") else ():
            parameter["schema"]["enum"] = list(models) if parameter["name"] == "model" else ["1"]
    tensor = described["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    tensor["name"] = {"enum": ["input", "x"]}
    tensor["shape"] = {"anyOf": [{"const": [1, 1, SIZE, SIZE]}, tensor["shape"]]}
    tensor["datatype"] = {"anyOf": [{"const": "FP32"}, tensor["datatype"]]}
    data = {"type": "array", "items": {"type": "number"}, "minItems": SIZE**2, "maxItems": SIZE**2}
    tensor["data"] = {"anyOf": [data, tensor["data"]]}
    return described
