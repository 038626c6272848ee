"""The page and its events, without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import urllib.error
import urllib.request

import pytest
from fake_serving import FakeFamily, FakeModel, FakePacked, fake_dataplane, serve_made_up, served_http
from synthetic_run import interference, many_stages, request, run_started

from odin.server.config import ModelConfig
from odin.server.failures import FailureKind
from odin.server.page import Feed, page_routes
from odin.server.page_view import page_view
from odin.testing import FakeClock


@pytest.fixture
def dataplane():
    return fake_dataplane({"a": [run_started((9, 9))], "b": interference(end=False)})


def first_event(answer):
    line = answer.readline().decode()
    assert line.startswith("data: ")
    assert answer.readline() == b"\n"
    return json.loads(line[6:])


def follow_when_there_is_room(address):
    """Ask until one is let in."""
    for _ in range(10_000):
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{address}/events", timeout=30):
            return
    pytest.fail("there was never room")


def test_the_page_asks_for_nothing_from_elsewhere(dataplane):
    with (
        served_http(page_routes(dataplane)) as (address, _),
        urllib.request.urlopen(f"{address}/", timeout=30) as answer,
    ):
        html = answer.read().decode()
        policy = answer.headers["content-security-policy"]
    assert set(re.findall(r"https?://[^\"'\s]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_events_are_the_state_of_all_models(dataplane):
    with (
        served_http(page_routes(dataplane, every_s=0.01)) as (address, _),
        urllib.request.urlopen(f"{address}/events", timeout=30) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        state = first_event(answer)
        assert [model["name"] for model in state["models"]] == ["a", "b"]
        assert [len(model["view"]["stages"]) for model in state["models"]] == [2, 2]
        assert state["server"]["ready"] is True
        asyncio.run(dataplane.unload("a"))
        while (now := first_event(answer)["models"][0])["state"] != "UNAVAILABLE":
            assert now["state"] in ("READY", "UNLOADING")
        assert now["view"] is None


def test_streams_end_when_the_server_ends(dataplane):
    with (
        served_http(page_routes(dataplane, every_s=0.01)) as (address, _),
        urllib.request.urlopen(f"{address}/events", timeout=30) as answer,
    ):
        first_event(answer)
        dataplane.draining = True
        *_, last = (line for line in answer.read().split(b"\n\n") if line)
        assert json.loads(last[6:])["server"]["draining"] is True


def test_a_head_request_does_not_follow(dataplane):
    with served_http(page_routes(dataplane, every_s=0.01)) as (address, _):
        question = urllib.request.Request(f"{address}/events", method="HEAD")
        with urllib.request.urlopen(question, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")


def test_only_so_many_may_follow(dataplane):
    with served_http(page_routes(dataplane, every_s=0.01, most_streams=2)) as (address, _):
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                first_event(stack.enter_context(urllib.request.urlopen(f"{address}/events", timeout=30)))
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(f"{address}/events", timeout=30)
        follow_when_there_is_room(address)  # the places of those that went


def test_who_reads_nothing_is_sent_no_more(dataplane):
    view = dataplane.repository.served("a").view()
    dataplane.repository.served("a").pipeline.view = lambda: view
    large = [{"x" * 100_000: "y"}]
    routes = page_routes(dataplane, every_s=0.001, most_streams=1, patience_s=0.2)
    dataplane.index = lambda: [_Large(large)]
    with served_http(routes) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            idle.recv(16)
            follow_when_there_is_room(address)  # its place is given away, although it has not gone


class _Large:
    """A model's state that fills a connection's buffers."""

    name = "large"

    def __init__(self, what):
        self._what = what

    def _asdict(self):
        return {"name": "large", "what": self._what}


def test_the_state_is_made_once_for_all_who_wait(dataplane):
    clock, views = FakeClock(), []
    pipeline = dataplane.repository.served("a").pipeline
    view = pipeline.view
    pipeline.view = lambda: views.append(1) or view()

    async def wait():
        feed = Feed(dataplane, every_s=0.0, clock=clock)
        first = await asyncio.gather(*(feed.next() for _ in range(5)))
        one = asyncio.ensure_future(feed.next())
        other = asyncio.ensure_future(feed.next())
        await asyncio.sleep(0)
        one.cancel()  # who goes takes nothing from the others
        return {*first}, await other

    states, other = asyncio.run(wait())
    assert states == {other}
    assert len(views) == 2


def test_families_stand_before_their_variants_and_packed_models_last(dataplane):
    stories = {"large": [run_started((9, 9))], "small": [run_started((3, 15))]}
    family = FakeFamily(ModelConfig(name="aa", source="", version="7"), stories)
    for model in (FakePacked(ModelConfig(name="a0", source="")), family):
        serve_made_up(dataplane.repository, model)
    family.statistics.add(samples=3, input_s=0.0, compute_s=0.1, output_s=0.0)
    family.statistics.add_failure(FailureKind.LATE, request_s=0.1)
    models = json.loads(asyncio.run(Feed(dataplane, every_s=0.0).next()))["models"]
    assert [model["name"] for model in models] == ["a", "b", "aa", "aa/large", "aa/small", "a0"]
    assert [model["view"] is None for model in models] == [False, False, True, False, False, True]
    assert [model["about"] for model in models] == [
        "", "", "a family of variants, 1 requests answered, 1 not", "", "", "packed, 0 requests answered, 0 not",
    ]  # fmt: skip
    assert [model["version"] for model in models[2:5]] == ["7"] * 3
    assert models[4]["view"]["plan"] == "3|15"


def test_a_view_becomes_plain_values():
    config = ModelConfig(name="m", source="resnet50")
    plain = page_view(FakeModel(config, interference(end=False, seconds=(30, 1, 0))).view())
    json.dumps(plain)
    assert plain["plan"] == "9|9"
    assert [stage["device"] for stage in plain["stages"]] == ["cpu:0", "cpu:1"]
    assert {event["kind"] for event in plain["events"]} >= {"run", "slowdown", "attribution", "plan"}
    assert len(plain["history"]["throughput_hz"]) == len(plain["history"]["latency_p99_s"])
    assert plain["stages"][0]["shares"] is None


def test_where_requests_change_hands_freely_layers_have_shares():
    events = [run_started((9, 9), windows="@0-18|@18")]
    events += [request(n, 1000.1 + n / 10, (0.1, 0.1), plan=(9 + n % 2, 9 - n % 2)) for n in range(40)]
    plain = page_view(FakeModel(ModelConfig(name="m", source="resnet50"), events).view())
    first, second = plain["stages"]
    assert first["shares"] == [100] * 9 + [50] + [0] * 8
    assert (first["layer_count"], second["layer_count"]) == (9.5, 8.5)
    assert plain["windows"].startswith("requests may change hands")


def test_a_state_of_many_stages_stays_small():
    events = many_stages(52, layers_each=20, disturbed=range(52))
    plain = page_view(FakeModel(ModelConfig(name="m", source="resnet50"), events).view())
    assert len(json.dumps(plain)) < 60_000
