"""The channel between machines: two rings and TCP's own flow control, and a peer that breaks off anywhere."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import child, listen, numbers, pair, request
from loads import wait_for
from patience import PROMPT_S

from odin.stages.channel.link import ChannelClosedError, Hello
from odin.stages.channel.opening import Address
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.tcp import TcpReceiver, TcpSender, tune
from odin.stages.channel.wire import Header, Kind, TensorMeta, pack

BLOCKED_S = 0.2
BIG = 4 * 2**20
"""Numbers in a tensor that no socket buffer takes whole, once it has been kept small."""


@pytest.fixture
def small_buffers(monkeypatch):
    """Socket buffers of 64 KiB: left to itself a kernel lets them grow to some 32 MiB, as much as it has to spare."""

    def tune_and_limit(connection: socket.socket) -> None:
        tune(connection)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 2**16)

    monkeypatch.setattr("odin.stages.channel.tcp.tune", tune_and_limit)


def test_the_receiver_has_memory_of_its_own():
    with pair("tcp") as (sender, receiver):
        slot = sender.send(request(0), (numbers(0),))
        message = receiver.receive()
        sender.memory.read(slot, message.header.tensors)[0].fill_(5.0)
        assert torch.equal(message.tensors[0], numbers(0))


def test_a_full_ring_at_the_receiver_holds_the_sender_back(small_buffers):
    sent: list[int] = []
    third = threading.Event()
    with pair("tcp", slots=1, slot_nbytes=4 * BIG) as (sender, receiver), ThreadPoolExecutor(1) as pool:

        def send_three() -> None:
            # the first is held by the receiver, the second lies in the sender's slot, the third has none
            for number in range(3):
                sender.send(request(number), (torch.full((BIG,), float(number)),))
                sent.append(number)
            third.set()

        sending = pool.submit(send_three)
        message = receiver.receive()
        wait_for(lambda: len(sent) >= 2, what="the other thread notes what it has sent")
        assert not third.wait(BLOCKED_S)
        assert sent == [0, 1]
        for number in range(3):
            assert message.tensors[0][:: BIG // 4].tolist() == [float(number)] * 4
            message.release()
            if number < 2:
                message = receiver.receive()
        sending.result(PROMPT_S)


def test_closing_wakes_a_receiver_that_waits_for_a_slot_and_one_that_sends():
    with pair("tcp", slots=1, slot_nbytes=4 * BIG) as (sender, receiver), ThreadPoolExecutor(1) as pool:

        def send_until_closed() -> None:
            while True:
                sender.send(request(0), (torch.zeros(BIG),))

        sending = pool.submit(send_until_closed)
        receiver.receive()
        receiver.close()
        with pytest.raises(ChannelClosedError, match="the next stage is gone"):
            sending.result(PROMPT_S)


def test_closing_the_sender_wakes_a_thread_that_waits_for_a_slot():
    with pair("tcp", slots=1, slot_nbytes=64) as (sender, _), ThreadPoolExecutor(1) as pool:
        sender._take_slot()
        waiting = pool.submit(sender.send, request(1), (numbers(1, 1),))
        sender.close(graceful=False)
        with pytest.raises(ChannelClosedError, match="the channel was closed"):
            waiting.result(PROMPT_S)


def test_the_handshake_refuses_another_token():
    here, there = tcp_pair()
    with here, there, ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(TcpReceiver, there, b"r" * 16, Readiness())
        accepting.add_done_callback(lambda _: there.close())
        with pytest.raises(ChannelClosedError, match="the receiver refused the channel"):
            TcpSender(here, Hello(b"w" * 16, 1, 64, True))
        with pytest.raises(ChannelClosedError, match="a stranger knocked: wrong token"):
            accepting.result(PROMPT_S)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


# -- the sender breaks off, or sends what it should not ---------------------------------------------------------------

TOKEN = b"t" * 16
HEADER = pack(Header(Kind.REQUEST, 0, tensors=(TensorMeta(0, 0, 400, (100,), (1,)),)))
FRAME = struct.pack("<I", len(HEADER)) + HEADER + numbers(0).numpy().tobytes()


def say(data: bytes) -> tuple[socket.socket, TcpReceiver]:
    """Return a receiver that has got the bytes ``data`` from its sender, and the sender's socket."""
    here, there = tcp_pair()
    here.sendall(Hello(TOKEN, 2, 400, True).pack() + data)
    return here, TcpReceiver(there, TOKEN, Readiness())


@pytest.mark.parametrize(
    "length", [1, 4, 5, len(HEADER) + 3, len(HEADER) + 4, len(HEADER) + 5, len(FRAME) - 1], ids=lambda n: f"{n} bytes"
)
def test_a_frame_that_breaks_off_anywhere_is_a_loss_and_no_message(length: int):
    here, receiver = say(FRAME + FRAME[:length])
    here.close()
    assert torch.equal(receiver.receive().tensors[0], numbers(0))
    with pytest.raises(ChannelClosedError, match="the previous stage is gone"):
        receiver.receive()
    receiver.close()


def garbled_frame(meta: TensorMeta) -> bytes:
    header = pack(Header(Kind.REQUEST, 0, tensors=(meta,)))
    return struct.pack("<I", len(header)) + header + bytes(4096)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<I", 2**31) + bytes(100), "header of 2147483648 bytes; at most 262144"),
        (struct.pack("<I", 80) + bytes(80), "begins with 0x0000 version 0"),
        (garbled_frame(TensorMeta(0, 0, 2048, (512,), (1,))), "2048 bytes at offset 0 is outside a slot of 448"),
        (garbled_frame(TensorMeta(0, 0, 64, (512,), (1,))), "reaches beyond its 64 bytes"),
    ],
    ids=["header too long", "no header", "outside the slot", "beyond its bytes"],
)
def test_what_would_write_outside_a_slot_ends_the_channel(data: bytes, message: str):
    here, receiver = say(data)
    with here, pytest.raises(ChannelClosedError, match=message):
        receiver.receive()
    receiver.close()


def send_half_and_die(address: Address) -> None:
    connection = socket.create_connection((address.host, address.port))
    connection.sendall(Hello(address.token, 2, 400, True).pack() + FRAME[: len(FRAME) // 2])
    assert connection.recv(1) == b"+"
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_sender_killed_in_the_middle_of_a_transfer_is_a_loss():
    listener = listen("tcp")
    with child(send_half_and_die, listener.address) as process:
        receiver = listener.accept(PROMPT_S)
        with pytest.raises(ChannelClosedError, match="the previous stage is gone"):
            receiver.receive()
        process.join(PROMPT_S)
        assert process.exitcode == -signal.SIGKILL
    receiver.close()
