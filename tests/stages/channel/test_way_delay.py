"""The delay of a way as Linux has measured it, over a cable with one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from netns import two_networks, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")

DELAY_S = 0.03

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 5555)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(1):
        connection.sendall(data)
"""

MEASURE = """
import socket, sys
from odin.stages.channel.tcp import _delay_s
with socket.create_connection((sys.argv[1], 5555)) as connection:
    for _ in range(5):
        connection.sendall(b"x")
        connection.recv(1)
    print(_delay_s(connection))
"""


def test_half_of_the_shortest_round_trip():
    with two_networks(delay_s=DELAY_S) as (here, there):
        command = there.command([sys.executable, "-c", ECHO, there.ip])
        with subprocess.Popen(command, stdout=subprocess.PIPE) as echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            done = here.run([sys.executable, "-c", MEASURE, there.ip])
            echo.kill()
    assert done.returncode == 0, done.stderr
    delay_s = float(done.stdout)
    assert delay_s >= DELAY_S  # it takes what it takes
    assert delay_s < 100 * DELAY_S  # but is in seconds
