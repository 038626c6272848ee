"""A receiver that does not read is busy, however long; a machine that is not heard any more is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from channels import SPAWN, child, listen, open_sender, pair, request
from netns import Network, two_networks, unavailable
from patience import PROMPT_S

import odin.stages.channel.tcp
from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.silence import Keepalive, Silence, probe, segments_received
from odin.stages.channel.tcp import TcpSender

QUICK = Keepalive(idle_s=1, interval_s=1, silence_s=2)
BIG = 16 * 2**20
"""Numbers (64 MiB) that no socket buffer takes whole."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odin.stages.channel.tcp.KEEPALIVE", QUICK)


# -- the rule ---------------------------------------------------------------------------------------------------------
def looks(silence: Silence, *counts_and_times: tuple[int, float]) -> list[bool]:
    return [silence.look(count, now_s) for count, now_s in counts_and_times]


def test_a_peer_that_is_heard_now_and_then_lives_for_ever():
    assert not any(looks(Silence(15.0), *((second // 10, float(second)) for second in range(0, 1000, 5))))


def test_silence_for_the_whole_limit_is_a_loss():
    assert looks(Silence(15.0), (7, 0.0), (7, 5.0), (7, 10.0), (7, 14.9), (7, 15.0)) == [False] * 4 + [True]


def test_a_process_that_was_itself_stopped_does_not_blame_its_peer():
    assert looks(Silence(15.0), (7, 0.0), (7, 600.0), (9, 605.0)) == [False] * 3


def test_only_an_end_that_receives_has_a_limit_on_unanswered_data():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        for receives, timeout_ms in ((True, 15_000), (False, 0)):
            probe(connection, receives=receives)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout_ms
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_closed_connection_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        assert segments_received(connection) == 1
        server.accept()[0].close()
        with pytest.raises(ConnectionError, match="closed"):
            ask_until_refused(connection)


def ask_until_refused(connection: socket.socket) -> None:
    while True:
        segments_received(connection)


# -- back-pressure ----------------------------------------------------------------------------------------------------
def count_when_told(ready: Connection, messages: int) -> None:
    """A stage whose process does nothing at all until it is told, and then takes everything."""
    odin.stages.channel.tcp.KEEPALIVE = QUICK  # this process is another
    listener = listen("tcp")
    ready.send(listener.address)
    receiver = listener.accept(PROMPT_S)
    ready.recv()
    total = 0.0
    for _ in range(messages):
        message = receiver.receive()
        total += float(message.tensors[0][-1])
        message.release()
    ready.send(total)


def wait_for_segments(sender: TcpSender, count: int) -> None:
    """Wait until the channel broke, or so many segments have arrived since the last one came at once.

    Each of them is a sign of life from the other machine's kernel, and they come no faster than once in a probe's
    interval: the first ones, while the socket buffers fill, do.
    """
    pause = threading.Event()
    seen, slow = 0, 0
    while slow < count and sender._broken is None:
        pause.wait(QUICK.interval_s / 2)
        now = segments_received(sender._connection) or 0
        slow = slow + 1 if 0 < now - seen <= 2 else slow
        seen = now


@pytest.mark.slow
def test_back_pressure_for_longer_than_the_limit_does_not_end_a_channel(quick: None):
    # A stage that computed for 15 s ended a healthy pipeline: TCP_USER_TIMEOUT counts probes of a closed window as
    # well, though each of them is answered. Here the receiver is stopped: not even a thread of it can answer.
    ours, theirs = SPAWN.Pipe()
    with child(count_when_told, theirs, 3) as process, ThreadPoolExecutor(1) as pool:
        sender = open_sender(ours.recv(), slots=1, slot_nbytes=4 * BIG)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            sending = pool.submit(lambda: [sender.send(request(n), (torch.ones(BIG),)) for n in range(3)])
            wait_for_segments(sender, 3 * QUICK.silence_s // QUICK.interval_s)
            assert sender._broken is None
            assert not sending.done()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        ours.send("go on")
        sending.result(PROMPT_S)
        assert ours.recv() == 3.0
        sender.close(graceful=False)


def test_a_waiting_sender_learns_that_its_receiver_is_gone(quick: None):
    with pair("tcp") as (sender, receiver):
        receiver.close()
        sender._thread.join(PROMPT_S)  # by itself, with nothing to send
        with pytest.raises(ChannelClosedError, match="the next stage is gone"):
            sender.send(request(0))


# -- a cable that is cut ----------------------------------------------------------------------------------------------
END = f"""
import sys, torch
import odin.stages.channel.tcp
from odin.stages.channel.opening import Address, Listener, connect
from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.silence import Keepalive
from odin.stages.channel.wire import Header, Kind

odin.stages.channel.tcp.KEEPALIVE = Keepalive(1, 1, 3)
role, ip, traffic = sys.argv[1:]
if role == "receiver":
    listener = Listener(ip)
    print(*listener.address[:2], listener.address.token.hex(), flush=True)
    end = listener.accept()
    held = end.receive()
else:
    host, port, token = input().split()
    end = connect(Address(host, int(port), "", bytes.fromhex(token)), slots=1, slot_nbytes=4 * {BIG})
    end.send(Header(Kind.REQUEST, 0), (torch.zeros(1),))
print("open", flush=True)
try:
    if role == "receiver":
        while traffic == "idle":
            end.receive().release()
        end._incoming.get()  # computes and takes nothing, until the link says why it ended
    elif traffic == "idle":
        end._thread.join()
        end.send(Header(Kind.REQUEST, 1))
    else:
        while True:
            end.send(Header(Kind.REQUEST, 1), (torch.zeros({BIG}),))
except ChannelClosedError as error:
    print("told:", error, flush=True)
"""


def start_end(network: Network, role: str, ip: str, traffic: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        network.command([sys.executable, "-c", END, role, ip, traffic]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")
@pytest.mark.parametrize("traffic", ["idle", "full"])
def test_a_cut_cable_is_noticed_by_the_sender_whether_it_waits_or_sends(traffic: str):
    with two_networks() as (here, there):
        receiver = start_end(there, "receiver", there.ip, traffic)
        sender = start_end(here, "sender", here.ip, traffic)
        with receiver, sender:
            try:
                assert sender.stdin
                assert sender.stdout
                assert receiver.stdout
                sender.stdin.write(receiver.stdout.readline())
                sender.stdin.flush()
                assert (sender.stdout.readline(), receiver.stdout.readline()) == ("open\n", "open\n")
                subprocess.run(["ip", "-n", there.name, "link", "set", "veth0", "down"], check=True)
                assert "told: the next stage is gone" in sender.stdout.readline()
                if traffic == "idle":
                    assert "told: the previous stage is gone" in receiver.stdout.readline()
            finally:
                sender.kill()
                receiver.kill()
