"""What the key of a kept chain missed: code that is reached without being named, and without being executed at first.

A model had a branch for many samples, which the example does not take. What changed there between two starts was not
in the key if the branch reached it through an operator, a metaclass, a name given as text, or a patched tensor.
"""

import functools
import sys
import types

import pytest
import test_chain_cache
import torch
from test_chain_cache import digest

from odin.partitioner.cache import model_digest

LIMIT = {"most": 1e9}
settings = types.ModuleType("settings_of_a_model")
HERE = sys.modules[__name__]


class Limits(type):
    def __getattr__(cls, name):
        return LIMIT[name]


class Limit(metaclass=Limits):
    pass


class Implicit:
    def __init__(self, *, most=None):
        self.most = LIMIT["most"] if most is None else most

    def __call__(self, x):
        return x.clamp(max=LIMIT["most"])

    def __rmul__(self, x):
        return self(x)

    def __getitem__(self, index):
        return LIMIT["most"]

    def __iter__(self):
        return iter([LIMIT["most"]])

    def __enter__(self):
        return LIMIT["most"]

    def __exit__(self, *error):
        pass

    def __get__(self, owner, kind):
        return LIMIT["most"]


held = Implicit(most=0.0)


@functools.wraps(torch.nn.functional.relu)
def wrapped(x):
    return x.clamp(max=LIMIT["most"])


def by_with(x):
    with held as most:
        return x.clamp(max=most)


def by_import(x):
    import settings_of_a_model

    return settings_of_a_model.most * x


BRANCHES = {
    "metaclass": lambda model, x: x.clamp(max=Limit.most),
    "call": lambda model, x: held(x),
    "operator": lambda model, x: x * held,
    "item": lambda model, x: x.clamp(max=held[0]),
    "iteration": lambda model, x: x.clamp(max=next(iter(held))),
    "with": lambda model, x: by_with(x),
    "descriptor": lambda model, x: x.clamp(max=model.described),
    "new object": lambda model, x: x.clamp(max=Implicit().most),
    "method by text": lambda model, x: getattr(model, "by_" + "text")(x),
    "wrapped as if torch's": lambda model, x: wrapped(x),
}
BY_MODULE = {
    "text": lambda model, x: x * getattr(settings, "mo" + "st"),
    "vars": lambda model, x: x * vars(settings)["most"],
    "dict": lambda model, x: x * settings.__dict__["most"],
}


def make(name):
    class ForMany(test_chain_cache.Exported):
        described = held
        branch = {**BRANCHES, **BY_MODULE, "patched": lambda model, x: x.relu(), "import": None}[name]

        def by_text(self, x):
            return x.clamp(max=LIMIT["most"])

        def forward(self, x):
            return super().forward(self.branch(x) if x.shape[0] > 2 else x)

    if name == "import":
        ForMany.branch = lambda model, x: by_import(x)
    return test_chain_cache.make(ForMany)


@pytest.mark.parametrize("name", BRANCHES)
def test_what_is_reached_without_its_name_is_in_the_key(name, monkeypatch):
    before = digest(make(name))
    assert digest(make(name)) == before
    monkeypatch.setitem(LIMIT, "most", 1e8)
    assert digest(make(name)) != before


@pytest.mark.parametrize("name", BY_MODULE)
def test_what_is_read_of_a_module_by_text_is_in_the_key(name, monkeypatch):
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    monkeypatch.setattr(settings, "most", 1.0, raising=False)
    before = digest(make(name))
    assert digest(make(name)) == before
    monkeypatch.setattr(settings, "most", 2.0)
    assert digest(make(name)) != before


def test_what_a_module_computes_when_asked_is_in_the_key(monkeypatch):
    module = types.ModuleType(settings.__name__)
    module.__getattr__ = lambda name: LIMIT["most"]
    monkeypatch.setitem(sys.modules, settings.__name__, module)
    before = digest(make("import"))
    assert digest(make("import")) == before
    monkeypatch.setitem(LIMIT, "most", 1e8)
    assert digest(make("import")) != before


def test_a_method_put_into_the_class_of_tensors_is_in_the_key(monkeypatch):
    before = digest(make("patched"))
    monkeypatch.setattr(torch.Tensor, "relu", lambda x: x * 3)
    assert digest(make("patched")) != before


def test_all_code_that_makes_chains_is_in_the_key(tmp_path, monkeypatch):
    """Once files had moved into folders of their own, those that capture, check and prepare were left out."""
    source = tmp_path / "partitioner" / "cache" / "model_digest.py"
    inner = tmp_path / "partitioner" / "graph" / "capture.py"
    for file in (source, inner):
        file.parent.mkdir(parents=True)
        file.write_text("before")
    monkeypatch.setattr(model_digest, "__file__", str(source))
    before = model_digest._own_code.__wrapped__()
    inner.write_text("after")
    assert model_digest._own_code.__wrapped__() != before
