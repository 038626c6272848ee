#!/usr/bin/env bash
# Linux: TCP_USER_TIMEOUT ends a connection whose receiver lives and answers, but has not read for so long. It is made
# for unacknowledged data, and counts the probes of a closed window as well, answered or not. Exits 0 as long as that is
# so; a connection without the option waits beside it.
set -euo pipefail
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/program.py" <<'PYTHON'
import os
import socket
import threading

USER_TIMEOUT_MS = 2000
outcome = {}


def send(name: str, connection: socket.socket) -> None:
    try:
        connection.sendall(bytes(64 * 2**20))
        outcome[name] = "sent all"
    except OSError as error:
        outcome[name] = f"ended: {error}"


print("Linux", os.uname().release)
with socket.create_server(("127.0.0.1", 0)) as server:
    threads, peers = [], []
    for name, timeout_ms in (("with TCP_USER_TIMEOUT", USER_TIMEOUT_MS), ("without", 0)):
        connection = socket.create_connection(server.getsockname())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        peers.append(server.accept()[0])
        threads.append(threading.Thread(target=send, args=(name, connection), daemon=True))
        threads[-1].start()
    threads[0].join(60)
    outcome.setdefault("without", "still waiting")
    for name, text in sorted(outcome.items()):
        print(f"{name}: {text}")
raise SystemExit(not (outcome["with TCP_USER_TIMEOUT"].startswith("ended") and outcome["without"] == "still waiting"))
PYTHON
timeout 90 python3 "$folder/program.py"
