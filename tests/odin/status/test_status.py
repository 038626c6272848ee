"""The status server: who is answered, who is not, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from patience import PROMPT_S

from odin.status.server import _MOST_CONNECTIONS, RemoteStatus, StatusClient, StatusServer, local_pipelines


def test_the_same_machine_is_answered_as_often_as_it_asks():
    answers = iter(["one", "two"])
    server = StatusServer(lambda: next(answers))
    try:
        assert os.getpid() in local_pipelines()
        with StatusClient(os.getpid()) as client:
            assert (client.ask(), client.ask()) == ("one", "two")
    finally:
        server.close()
    assert os.getpid() not in local_pipelines()
    server.close()


def test_other_machines_must_know_the_key():
    server = StatusServer(lambda: "state", host="127.0.0.1")
    try:
        assert server.remote is not None
        with StatusClient(server.remote) as client:
            assert client.ask() == "state"
        with pytest.raises(ConnectionError, match="does not answer"):
            StatusClient(server.remote._replace(key=b"guess"))
        with StatusClient(server.remote) as client:  # a refused peer changes nothing for the others
            assert client.ask() == "state"
    finally:
        server.close()


def test_without_a_host_nothing_listens_on_the_network():
    server = StatusServer(lambda: "state")
    try:
        assert server.remote is None
    finally:
        server.close()


def test_a_client_hears_of_the_end():
    server = StatusServer(lambda: "state")
    client = StatusClient(os.getpid())
    assert client.ask() == "state"
    server.close()
    with pytest.raises(ConnectionError, match="gone"):
        client.ask()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "odin-status" and not thread.daemon]


# ---------------------------------------------------------------- strangers on the network
# What happened: the handshake was part of accepting, without a time limit. One stray HTTP GET ended the thread that
# accepts, and one silent peer kept it for ever; either way no remote "odin top" was answered for the rest of the run.
@pytest.fixture
def server() -> Iterator[StatusServer]:
    server = StatusServer(lambda: "state", host="127.0.0.1")
    yield server
    server.close()


def remote(server: StatusServer) -> RemoteStatus:
    assert server.remote is not None
    return server.remote


def knock(server: StatusServer, data: bytes = b"") -> socket.socket:
    """Connect without the key, and send something."""
    peer = socket.create_connection((remote(server).host, remote(server).port), timeout=PROMPT_S)
    peer.sendall(data)
    return peer


def is_hung_up_on(peer: socket.socket) -> bool:
    """Whether the server ends the connection; waits for it, and reads what comes before."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def is_hung_up_on_unread(peer: socket.socket) -> bool:
    """As above, without reading."""
    with select.epoll() as poll:
        poll.register(peer.fileno(), select.EPOLLHUP)
        return bool(poll.poll(PROMPT_S))


def is_answered(server: StatusServer) -> bool:
    with StatusClient(remote(server)) as client:
        return client.ask() == "state"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
        bytes.fromhex("1603010200010001fc0303") + bytes(500),  # TLS
        b"\xff" * 100_000,  # lengths of four gigabytes
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n" + bytes(64),
        bytes(1_000_000),
    ],
    ids=["http", "tls", "lengths", "ssh", "zeros"],
)
def test_nonsense_is_hung_up_on(server, data):
    with socket.create_connection((remote(server).host, remote(server).port), timeout=PROMPT_S) as peer:
        with contextlib.suppress(ConnectionError):  # it may hang up while this is sent
            peer.sendall(data)
        assert is_hung_up_on(peer)
    assert is_answered(server)


def test_nonsense_on_the_local_socket_is_hung_up_on(server):
    with StatusClient(os.getpid()) as client:
        client._connection.sendall(b"x" * 1000)
        with pytest.raises(ConnectionError):
            client.ask()
    with StatusClient(os.getpid()) as client:
        assert client.ask() == "state"


def test_silent_peers_keep_nobody_out(server):
    """More than there may be at a time: the oldest are turned out, those who ask are not."""
    with StatusClient(remote(server)) as client, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(knock(server)) for _ in range(3 * _MOST_CONNECTIONS)]
        assert is_answered(server)
        assert client.ask() == "state"
        assert is_hung_up_on(peers[0])
        assert len(os.listdir("/proc/self/fd")) < 6 * _MOST_CONNECTIONS  # both ends are in this process


@pytest.mark.parametrize("data", [b"", b"half a handshake", bytes(63)], ids=["silent", "half", "almost"])
def test_a_handshake_has_a_time_limit(data):
    server = StatusServer(lambda: "state", host="127.0.0.1", patience_s=0.05)
    try:
        with knock(server, data) as peer:
            assert is_hung_up_on(peer)
    finally:
        server.close()


def test_who_connects_and_resets_changes_nothing(server):
    for _ in range(100):
        with knock(server, b"x") as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
    assert is_answered(server)


def test_who_asks_and_never_reads_is_hung_up_on():
    answers = iter(["state" * 2_000_000, "state"])
    server = StatusServer(lambda: next(answers), patience_s=0.05)
    try:
        with StatusClient(os.getpid()) as client:
            client._connection.sendall(b"view" * 100)
            assert is_hung_up_on_unread(client._connection)
            threads = [thread for thread in threading.enumerate() if thread.name == "odin-status"]
        assert len(threads) == 1
        with StatusClient(os.getpid()) as client:
            assert client.ask() == "state"
    finally:
        server.close()


@pytest.mark.slow
def test_a_lack_of_file_descriptors_passes(tmp_path):
    """In a process of its own: accepting fails while there are none, must not spin meanwhile, and works afterwards."""
    code = """
import os, resource, socket, sys, time
from odin.status.server import StatusClient, StatusServer

attempts, accept = [], socket.socket.accept
socket.socket.accept = lambda self: attempts.append(1) or accept(self)
server = StatusServer(lambda: "state", host="127.0.0.1")
peers = [socket.socket() for _ in range(3)]  # made now, connected when no descriptor is left for the other ends
used = [os.open("/dev/null", os.O_RDONLY)]
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, limits[1]))
try:
    while True:
        used.append(os.dup(used[0]))
except OSError:
    pass
for peer in peers:
    peer.connect((server.remote.host, server.remote.port))
while not attempts:
    time.sleep(0.01)
time.sleep(0.2)  # one that spins tries thousands of times; asyncio tries once a second
tried = len(attempts)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
with StatusClient(server.remote) as client:
    assert client.ask() == "state"
assert tried < 100, tried
server.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROMPT_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failing_answer_is_that_clients_alone(server):
    answers = iter([None, "state"])
    server._answer = lambda: next(answers).upper()  # None has no upper()
    with StatusClient(remote(server)) as client, pytest.raises(ConnectionError):
        client.ask()
    with StatusClient(remote(server)) as client:
        assert client.ask() == "STATE"


# ---------------------------------------------------------------- servers that are none
@pytest.fixture
def impostor() -> Iterator[tuple[socket.socket, RemoteStatus]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener, RemoteStatus("127.0.0.1", listener.getsockname()[1], b"key")


def test_a_client_waits_for_a_silent_server_for_a_limited_time(impostor):
    with pytest.raises(ConnectionError, match=r"does not answer within 0\.05 s"):
        StatusClient(impostor[1], patience_s=0.05)


def test_a_client_does_not_believe_a_server_without_the_key(impostor):
    listener, where = impostor

    def answer() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(bytes(64))  # and whatever the client shows is fine
            is_hung_up_on(peer)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ConnectionError, match="does not know the pipeline's key"):
        StatusClient(where)
    thread.join()


def test_a_pipeline_that_is_stopped_is_told_of():
    asked, over = threading.Event(), threading.Event()

    def answer() -> str:
        asked.set()
        over.wait(PROMPT_S)
        return "state"

    server = StatusServer(answer)
    try:
        with StatusClient(os.getpid(), patience_s=0.05) as client:
            with pytest.raises(ConnectionError, match=r"has not answered for 0\.05 s"):
                client.ask()
            assert asked.wait(PROMPT_S)
    finally:
        over.set()
        server.close()


def test_names_of_others_are_passed_over():
    """Anybody may give a socket such a name; one without a number kept everyone from finding any pipeline."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as another:
        other.bind(f"\0odin-status-me-{os.getpid()}")
        other.listen()
        another.bind("\0odin-status-")
        another.listen()
        assert isinstance(local_pipelines(), tuple)


def test_a_process_that_serves_nothing_is_named():
    with pytest.raises(ConnectionError, match="process 1 serves no pipeline here"):
        StatusClient(1)


@pytest.mark.slow
def test_a_killed_pipeline_leaves_no_socket_behind():
    code = """
import time
from odin.status.server import StatusServer

server = StatusServer(lambda: "state")
print("serving", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in local_pipelines()
        process.kill()
        process.wait()
        assert process.pid not in local_pipelines()
