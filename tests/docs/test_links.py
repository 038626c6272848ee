"""Links between pages lead somewhere, files that pages name are there, and every page is found from the index."""

from __future__ import annotations

import re

import pytest
from markdown_pages import PAGES, ROOT, anchors, broken_links, inline_code, links

INDEX = ROOT / "docs" / "README.md"
_OURS = "odin|odin_lab|stages|partitioner|monitor|benchmarks|scripts|examples|tests|docs|findings"
_NAMED = re.compile(rf"(?:\.\./|\./)?((?:{_OURS})/[\w./*-]+)")
_MADE = ("docs/build",)


def _id(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_id)
def test_files_that_are_named_are_there(page):
    named = [match[1] for text in inline_code(page.read_text()) if (match := _NAMED.fullmatch(text))]
    assert [name for name in named if not any(ROOT.glob(name.rstrip("/")))] == []


def test_every_page_is_found_from_the_index():
    linked = {(INDEX.parent / link.partition("#")[0]).resolve() for link in links(INDEX.read_text())}
    missing = [_id(page) for page in PAGES if page != INDEX and page not in linked]
    assert missing == []


def test_the_readme_names_the_index():
    assert "docs/README.md" in links((ROOT / "README.md").read_text())


# -- that the checks can fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a](b.md)", []),
        ("[a](b.md#two-words)", []),
        ("[a](b.md#what-x-is-v1)", []),
        ("[a](b.md#same-1)", []),
        ("[a](#here)\n\n## Here\n", []),
        ("![p](<c.png>)\n[d]: c.png\n", ["c.png: there is no such file", "c.png: there is no such file"]),
        ("[a](c.md)", ["c.md: there is no such file"]),
        ("[a](b.md#three)", ["b.md#three: there is no such heading"]),
        ("[a](#there)", ["#there: there is no such heading"]),
        ("[a](../../x.md)", ["../../x.md: outside of the repository"]),
        ('<img src="c.png">', ["c.png: there is no such file"]),
        ("`[a](c.md)`\n\n```\n[a](c.md)\n```\n[w](https://example.org/c.md)", []),
        ("[two\nlines](c.md)", ["c.md: there is no such file"]),
        ("[![p](c.png)](b.md)", ["c.png: there is no such file"]),
    ],
)
def test_a_broken_link_is_told(tmp_path, text, told):
    (tmp_path / "b.md").write_text("# Two words\n\n## What `x` is (v1)\n\n## Same\n\n## Same\n\n```\n## Three\n```\n")
    page = tmp_path / "a.md"
    page.write_text(text)
    assert broken_links(page, root=tmp_path) == told


def test_anchors_are_those_of_github():
    assert anchors("# On a GPU\n## `odin top`, `odin run --live`\n### A. B/C\n") == {
        "on-a-gpu",
        "odin-top-odin-run---live",
        "a-bc",
    }
