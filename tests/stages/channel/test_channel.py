"""Both kinds of channel keep the same promises: order, bounds, prompt news of death, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from channels import KINDS, SPAWN, child, listen, numbers, open_pair, open_sender, pair, post, request
from descriptors import open_descriptors
from loads import wait_for
from patience import PROMPT_S

from odin.stages.channel.link import ChannelClosedError, Hello
from odin.stages.channel.opening import Address, Listener, connect
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import Failure, Header, Kind

both_kinds = pytest.mark.parametrize("kind", KINDS)


@both_kinds
def test_messages_arrive_in_order_with_their_tensors(kind: str):
    with pair(kind, slots=3, slot_nbytes=1200) as (sender, receiver), ThreadPoolExecutor(1) as pool:

        def send_all() -> None:
            for number in range(50):
                sender.send(
                    request(number, epoch=number // 10, timings=b"t" * number), (numbers(number), numbers(-1, 3))
                )

        sending = pool.submit(send_all)
        for number in range(50):
            message = receiver.receive()
            header = message.header
            assert (header.request, header.epoch, header.timings) == (number, number // 10, b"t" * number)
            assert torch.equal(message.tensors[0], numbers(number))
            assert torch.equal(message.tensors[1], numbers(-1, 3))
            message.release()
        sending.result()


@both_kinds
def test_the_time_of_sending_is_stamped(kind: str):
    with pair(kind) as (sender, receiver):
        before_s = time.perf_counter()
        sender.send(request(0), (numbers(0),))
        assert before_s <= receiver.receive().header.sent_s <= time.perf_counter()


@both_kinds
def test_strides_and_odd_shapes_survive(kind: str):
    tensors = (
        torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
        torch.tensor(7, dtype=torch.int64),
        torch.empty(0, 4),
    )
    with pair(kind) as (sender, receiver):
        sender.send(request(0), tensors)
        arrived = receiver.receive().tensors
        assert [tensor.stride() for tensor in arrived] == [tensor.stride() for tensor in tensors]
        assert all(torch.equal(a, b) for a, b in zip(arrived, tensors, strict=True))


@both_kinds
def test_failures_and_long_timings_pass_though_every_slot_is_taken(kind: str):
    failure = Failure("layer a", "ValueError", "m" * 20_000, "t" * 20_000)
    with pair(kind, slots=1) as (sender, receiver):
        sender.send(request(0), (numbers(0),))
        for number in range(1, 5):
            sender.send(Header(Kind.ERROR, number, timings=b"x" * 50_000, failure=failure))
        held = receiver.receive()
        for number in range(1, 5):
            message = receiver.receive()
            assert (message.header.request, message.header.failure) == (number, failure)
            message.release()
        assert torch.equal(held.tensors[0], numbers(0))


@both_kinds
def test_empty_tensors_give_their_slots_back(kind: str):
    # Over TCP they once did not: there are no bytes to wait for.
    with pair(kind, slots=2) as (sender, receiver), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [sender.send(request(n), (torch.empty(0, 3),)) for n in range(10)])
        for number in range(10):
            message = receiver.receive()
            assert (message.header.request, message.tensors[0].shape) == (number, (0, 3))
            message.release()
        sending.result(PROMPT_S)


@both_kinds
def test_what_does_not_fit_is_refused_and_costs_no_slot(kind: str):
    with pair(kind, slots=1, slot_nbytes=64) as (sender, receiver):
        for _ in range(3):
            with pytest.raises(ValueError, match="448 bytes do not fit a slot of 64"):
                sender.send(request(0), (numbers(0),))
        sender.send(request(1), (numbers(1, 16),))
        assert receiver.receive().header.request == 1


@both_kinds
def test_without_credits_the_sender_decides_which_slot_is_free(kind: str):
    pool = SlotPool(3, 1024)
    with pair(kind, slots=3, credits=False, pool=pool) as (sender, receiver):
        assert [post(pool, sender, request(n), (numbers(n),)) for n in range(3)] == [0, 1, 2]
        messages = [receiver.receive() for _ in range(3)]
        for message in messages:
            message.release()
        assert not pool.free
        pool.free.extend((2, 0))
        assert {post(pool, sender, request(n), (numbers(n),)) for n in (3, 4)} == {0, 2}
        # slot 1 was never given back: its input is still there
        assert torch.equal(sender.memory.read(1, messages[1].header.tensors)[0], numbers(1))
        assert [receiver.receive().header.request for _ in range(2)] == [3, 4]


# -- closing ----------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_goodbye_comes_after_everything_sent_before(kind: str):
    sender, receiver = open_pair(kind, slots=4)
    for number in range(3):
        sender.send(request(number), (numbers(number),))
    receiver.receive().release()  # a credit that the sender has not read when it closes
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(sender.close)
        for number in (1, 2):
            message = receiver.receive()
            assert torch.equal(message.tensors[0], numbers(number))
            message.release()
        assert receiver.receive().header.kind is Kind.CLOSE
        receiver.close()
        closing.result(PROMPT_S)


@both_kinds
def test_without_a_goodbye_the_receiver_is_told_of_a_loss(kind: str):
    sender, receiver = open_pair(kind)
    sender.close(graceful=False)
    for _ in range(2):
        with pytest.raises(ChannelClosedError, match="the previous stage is gone"):
            receiver.receive()
    receiver.close()


@both_kinds
def test_closing_wakes_a_waiting_receiver(kind: str):
    with pair(kind) as (_, receiver), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(receiver.receive)
        receiver.close()
        with pytest.raises(ChannelClosedError):
            waiting.result(PROMPT_S)


@both_kinds
def test_both_ends_can_be_closed_twice_and_do_not_work_afterwards(kind: str):
    sender, receiver = open_pair(kind)
    for _ in range(2):
        sender.close(graceful=False)
        receiver.close()
    with pytest.raises(ChannelClosedError):
        sender.send(request(0), (numbers(0),))
    with pytest.raises(ChannelClosedError):
        receiver.receive()


def traces() -> tuple[int, list[str], int, int]:
    """Open files, names in /dev/shm, rings in memory, threads."""
    descriptors = open_descriptors()
    mapped = Path("/proc/self/maps").read_text().count("odin-channel")
    return descriptors, sorted(os.listdir("/dev/shm")), mapped, threading.active_count()


def use_and_close(kind: str) -> None:
    sender, receiver = open_pair(kind)
    sender.send(request(0), (numbers(0),))
    receiver.receive().release()
    sender.close(graceful=False)
    receiver.close()


def refuse_and_accept(kind: str) -> None:
    listener = listen(kind)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        for _ in range(3):
            with pytest.raises(ChannelClosedError, match="refused the channel"):
                open_sender(listener.address._replace(token=bytes(16)))
        open_sender(listener.address).close(graceful=False)
        accepting.result().close()


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("use", [use_and_close, refuse_and_accept])
def test_nothing_is_left_behind(kind: str, use: Callable[[str], None]):
    use(kind)
    before = traces()
    for _ in range(5):
        use(kind)
    assert traces() == before


# -- opening ----------------------------------------------------------------------------------------------------------


def knock(address: Address, data: bytes) -> None:
    """Connect as a stranger, say ``data``, and hear that nobody wants to talk."""
    if address.local:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.connect(f"\0{address.name}")
    else:
        stranger = socket.create_connection((address.host, address.port))
    with stranger:
        if data:
            stranger.sendall(data)
        else:
            stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


@both_kinds
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(256)) * 10,
        Hello(bytes(16), 2, 1024, True).pack(),
    ],
    ids=["silence", "http", "noise", "wrong token"],
)
def test_strangers_do_not_take_the_place_of_the_previous_stage(kind: str, data: bytes):
    listener = listen(kind)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        for _ in range(3):
            knock(listener.address, data)
        sender = open_sender(listener.address)
        receiver = accepting.result(PROMPT_S)
    sender.send(request(5), (numbers(5),))
    assert receiver.receive().header.request == 5
    sender.close(graceful=False)
    receiver.close()


def test_the_right_token_without_memory_is_a_stranger_too():
    listener = listen("shm")
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        knock(listener.address, Hello(listener.address.token, 2, 1024, True).pack())
        sender = open_sender(listener.address)
        receiver = accepting.result(PROMPT_S)
    sender.close(graceful=False)
    receiver.close()


@both_kinds
def test_nobody_comes(kind: str):
    with pytest.raises(ChannelClosedError, match=r"no previous stage connected within 0 s"):
        listen(kind).accept(timeout_s=0.01)


@both_kinds
def test_nobody_listens(kind: str):
    listener = listen(kind)
    listener.close()
    with pytest.raises(ChannelClosedError, match=r"cannot connect to the stage at .*refused"):
        open_sender(listener.address)


def test_a_local_address_nobody_has_hints_at_namespaces():
    address = Address("", 0, f"odin-{secrets.token_hex(8)}", bytes(16))
    with pytest.raises(ChannelClosedError, match="network namespace need transport='tcp'"):
        connect(address, slots=1, slot_nbytes=64)


@both_kinds
def test_an_open_channel_waits_without_limit(kind: str):
    # The handshake has time limits; left on the socket they once ended an idle TCP channel after five seconds.
    with pair(kind) as (sender, receiver):
        assert sender._connection.gettimeout() is None
        assert receiver._connection.gettimeout() is None


def test_tcp_works_over_ipv6():
    try:
        listener = Listener("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        sender = open_sender(listener.address)
        receiver = accepting.result()
    sender.send(request(3))
    assert receiver.receive().header.request == 3
    sender.close(graceful=False)
    receiver.close()


# -- the other end's process dies -------------------------------------------------------------------------------------


def send_and_wait(address: Address, count: int) -> None:
    sender = open_sender(address)
    for number in range(count):
        sender.send(request(number), (numbers(number),))
    threading.Event().wait()


@pytest.mark.slow
@both_kinds
def test_a_killed_sender_is_noticed_at_once_after_what_it_sent(kind: str):
    listener = listen(kind)
    with child(send_and_wait, listener.address, 2) as process:
        receiver = listener.accept(PROMPT_S)
        held = receiver.receive()
        with ThreadPoolExecutor(1) as pool:
            assert receiver.receive().header.request == 1
            waiting = pool.submit(receiver.receive)
            process.kill()
            with pytest.raises(ChannelClosedError, match="the previous stage is gone"):
                waiting.result(PROMPT_S)
        # what is held stays readable, and giving it back to the dead does no harm
        assert torch.equal(held.tensors[0], numbers(0))
        held.release()
    receiver.close()


def accept_and_hold(ready: Connection, kind: str, count: int) -> None:
    listener = listen(kind)
    ready.send(listener.address)
    receiver = listener.accept(PROMPT_S)
    for _ in range(count):
        receiver.receive()
    ready.send("holding")
    threading.Event().wait()


BIG = 4 * 2**20
"""Numbers in a tensor that no socket buffer takes whole."""


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("held", [0, 1])
def test_a_killed_receiver_is_noticed_by_a_sender_that_waits(kind: str, held: int):
    ours, theirs = SPAWN.Pipe()
    with child(accept_and_hold, theirs, kind, held) as process:
        address = ours.recv()
        sender = open_sender(address, slots=1, slot_nbytes=4 * BIG)
        with ThreadPoolExecutor(1) as pool:
            stop = pool.submit(send_until_closed, sender)
            assert ours.recv() == "holding"
            process.kill()
            assert "the next stage is gone" in stop.result(PROMPT_S)
    sender.close()
    ours.close()
    theirs.close()


def send_until_closed(sender) -> str:
    tensor = torch.zeros(BIG)
    try:
        for number in range(1000):
            sender.send(request(number), (tensor,))
    except ChannelClosedError as error:
        return str(error)
    return "sent a thousand"


# -- waiting costs nothing --------------------------------------------------------------------------------------------


def receive_two(answer: Connection, kind: str) -> None:
    listener = listen(kind)
    answer.send(listener.address)
    receiver = listener.accept(PROMPT_S)
    for number in range(2):
        receiver.receive()
        answer.send(number)


UNSWALLOWED = 12 * 2**20
"""Numbers (48 MiB) that do not vanish in the kernel's socket buffers, of which Linux grows some to 32 MiB."""


def send_ahead(answer: Connection, address: Address, ahead: int) -> None:
    sender = open_sender(address, slots=1, slot_nbytes=4 * UNSWALLOWED)
    for number in range(ahead):
        sender.send(request(number), (torch.zeros(UNSWALLOWED),))
    answer.send("waiting")
    sender.send(request(ahead), (torch.zeros(1),))
    answer.send("sent")
    threading.Event().wait()


LOOKS = 20


def check_that_it_sleeps(pid: int) -> None:
    """Every thread of the process sleeps, and none wakes up between many looks, other than once in a while.

    Of CPU time, which would tell as well, a busy machine gives to those who wait for it in vain, too.
    """

    def threads() -> tuple[set[str], int]:
        states, switches = set(), 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            fields = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if ":\t" in line)
            states.add(fields["State"][0])
            switches += int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
        return states, switches

    pause = threading.Event()
    wait_for(lambda: threads()[0] == {"S"}, what="all threads sleep")
    before, asleep = threads()[1], 0
    for _ in range(LOOKS):
        pause.wait(0.01)
        asleep += threads()[0] == {"S"}
    assert asleep > LOOKS // 2  # there is a probe of the connection now and then
    assert threads()[1] - before < LOOKS


@pytest.mark.slow
@both_kinds
def test_a_waiting_receiver_uses_no_cpu(kind: str):
    ours, theirs = SPAWN.Pipe()
    with child(receive_two, theirs, kind) as process:
        sender = open_sender(ours.recv())
        sender.send(request(0))
        assert ours.recv() == 0
        check_that_it_sleeps(process.pid)
        sender.send(request(1))
        assert ours.recv() == 1
    sender.close(graceful=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ahead"), [("shm", 1), ("tcp", 2)])
def test_a_waiting_sender_uses_no_cpu(kind: str, ahead: int):
    # Over TCP the sender has a slot of its own: what fills it waits on the way, the next waits for the slot.
    listener = listen(kind)
    ours, theirs = SPAWN.Pipe()
    with child(send_ahead, theirs, listener.address, ahead) as process:
        receiver = listener.accept(PROMPT_S)
        message = receiver.receive()
        assert ours.recv() == "waiting"
        check_that_it_sleeps(process.pid)
        assert not ours.poll()
        for number in range(1, ahead + 1):
            message.release()
            message = receiver.receive()
            assert message.header.request == number
        assert ours.recv() == "sent"
    receiver.close()
