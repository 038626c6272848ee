#!/usr/bin/env bash
# A gRPC call's deadline is later at the server than at the client: it travels in few digits, and is rounded up.
#
# One would expect the server to be told what the client waits for, less the time on the way. gRPC's C core writes the
# time that is left with three significant digits, rounded up: 123.4 s arrive as 124 s, 1234.5 s as 1240 s, 12.34 s
# as 12.4 s. A server that works until context.time_remaining() is over works for a client that has given up. Remedy:
# who needs the deadline exactly sends it as a value of the request as well.
set -euo pipefail
GRPC=1.85.3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grpcio==$GRPC"
cat >"$folder/program.py" <<'PROGRAM'
from concurrent import futures
import grpc

seen = []

def call(request, context):
    seen.append(context.time_remaining())
    return b""

handler = grpc.method_handlers_generic_handler("s", {"m": grpc.unary_unary_rpc_method_handler(call)})
server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((handler,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
later = {}
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    method = channel.unary_unary("/s/m")
    method(b"", timeout=100)  # connects
    for timeout_s in (12.34, 123.4, 1234.5):
        method(b"", timeout=timeout_s)
        later[timeout_s] = seen[-1] - timeout_s
server.stop(None)
told = ", ".join(f"{given} s arrived as {given + more:.2f} s" for given, more in later.items())
print(f"grpcio {grpc.__version__}: {told}")
raise SystemExit(0 if all(more > 0.03 for more in later.values()) else 1)
PROGRAM
if timeout 120 "$folder/venv/bin/python" "$folder/program.py"; then echo "As described."; else echo "No longer so."; exit 1; fi
