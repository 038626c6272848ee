"""The status server: who is answered, who is not, and that nothing stays behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from odin.status import StatusClient, StatusServer, local_pipelines


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


def test_nonsense_is_hung_up_on():
    server = StatusServer(lambda: "state", host="127.0.0.1")
    try:
        assert server.remote is not None
        with socket.create_connection((server.remote.host, server.remote.port), timeout=10) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        with StatusClient(os.getpid()) as client:
            client._connection.send_bytes(b"x" * 1000)
            with pytest.raises(ConnectionError):
                client.ask()
        with StatusClient(os.getpid()) as client:
            assert client.ask() == "state"
    finally:
        server.close()


def test_a_process_that_serves_nothing_is_named():
    with pytest.raises(ConnectionError, match="process 1 serves no pipeline here"):
        StatusClient(1)


def test_a_killed_pipeline_leaves_no_socket_behind():
    code = """
import time
from odin.status import StatusServer

server = StatusServer(lambda: "state")
print("serving", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in local_pipelines()
        process.kill()
        process.wait()
        assert process.pid not in local_pipelines()
