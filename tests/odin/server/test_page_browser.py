"""The page in a real browser: headless Chromium, where it is installed."""

from __future__ import annotations

import contextlib
import threading

import pytest
from chromium import chromium
from fake_serving import FakeFamily, FakePacked, fake_dataplane, serve_fake, serve_made_up, served_http
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from synthetic_run import interference, run_started

from odin.monitor.events import Attributed, Culprit, PlanChanged, SlowdownChanged, StageBack, StageLost
from odin.server.config import ModelConfig
from odin.server.page import page_routes

pytestmark = pytest.mark.slow

MARKUP = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def dataplane():
    events = interference(end=False)
    moved = next(index for index, event in enumerate(events) if isinstance(event, PlanChanged))
    return fake_dataplane({"calm": [run_started((6, 12))], "busy": events[:moved]})


@contextlib.contextmanager
def shown(browser, dataplane, *, width=1280, dark=False):
    with served_http(page_routes(dataplane, every_s=0.05)) as (address, server):
        browser.emulate(width=width, dark=dark)
        browser.open(address)
        browser.wait_for("document.querySelectorAll('article table tbody').length == 2")
        yield server
        browser.complaints()  # so that the next test has only its own
        browser.open("about:blank")  # or the server would wait for its stream


def test_models_stand_side_by_side_and_change_while_one_looks(browser, dataplane):
    busy = dataplane.repository.served("busy")
    with shown(browser, dataplane):
        lefts = browser.script(
            "return [...document.querySelectorAll('article')].map(a => a.getBoundingClientRect().left)"
        )
        assert lefts[0] < lefts[1]
        rows = browser.script(
            "return [...document.querySelectorAll('article')][0].querySelector('tbody').innerText"
        )  # models by name: busy is first
        assert "disturbed" in rows
        assert "CPU share, pid 4242 stress-ng 50%" in rows
        busy.tell(StageLost(busy._now_s, 1, "killed by signal 9", False, 3))
        browser.wait_for("document.title.includes('1 lost')")
        assert "lost: stage 1 cpu:1: killed by signal 9" in browser.text()
        assert browser.script("return document.getElementById('news').textContent").startswith("busy: lost")
        busy.tell(StageBack(busy._now_s, 1, 99, 1.5, True))
        browser.wait_for("document.title == 'odin'")
        assert browser.complaints() == []


def test_what_names_contain_is_text(browser, dataplane):
    busy = dataplane.repository.served("busy")
    busy.tell(
        SlowdownChanged(busy._now_s, 1, 400, 6, 2.1, "change"),
        Attributed(busy._now_s, 1, "memory", (Culprit(7, MARKUP, 0.5),), MARKUP),
    )
    with shown(browser, dataplane):
        browser.wait_for(f"document.body.innerText.includes('{MARKUP}')")
        assert browser.script("return [document.images.length, window.hacked === undefined]") == [0, True]
        assert browser.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 800, 1280, 1500])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(browser, dataplane, width, dark):
    with shown(browser, dataplane, width=width, dark=dark):
        assert browser.script("return document.documentElement.scrollWidth") == width
        if width > 320:
            assert browser.script(
                "return [...document.querySelectorAll('.stages')].every(box => box.scrollWidth <= box.clientWidth)"
            )
        ground, text = browser.script(
            "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
        )
        light = [sum(map(int, color[4:-1].split(","))) for color in (ground, text)]
        assert (light[0] < light[1]) is dark
        faint = browser.script(_LEAST_CONTRAST)
        assert faint >= 4.5  # WCAG AA for text
        assert browser.complaints() == []


_LEAST_CONTRAST = """
const parts = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (color) => parts(color).map((v) => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const card = light(getComputedStyle(document.querySelector('article')).backgroundColor);
const ratios = [...document.querySelectorAll('article *')].filter((e) => e.children.length == 0 && e.textContent.trim())
  .map((e) => light(getComputedStyle(e).color)).map((l) => (Math.max(l, card) + 0.05) / (Math.min(l, card) + 0.05));
return Math.min(...ratios);
"""


def test_it_says_so_when_the_server_is_gone_and_comes_back(browser, dataplane):
    with shown(browser, dataplane):
        dataplane.draining = True
        browser.wait_for("document.getElementById('link').textContent.includes('trying again')")
        assert browser.script("return document.body.classList.contains('stale')")
        dataplane.draining = False
        browser.wait_for("document.getElementById('link').textContent == 'live'")
        assert not browser.script("return document.body.classList.contains('stale')")


def test_models_come_and_go(browser, dataplane):
    entry = dataplane.repository._entries["calm"]
    with shown(browser, dataplane):
        entry.served, entry.state, entry.reason = None, "UNAVAILABLE", "ValueError: no such file"
        browser.wait_for("document.body.innerText.includes('ValueError: no such file')")
        serve_fake(dataplane.repository, "calm", [run_started((3, 15))])
        browser.wait_for("document.body.innerText.includes('plan 3|15')")
        del dataplane.repository._entries["calm"]
        browser.wait_for("document.querySelectorAll('article').length == 1")


def test_a_family_and_a_packed_model_have_a_line_each(browser, dataplane):
    stories = {"large": [run_started((9, 9))], "small": [run_started((3, 15))]}
    family = FakeFamily(ModelConfig(name="family", source=""), stories)
    with shown(browser, dataplane):
        for model in (family, FakePacked(ModelConfig(name="packed", source=""))):
            serve_made_up(dataplane.repository, model)
        browser.wait_for("document.querySelectorAll('article table tbody').length == 4")
        boxes = browser.script(
            "return [...document.querySelectorAll('article')].map(a => [a.querySelector('h2').textContent, "
            "a.getBoundingClientRect().top, a.getBoundingClientRect().width])"
        )
        top = {name: top for name, top, _ in boxes}
        wide = {name for name, _, width in boxes if width > 1000}
        assert wide == {"family", "packed"}
        assert top["busy"] == top["calm"] < top["family"] < top["family/large"] == top["family/small"] < top["packed"]
        assert "a family of variants, 0 requests answered, 0 not" in browser.text()
        assert browser.complaints() == []


def test_a_token_is_asked_for_and_sent(browser, dataplane):
    page, events = page_routes(dataplane, every_s=0.05)
    sent = threading.Event()

    async def guarded(request):
        if request.headers.get("authorization") != "Bearer secret":
            return PlainTextResponse("no", 401)
        sent.set()
        return await events.endpoint(request)

    with served_http([page, Route("/events", guarded)]) as (address, _):
        browser.emulate()
        browser.open(address)
        browser.wait_for("!document.getElementById('ask').hidden")
        browser.script(
            "document.getElementById('token').value = 'secret'; document.querySelector('#ask button').click()"
        )
        browser.wait_for("document.querySelectorAll('article').length == 2")
        assert sent.is_set()
        assert browser.script("return document.getElementById('ask').hidden")
        browser.open("about:blank")
