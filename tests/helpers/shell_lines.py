"""Command lines in documentation: read as a shell would, and held against the programs that they name."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

from markdown_pages import ROOT

from odin.cli.main import make_parser
from odin.control.default_policy import AUTO
from odin.control.detectors import make_detector
from odin.partitioner.policies import make_policy

_OURS = re.compile(r"(?:\./)?((?:scripts|examples|benchmarks|docs|tests|findings)/[\w./-]+)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\(((?:'[^']*'|\"[^\"]*\"|[^()'\"]|\([^()]*\))*)\)")
_BETWEEN = re.compile(r"[;&|]+")
_REDIRECTION = re.compile(r"\d?(?:>>?|<)")
_OTHERS = (
    *("cat", "cd", "chmod", "cp", "docker", "eval", "export", "journalctl", "kill", "mkdir", "scp", "source", "sudo"),
    *("systemctl", "taskset", "wc", "curl"),
)
"""Programs that are not ours, and may be named."""


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, those within ``$(...)`` too, each as its words."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        # The words first: a comment may have a quotation mark in it, and a text a #.
        yield from _of_line(_without_comment(line))


def _without_comment(line: str) -> str:
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (not place or line[place - 1].isspace()):
            return line[:place]
    return line


def _of_line(line: str) -> Iterator[list[str]]:
    for inner in _SUBSTITUTION.findall(line):
        yield from _of_line(inner)
    lexer = shlex.shlex(_SUBSTITUTION.sub("SUBSTITUTED", line), posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif _BETWEEN.fullmatch(word):
            while words and _ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            if words:
                yield words
            words = []
        elif _REDIRECTION.fullmatch(word):
            skip = True
        else:
            words.append(word)


def faults(words: list[str]) -> list[str]:
    """What is wrong with one command."""
    found = [f"there is no {match[1]}" for word in words if (match := _OURS.fullmatch(word)) and not _there(match[1])]
    program, rest = words[0], words[1:]
    name = Path(program).name
    if _OURS.fullmatch(program):
        if _there(program) and not os.access(ROOT / program, os.X_OK):
            found.append(f"{program} is not executable")
        if name == "cluster.sh":
            found += odin_faults(["cluster", *rest])
    elif name == "odin":
        found += odin_faults(rest)
    elif re.fullmatch(r"python3?", name):
        found += _python_faults(rest)
    elif name == "pip":
        found += _pip_faults(rest)
    elif name not in _OTHERS:
        found.append(f"{program} is no program that the pages may name: correct it, or add it to shell_lines.py")
    return found


def _there(name: str) -> bool:
    return (ROOT / name).exists()


def odin_faults(words: list[str]) -> list[str]:
    """What the parser, the policies and the detectors say to a command line of ``odin``."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            arguments = make_parser().parse_args(words)
    except SystemExit as ended:
        return [told.getvalue().strip().splitlines()[-1]] if ended.code else []
    found = []
    given = [] if words[0] == "tune" else getattr(arguments, "policy", None) or []  # its policies turn knobs
    for text in [given] if isinstance(given, str) else given:
        if text != AUTO:
            found += _made(lambda text=text: make_policy(text.removesuffix("(serial)").strip()), text)
    if getattr(arguments, "detector", None):
        found += _made(lambda: make_detector(arguments.detector, 2), arguments.detector)
    return found


def _made(make, text: str) -> list[str]:
    if str(text).startswith("mypkg"):  # the reader's own
        return []
    try:
        make()
    except ValueError as error:
        return [] if "river" in str(error) else [str(error)]
    return []


def mention_faults(text: str) -> list[str]:
    """What is wrong with ``odin ...`` in a sentence, where arguments may be missing: commands and options must be."""
    words = [word.strip("[],.;:()") for word in _without_comment(text).split()[1:] if word != "|"]
    if not words or words[0].isupper() or words[0].startswith(("...", "<")):
        return []
    parser, options = make_parser(), {"--help", "--version"}
    for word in words:
        inner = next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
        if inner is not None and word in inner.choices:
            parser = inner.choices[word]
        elif inner is not None and not word.startswith("-") and (parser.prog == "odin" or not word.isupper()):
            return [f"{text}: there is no {parser.prog} {word}"]
        options |= {option for action in parser._actions for option in action.option_strings}
        if word.startswith("--") and word.partition("=")[0] not in options:
            return [f"{text}: {parser.prog} has no option {word}"]
    return []


def _python_faults(rest: list[str]) -> list[str]:
    if not rest:
        return ["python without a program"]
    if rest[0] == "-m":
        module = rest[1]
        return [] if importlib.util.find_spec(module) is not None else [f"there is no module {module}"]
    if rest[0] == "-c":
        try:
            compile(rest[1], "-c", "exec")
        except SyntaxError as error:
            return [f"{rest[1]}: {error}"]
    return []


def _pip_faults(rest: list[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    found = []
    for word in rest[1:]:
        if match := re.fullmatch(rf"(?:\.|{project['name']})\[([\w,-]+)\]", word):
            found += [f"there is no extra {extra}" for extra in match[1].split(",") if extra not in extras]
    if "--constraint" in rest and not (ROOT / rest[rest.index("--constraint") + 1]).exists():
        found.append("there is no such file of constraints")
    return found
