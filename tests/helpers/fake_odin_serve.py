"""A program in place of ``odin serve``: answers for every model of a folder at once, until SIGTERM.

``FAKE_SERVE`` names a folder: each start writes a file there, named by its process, with the names of its models. With
``FAKE_HANGS_AFTER`` no request after so many is answered, and a file ``hangs`` says so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from oip_server import oip_server


def main() -> None:
    folder, ready = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--ready-file") + 1])
    names = sorted(path.stem for path in folder.glob("*.toml"))
    most = int(os.environ.get("FAKE_HANGS_AFTER", "0"))
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    with oip_server() as server:
        server.names = names
        kept = Path(os.environ["FAKE_SERVE"])

        def answer(request: object) -> None:
            if most and len(server.requests) >= most:
                (kept / "hangs").touch()
                end.wait()

        server.answer = answer
        if "broken" in names:
            sys.exit("there is no model broken")
        texts = {name: (folder / f"{name}.toml").read_text() for name in names}
        (kept / f"{len(list(kept.iterdir()))}-{os.getpid()}").write_text(json.dumps(texts))
        part = ready.with_suffix(".part")
        part.write_text(json.dumps({"http": int(server.url.rpartition(":")[2]), "grpc": None}))
        part.rename(ready)
        end.wait()


main()
