"""The Markdown pages of this repository: their prose, links, anchors and fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    path
    for path in sorted(
        [*ROOT.glob("*.md"), *(page for top in ("docs", "examples", "benchmarks") for page in ROOT.glob(f"{top}/*.md"))]
    )
)

_FENCE = re.compile(r"^( *)(```+|~~~+)([^\n`]*)\n(.*?)^ *\2`* *$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_TARGET = r"\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"
_PICTURE = re.compile(rf"!\[[^\[\]]*\]{_TARGET}")
_LINK = re.compile(rf"\[(?:[^\[\]]|\[[^\[\]]*\])*\]{_TARGET}")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$", re.MULTILINE)
_HTML_LINK = re.compile(r"""<(?:a|img)\s[^>]*?(?:href|src)=["']([^"']+)["']""")
_HEADING = re.compile(r"^ {0,3}#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
_OWN_ANCHOR = re.compile(r"""<a\s[^>]*?(?:id|name)=["']([^"']+)["']""")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it is, the word after its fence, and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent = match[1]
        body = "".join(line.removeprefix(indent) for line in match[4].splitlines(keepends=True))
        words = match[3].split()
        found.append(Block(page, text.count("\n", 0, match.start()) + 2, words[0] if words else "", body))
    return found


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def inline_code(text: str) -> Iterator[str]:
    """What stands between backquotes in the prose; line breaks are spaces there."""
    for match in _INLINE_CODE.finditer(prose(text)):
        yield " ".join(match[2].split())


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    plain = _INLINE_CODE.sub(lambda match: "`" * len(match[1]), prose(text))
    pictures, plain = _PICTURE.findall(plain), _PICTURE.sub("", plain)  # which may be what a link shows
    return [*pictures, *(found for pattern in (_LINK, _DEFINITION, _HTML_LINK) for found in pattern.findall(plain))]


def anchors(text: str) -> set[str]:
    """What can stand after ``#``: the headings as GitHub makes anchors of them, and those that are set by hand."""
    made: dict[str, int] = {}
    found = set(_OWN_ANCHOR.findall(text))
    for heading in _HEADING.findall(prose(text)):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in made else f"{slug}-{made[slug]}")
        made[slug] = made.get(slug, 0) + 1
    return found


def broken_links(page: Path, *, root: Path = ROOT) -> list[str]:
    """What is wrong with the relative links of a page, a line each."""
    faults = []
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = page if not path else (root / path.lstrip("/") if path.startswith("/") else page.parent / path)
        if not there.resolve().is_relative_to(root.resolve()):
            faults.append(f"{target}: outside of the repository")
        elif not there.exists():
            faults.append(f"{target}: there is no such file")
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there.read_text(encoding="utf-8"))):
            faults.append(f"{target}: there is no such heading")
    return faults
