#!/usr/bin/env bash
# Two gRPC servers of one user open the same port, both without an error, and calls go to either.
#
# One would expect the second to fail with "address already in use", as any other server does. gRPC sets SO_REUSEPORT by
# default, so a second server that was started by mistake takes part of the calls, and nobody is told. Remedy: the
# option grpc.so_reuseport=0, with which the second one raises an error.
set -euo pipefail
GRPC=1.85.3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grpcio==$GRPC"
cat >"$folder/program.py" <<'PROGRAM'
from concurrent import futures
import grpc

def server(name, port, *options):
    def call(request, context):
        return name

    handler = grpc.method_handlers_generic_handler("s", {"m": grpc.unary_unary_rpc_method_handler(call)})
    made = grpc.server(futures.ThreadPoolExecutor(1), options=options)
    made.add_generic_rpc_handlers((handler,))
    port = made.add_insecure_port(f"127.0.0.1:{port}")
    made.start()
    return made, port

first, port = server(b"first", 0)
second, same = server(b"second", port)
answers = []
for _ in range(40):
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answers.append(channel.unary_unary("/s/m")(b"", timeout=10))
first.stop(None)
second.stop(None)
alone, port = server(b"alone", 0, ("grpc.so_reuseport", 0))
try:
    server(b"other", port, ("grpc.so_reuseport", 0))
    refused = False
except RuntimeError:
    refused = True
alone.stop(None)
print(f"grpcio {grpc.__version__}: the second server opened the same port: {bool(same)}; of 40 calls the first "
      f"answered {answers.count(b'first')}, the second {answers.count(b'second')}; with so_reuseport=0 the second is refused: {refused}")
raise SystemExit(0 if same and {b"first", b"second"} == set(answers) and refused else 1)
PROGRAM
if timeout 120 "$folder/venv/bin/python" "$folder/program.py" 2>/dev/null; then echo "As described."; else echo "No longer so."; exit 1; fi
