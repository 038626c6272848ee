"""Text from outside never becomes code.

A layer's generated source named the module of each step in a comment. A newline in a module's path (``add_module``
takes any text without a dot, and so does a saved program) ended the comment, and what followed it ran when the layer
was bound, in every stage.
"""

from __future__ import annotations

import ast
import builtins
import pickle

import pytest
import torch
from torch import fx, nn

from odin.partitioner.chain import build_chain
from odin.partitioner.code.program import generate

ENDS_OF_LINE = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
OTHERS = ["'", '"', "\\", "{", "}", "#", "\0", "\ud800", "class", "é", "ﬁ", "__import__('os')", "'''", "x\\"]
PAYLOAD = "setattr(__import__('builtins'), 'odin_was_here', True)"


@pytest.fixture(autouse=True)
def nothing_runs():
    yield
    ran = hasattr(builtins, "odin_was_here")
    if ran:
        del builtins.odin_was_here
    assert not ran


def only_calls(source: str) -> bool:
    """Whether source is what generate writes: functions with assignments, deletions and returns."""
    allowed = (ast.Module, ast.FunctionDef, ast.Assign, ast.Delete, ast.Return, ast.If)
    return all(
        isinstance(node, allowed) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt | ast.mod)
    )


@pytest.mark.parametrize("text", [*ENDS_OF_LINE, *OTHERS], ids=ascii)
def test_a_modules_name(text):
    model = nn.Sequential()
    for index in range(2):
        model.add_module(f"conv{index}{text}        {PAYLOAD}{text}{PAYLOAD} #", nn.Conv2d(4, 4, 3))
    image = torch.rand(1, 4, 8, 8)
    chain = build_chain(model.eval(), (image,), name=f"model{text}{PAYLOAD}")
    chain = pickle.loads(pickle.dumps(chain))
    torch.testing.assert_close(chain(image), model(image))
    for layer, program in zip(chain.layers, chain.program.layers, strict=True):
        assert only_calls(program.source)
        assert program.source.isascii()
        assert layer.name.isprintable()


@pytest.mark.parametrize("text", ["\n", "\r", "\0", "\ud800"], ids=ascii)
def test_a_saved_programs_module_paths(text):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    image = torch.rand(1, 4, 8, 8)
    exported = torch.export.export(model, (image,))
    stack = {"L": (f"0{text}        {PAYLOAD}{text}{PAYLOAD} #", "torch.nn.Conv2d")}
    for node in exported.graph.nodes:
        node.meta["nn_module_stack"] = stack
    chain = build_chain(exported, (image,))
    torch.testing.assert_close(chain(image), model(image))
    assert all(only_calls(program.source) for program in chain.program.layers)


class Calls:
    """Has a method of any name."""

    def __getattr__(self, name: str):
        return lambda *arguments, **keywords: (name, arguments, keywords)


@pytest.mark.parametrize("text", [*ENDS_OF_LINE, *OTHERS], ids=ascii)
def test_names_of_methods_arguments_and_steps(text):
    name = f"m(); {text}        {PAYLOAD}{text}{PAYLOAD} #"
    graph = fx.Graph()
    x = graph.placeholder("x")
    called = graph.call_method("m", (x, name), {"k": 1})
    called.target, called.kwargs, called.name = name, {name: {name: [name]}}, name
    program = generate("layer", [called], [(x, "tensor")], [(called, "tensor")], {})
    assert only_calls(program.source)
    assert program.bind({})((Calls(),)) == ((name, (name,), {name: {name: [name]}}),)


def test_names_that_are_names_stay_readable():
    graph = fx.Graph()
    x = graph.placeholder("x")
    called = graph.call_method("clamp", (x,), {"min": 0})
    called.meta["module_path"] = "layer1.0.relu"
    source = generate("layer", [called], [(x, "tensor")], [(called, "tensor")], {}).source
    assert "v1 = v0.clamp(min=0)  # layer1.0.relu" in source
