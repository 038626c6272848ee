"""Code in README and in the pages: Python runs, command lines are taken by the programs that they name."""

from __future__ import annotations

import ast
import asyncio
import builtins
import configparser
import importlib
import importlib.util
import inspect
import json
import logging
import shlex
import signal
import tomllib

import pytest
from markdown_pages import PAGES, ROOT, blocks, inline_code
from shell_lines import commands, faults, mention_faults

_BLOCKS = [block for page in PAGES for block in blocks(page)]
_SHELL = ("bash", "sh", "shell", "console")
_SERVES = "odin.Pipeline("
"""A block with this in it starts Ray."""
_READERS_OWN = ("pandas",)
"""Packages that a block may import and that the tests do not install: then its names are checked, and it is not run."""


_ASKS_A_SERVER = ("tritonclient.http",)
"""A block that imports one of these needs a server that runs: its names are checked."""


def _of(*languages):
    return [block for block in _BLOCKS if block.language in languages]


# -- shell ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", _of(*_SHELL), ids=str)
def test_command_lines_are_taken(block):
    assert [f"{' '.join(words)}: {fault}" for words in commands(block.text) for fault in faults(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_are_there(page):
    said = [text for text in inline_code(page.read_text()) if text.startswith("odin ")]
    assert [fault for text in said for fault in mention_faults(text)] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("odin run resnet50 --input DIR", ""),
        ("odin run resnet50 --input DIR --inputs DIR", "unrecognized arguments: --inputs"),
        ("odin runs resnet50", "invalid choice: 'runs'"),
        ("x=1 odin top --json | wc -l", ""),
        ("echo $(odin tops)", "invalid choice: 'tops'"),
        ('eval "$(odin completion fish)"', "invalid choice: 'fish'"),
        ("odin run x --input DIR \\\n    --polices lls", "unrecognized arguments"),
        ("odin run x --input DIR --policy foo", "there is no policy 'foo'"),
        ("odin run x --input DIR --detector examples.my_detector:Chart", "has no 'Chart'"),
        ("scripts/quickstart.sh && scripts/slowstart.sh", "there is no scripts/slowstart.sh"),
        ("odin inject --scenario examples/nothing.toml", "there is no examples/nothing.toml"),
        ("scripts/cluster.sh joins 10.0.0.5:6379", "invalid choice: 'joins'"),
        ("python -m benchmarks.hop --rounds 7", ""),
        ("python -m benchmarks.hops", "there is no module benchmarks.hops"),
        ("pip install -e '.[reports]'", "there is no extra reports"),
        ("odin top  # don't | odin nothing", ""),
        ("ordin run", "ordin is no program"),
    ],
)
def test_a_wrong_command_line_is_told(text, told):
    found = [fault for words in commands(text) for fault in faults(words) if not fault.startswith("echo ")]
    assert (not found) if not told else any(told in fault for fault in found), found


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("odin run", True),
        ("odin run --resume", True),
        ("odin run --resum", False),
        ("odin walk", False),
        ("odin cluster up --port", True),
        ("odin cluster up --nodes", False),
        ("odin COMMAND --help", True),
        ("odin --version", True),
        ("odin completion bash|zsh|tcsh", True),
    ],
)
def test_a_wrong_command_in_a_sentence_is_told(text, right):
    assert (mention_faults(text) == []) is right


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", _of("toml", "json", "ini"), ids=str)
def test_settings_are_read(block):
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str
        unit.read_string(block.text)
        started = unit["Service"]["ExecStart"]
        assert [fault for words in commands(started) for fault in faults(words)] == []


@pytest.mark.parametrize("block", _of("dockerfile"), ids=str)
def test_a_containers_program_is_taken(block):
    lines = [line.partition(" ") for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
    starts = [json.loads(rest) for word, _, rest in lines if word in ("CMD", "ENTRYPOINT")]
    said = [shlex.join(words) for words in starts] + [rest for word, _, rest in lines if word == "RUN"]
    assert starts
    assert [fault for text in said for words in commands(text) for fault in faults(words)] == []


def test_every_block_says_what_it_is():
    # py: Python that needs what tests do not install, so that not even its names can be looked up
    known = (*_SHELL, "python", "py", "toml", "json", "ini", "dockerfile", "")
    assert [str(block) for block in _BLOCKS if block.language not in known] == []
    # Pictures and formats have no language; what can be typed has one.
    untold = [block for block in _BLOCKS if not block.language]
    assert [str(block) for block in untold if block.text.lstrip().startswith(("odin ", "$ ", "import ", ">>> "))] == []


# -- Python -----------------------------------------------------------------------------------------------------------


def _code(text, name):
    return compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _execute(text, name, namespace):
    outcome = eval(_code(text, name), namespace)
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


def _imported(tree):
    """Modules that are imported, by their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def name_faults(text):
    """Names that nothing in a block defines, and attributes that imported modules do not have."""
    tree = ast.parse(text)
    compile(tree, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    known = {*dir(builtins), "__file__", "__name__"}
    modules, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                given = alias.asname or alias.name.partition(".")[0]
                known.add(given)
                if isinstance(node, ast.Import):
                    if importlib.util.find_spec(alias.name.partition(".")[0]) is not None:
                        modules[given] = importlib.import_module(alias.name if alias.asname else given)
                elif importlib.util.find_spec(node.module.partition(".")[0]) is not None:
                    home = importlib.import_module(node.module)
                    if not hasattr(home, alias.name):
                        found.append(f"{node.module} has no {alias.name}")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known:
            found.append(f"nothing defines {node.id}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            if not hasattr(module, node.attr):
                found.append(f"{module.__name__} has no {node.attr}")
    return found


@pytest.mark.parametrize("block", _of("python"), ids=str)
def test_names_in_python_are_there(block):
    assert name_faults(block.text) == []


@pytest.mark.parametrize("block", [block for block in _of("python") if _SERVES not in block.text], ids=str)
def test_python_runs(block, tmp_path, monkeypatch):
    missing = [
        name
        for name in _imported(ast.parse(block.text))
        if name in _READERS_OWN and importlib.util.find_spec(name) is None
    ]
    if any(name in _ASKS_A_SERVER for name in _imported(ast.parse(block.text))):
        pytest.skip("it needs a server that runs; its names are checked")
    if missing:
        pytest.skip(f"it needs {', '.join(missing)}; its names are checked")
    (tmp_path / "timings").symlink_to(ROOT / "odin_lab" / "timings" / "recorded")
    monkeypatch.chdir(tmp_path)
    _execute(block.text, str(block), {"__name__": "__main__"})


@pytest.fixture
def _process_settings():
    """What a program may set for its process is as before afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    logging.captureWarnings(False)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in _of("python") if _SERVES in block.text], ids=str)
@pytest.mark.usefixtures("_process_settings")
def test_python_that_serves_runs(block, two_cores, tmp_path, monkeypatch):
    """As it stands, but for the cores' numbers."""
    text = block.text
    for written, core in zip(("cpu:0", "cpu:1"), two_cores, strict=True):
        text = text.replace(f'"{written}"', f'"{core}"')
    monkeypatch.chdir(tmp_path)
    _execute(text, str(block), {"__name__": "__main__"})


def test_wrong_names_are_told():
    assert name_faults("import odin\nodin.Pipelines\nfor x in images:\n    x\n") == [
        "odin has no Pipelines",
        "nothing defines images",
    ]
    assert name_faults("from odin import Plans") == ["odin has no Plans"]
    assert name_faults("async def f(a):\n    return [await b for b in a]\n") == []
