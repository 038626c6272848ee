"""What building a chain found out is kept on disk, and never served for another model, nor from anybody else's file."""

import errno
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import odin
from odin.partitioner.cache import chain_cache, model_digest
from odin.partitioner.cache.chain_cache import ChainCache
from odin.partitioner.cache.graph_data import NotDataError, from_data
from odin.partitioner.check import agreement
from odin.partitioner.check.executed import Executed, NotCoveredError
from odin.partitioner.check.repeat import first_call
from odin.partitioner.graph.capture import private_copy

KEY = hashlib.sha256(b"a").hexdigest()
LIMIT = 1e6
LIMIT_OF_MANY = 1e9


def scaled(x):
    return x * 1.0


class Exported(nn.Module):
    """torch.fx stops at the question about the shape; the limits do not show on any values that are tried."""

    bound = 1e6

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.own_bound = 1e6
        self.register_buffer("offset", torch.zeros(1))
        self.grid = torch.ones(1)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("not RGB")
        y = self.norm(self.conv(x)) + self.offset
        y = y.clamp(-self.bound, self.bound).clamp(-self.own_bound, self.own_bound).clamp(-LIMIT, LIMIT)
        return scaled(y) * self.grid


class ForMany(Exported):
    """What is done with many samples is not executed with one."""

    def forward(self, x):
        return super().forward(self.for_many(x) if x.shape[0] > 2 else x)

    def for_many(self, x):
        return x.clamp(max=LIMIT_OF_MANY)


def make(kind=Exported):
    torch.manual_seed(0)
    return kind().eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chains"


@pytest.fixture
def captures(monkeypatch):
    """Names of the ways in which models were captured, and checked for state."""
    made = []
    for name in ("capture_fx", "capture_export", "check_repeatable"):
        function = getattr(agreement, name)

        def counted(*args, name=name, function=function, **kwargs):
            made.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(agreement, name, counted)
    return made


def example(size=8):
    return torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)


def digest(model, x=None):
    """The key of a model."""
    args = (example() if x is None else x,)
    executed = Executed()
    with torch.inference_mode(False), torch.no_grad():
        first_call(lambda: private_copy(model), args, watched=lambda function: watched(function, executed))
        return model_digest.model_digest(private_copy(model), args, executed)


def watched(function, executed):
    def call(*args):
        with executed:
            return function(*args)

    return call


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The file of a model that was built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODIN_CACHE_DIR", str(tmp_path_factory.mktemp("kept")))
        odin.build_chain(make(), (example(),))
        (file,) = ChainCache().directory.iterdir()
    return file


@pytest.fixture
def built(folder, kept):
    """A folder with the file of a model that was built once."""
    folder.mkdir(parents=True, mode=0o700)
    shutil.copy(kept, folder)
    return folder


def build(model, x=None):
    x = example() if x is None else x
    chain = odin.build_chain(model, (x,))
    large = torch.cat([x, x.flip(0, 3) * 3e7])  # where the limits show
    with torch.no_grad():
        torch.testing.assert_close(chain(large), model(large), rtol=1e-4, atol=1e-4)
    return chain


def test_second_start_neither_captures_nor_checks_again(folder, captures):
    first = build(make())
    assert "capture_export" in captures
    assert "check_repeatable" in captures
    captures.clear()
    second = build(make())
    assert captures == ["capture_fx"]  # which is quick
    assert (second.fingerprint, second.captured_with) == (first.fingerprint, "torch.export")
    assert torch.equal(second(example()), first(example()))
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert b"state" in file.read_bytes()
    assert file.stat().st_size < 8_000


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_a_model_that_fx_captures_is_not_checked_again(folder, captures):
    build(small())
    captures.clear()
    assert build(small()).captured_with == "torch.fx"
    assert captures == ["capture_fx"]


def test_kept_by_another_process(folder, captures):
    """Keys do not depend on the order of sets, on addresses, or on whether code came from a cache of bytecode."""
    code = (
        f"import odin, sys, torch; sys.path[:0] = {sys.path!r}; import test_chain_cache as t; "
        "odin.build_chain(t.make(), (t.example(),))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
    assert len(list(folder.iterdir())) == 1
    build(make())
    assert captures == ["capture_fx"]


def test_an_example_with_other_contents_has_the_graph_but_is_checked(built, captures):
    build(make(), example().flip(2))
    assert captures == ["check_repeatable", "capture_fx"]


def changed_weight(model, monkeypatch):
    model.conv.weight.data[0, 0, 0, 0] += 1e-6


def changed_buffer(model, monkeypatch):
    model.offset += 1e-7


def changed_constant(model, monkeypatch):
    model.grid = torch.full((1,), 1 + 1e-6)


def changed_attribute(model, monkeypatch):
    model.own_bound = 1e5


def changed_class_attribute(model, monkeypatch):
    monkeypatch.setattr(Exported, "bound", 1e5)


def changed_global(model, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 1e5)


def changed_function(model, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "scaled", lambda x: x.clamp(max=1e5))


def changed_forward(model, monkeypatch):
    model.norm.forward = lambda x: nn.BatchNorm2d.forward(model.norm, x).clamp(max=1e5)


def changed_method_of_torch(model, monkeypatch):
    original = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: original(self, x).clamp(max=1e5))


def changed_hook(model, monkeypatch):
    model.conv.register_forward_hook(lambda module, args, result: result.clamp(max=1e5))


def changed_submodule(model, monkeypatch):
    model.norm.eps = 2e-5


def changed_torch(model, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0")


def changed_odin(model, monkeypatch):
    monkeypatch.setattr(model_digest, "_own_code", lambda: "another")


def changed_python(model, monkeypatch):
    monkeypatch.setattr(sys, "version", "3.99")


CHANGES = [value for name, value in list(globals().items()) if name.startswith("changed_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_model_has_another_key(monkeypatch, change):
    """Most of these changes show on none of the values that a chain is compared on."""
    before = digest(make())
    model = make()
    assert digest(model) == before
    change(model, monkeypatch)
    assert digest(model) != before


class Finalized:
    """Garbage that only a collection finds, and that asks what a model must not."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        time.perf_counter()


def test_garbage_of_others_is_not_the_models():
    """A collection in the middle of the call ran the finalizers of others, and the model had no key."""
    before = gc.get_threshold()
    gc.set_threshold(10, 1, 1)
    try:
        with Executed() as executed:
            Finalized()
            kept = [[number] for number in range(2000)]
    finally:
        gc.set_threshold(*before)
    assert len(kept) == 2000
    assert executed.problem == ""
    assert gc.isenabled()
    gc.collect()


def test_what_the_example_does_not_reach_is_in_the_key(monkeypatch):
    before = digest(make(ForMany))
    assert digest(make(ForMany)) == before
    monkeypatch.setattr(sys.modules[__name__], "LIMIT_OF_MANY", 1e8)
    assert digest(make(ForMany)) != before


@pytest.mark.parametrize("change", [changed_weight, changed_class_attribute, changed_torch])
def test_nothing_is_served_for_another_model(built, captures, monkeypatch, change):
    model = make()
    change(model, monkeypatch)
    build(model)
    assert captures[0] == "check_repeatable"
    assert "capture_export" in captures


@pytest.mark.parametrize("x", [example(9), example().double(), example().contiguous(memory_format=torch.channels_last)])
def test_another_kind_of_example_has_another_key(x):
    assert digest(make().to(x.dtype), x) != digest(make())


def test_another_source_has_another_key(monkeypatch, tmp_path):
    """A line of a file is changed, of a function that the model calls in another module than its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "limits_of_a_model.py").write_text("def most():\n    return 1e6\n")
    (tmp_path / "model_from_a_file.py").write_text(
        "import limits_of_a_model\nfrom torch import nn\n\nclass Net(nn.Conv2d):\n"
        "    def forward(self, x):\n        if x.shape[1] != 3:\n            raise ValueError\n"
        "        return super().forward(x).clamp(max=limits_of_a_model.most())\n"
    )
    limits, module = (importlib.import_module(name) for name in ("limits_of_a_model", "model_from_a_file"))

    def net():
        torch.manual_seed(0)
        return module.Net(3, 4, 3).eval()

    before = digest(net())
    assert digest(net()) == before
    (tmp_path / "limits_of_a_model.py").write_text("def most():\n    return 1e5\n")
    importlib.invalidate_caches()
    importlib.reload(limits)
    after = digest(net())
    assert after != before
    (tmp_path / "model_from_a_file.py").write_text((tmp_path / "model_from_a_file.py").read_text() + "\n")
    assert digest(net()) not in (before, after)


READINGS = {
    "environment": lambda: "THICK" in os.environ,
    "file": lambda: open(os.devnull).read(),  # noqa: SIM115  # as models do
    "time": lambda: time.time(),
    "name of this machine": lambda: os.uname(),
    "arguments": lambda: sys.argv[:0],
    "identity": lambda: id(LIMIT),
    "code": lambda: eval("1"),
    "random": lambda: random.getrandbits,
    "numbers in a file": lambda: torch.from_file,
    "operators of an extension": lambda: torch.ops.not_of_torch,
    "library": lambda: json.dumps,
}


def reads(reading):
    class Reads(Exported):
        def forward(self, x):
            READINGS[reading]()
            return super().forward(x)

    return make(Reads)


@pytest.mark.parametrize("reading", READINGS)
def test_what_depends_on_anything_else_has_no_key(reading):
    with pytest.raises(NotCoveredError):
        digest(reads(reading))


@pytest.mark.parametrize("held", [iter([1]), {object()}, threading.local(), torch.Generator(), open])
def test_what_holds_something_unknown_has_no_key(held):
    model = make()
    model.held = held
    with pytest.raises(NotCoveredError):
        digest(model)


def test_what_has_no_key_is_not_kept(folder, captures):
    build(reads("environment"))
    assert "capture_export" in captures
    assert not folder.exists()


def test_keep_false_leaves_the_disk_alone(folder):
    odin.build_chain(small(), (example(),), keep=False)
    assert not folder.exists()


def altered(folder, change):
    """Change the only file's contents as somebody would who knows the format."""
    (file,) = folder.iterdir()
    head, _, body = file.read_bytes().partition(b"\n")
    content = json.loads(body)
    change(content)
    body = json.dumps(content).encode()
    head = json.dumps({**json.loads(head), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    file.write_bytes(head + b"\n" + body)


def call_number(graph, name):
    return next(i for i, node in enumerate(graph["nodes"]) if node[0] == "call_function" and name in node[2])


FOREIGN = [
    ("os.system", ["tuple", "touch ran"]),
    ("builtins.exec", ["tuple", "open('ran', 'w')"]),
    ("operator.attrgetter", ["tuple", "__class__"]),
    ("aten.save.default", ["tuple", ["node", 0], "ran"]),
    ("aten.from_file.default", ["tuple", "ran", True, 4]),
    ("aten.__class__.mro", ["tuple"]),
    ("torch.load", ["tuple", "ran"]),
]


def graph_of(file):
    return json.loads(file.read_bytes().partition(b"\n")[2])["graph"]


def read(graph):
    return from_data(graph, make(), (example(),), pytree.tree_structure(example()))


@pytest.mark.parametrize(("target", "arguments"), FOREIGN)
def test_a_graph_that_calls_something_else_is_none(kept, tmp_path, monkeypatch, target, arguments):
    monkeypatch.chdir(tmp_path)
    graph = graph_of(kept)
    read(graph)
    node = graph["nodes"][call_number(graph, "clamp")]
    node[2], node[3] = target, arguments
    with pytest.raises(NotDataError):
        read(graph)
    assert not (tmp_path / "ran").exists()


def test_an_altered_file_runs_no_code(built, captures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def change(content):
        node = content["graph"]["nodes"][call_number(content["graph"], "clamp")]
        node[2], node[3] = "os.system", ["tuple", "touch ran"]

    altered(built, change)
    with pytest.warns(UserWarning, match="does not fit"):
        build(make())
    assert "check_repeatable" in captures
    assert "capture_export" in captures
    assert not (tmp_path / "ran").exists()
    captures.clear()
    build(make())  # written anew
    assert captures == ["capture_fx"]


WRONG = {
    "no nodes": lambda graph: graph.update(nodes=[]),
    "a name that is code": lambda graph: graph["nodes"][-1].__setitem__(1, "x\nimport os"),
    "no such node": lambda graph: graph.update(outputs=[10**6]),
    "no such weight": lambda graph: graph["state"].update({"conv.weight": ["model", "nothing"]}),
    "bytes too few": lambda graph: graph["state"].update({"conv.weight": ["bytes", "float32", [9], [1], ""]}),
    "huge": lambda graph: graph["state"].update({"conv.weight": ["bytes", "float32", [1 << 60], [1], ""]}),
    "no state": lambda graph: graph.pop("state"),
    "outputs": lambda graph: graph.update(leaves=[]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_graph(kept, wrong):
    graph = graph_of(kept)
    WRONG[wrong](graph)
    with pytest.raises(NotDataError):
        read(graph)


def test_a_graph_of_another_model_is_found_by_the_comparison(built, captures):
    def change(content):
        content["graph"]["state"]["norm.weight"] = ["model", "norm.running_mean"]

    altered(built, change)
    with pytest.warns(UserWarning, match="computes something else"):
        build(make())
    assert captures.count("check_repeatable") == 1
    assert "capture_export" in captures


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null\nnull", b"\x80\x04N.", b"[" * 100_000, b"\n" * 9, b"{}\n{}"]
)
def test_a_broken_file_is_no_entry(built, content):
    (file,) = built.iterdir()
    whole = file.read_bytes()
    for broken in (content, whole[: len(whole) // 2], whole.replace(b"clamp", b"relu_", 1)):
        file.write_bytes(broken)
        assert ChainCache().load(file.stem) is None


def test_a_broken_file_is_replaced(built, captures):
    (file,) = built.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    build(make())
    assert "capture_export" in captures
    assert file.read_bytes() == whole


def test_a_folder_or_file_of_somebody_else_is_not_used(built, captures, monkeypatch):
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        build(make())
    assert "check_repeatable" in captures
    assert "capture_export" in captures


def test_what_others_may_write_is_not_used(built):
    (file,) = built.iterdir()
    for place, mode, back in ((built, 0o777, 0o700), (built, 0o720, 0o700), (file, 0o622, 0o600)):
        place.chmod(mode)
        with pytest.warns(UserWarning, match="can be written by others"):
            assert ChainCache().load(file.stem) is None
        place.chmod(back)
    assert ChainCache().load(file.stem) is not None


def test_links_and_pipes_are_not_followed(folder, tmp_path):
    elsewhere = ChainCache(tmp_path / "elsewhere")
    assert elsewhere.store(KEY, {"a": 1})
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert ChainCache().load(KEY) is None
    assert not ChainCache().store(KEY, {})
    folder.unlink()
    folder.mkdir(mode=0o700)
    (folder / f"{KEY}.json").symlink_to(tmp_path / "elsewhere" / f"{KEY}.json")
    assert ChainCache().load(KEY) is None
    (folder / f"{KEY}.json").unlink()
    os.mkfifo(folder / f"{KEY}.json", 0o600)
    assert ChainCache().load(KEY) is None
    assert ChainCache().store(KEY, {"a": 2})
    assert ChainCache().load(KEY) == {"a": 2}
    assert elsewhere.load(KEY) == {"a": 1}


def test_a_disk_that_takes_nothing(folder, monkeypatch, tmp_path):
    """Full, read-only, or no folder at all: the chain is built, without a warning, and nothing is left behind."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space left on device")

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        monkeypatch.setattr(os, "replace", full)
        odin.build_chain(small(), (example(),))
        assert list(folder.iterdir()) == []
        monkeypatch.undo()
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path / "file"))
        odin.build_chain(small(), (example(),))
        monkeypatch.setattr(chain_cache, "cache_directory", lambda kind: (_ for _ in ()).throw(RuntimeError("no home")))
        assert ChainCache().load(KEY) is None
        assert not ChainCache().store(KEY, {})


def test_the_oldest_go(tmp_path):
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]
    cache = ChainCache(tmp_path / "chains", limit_files=3)
    for number, key in enumerate(keys[:3]):
        assert cache.store(key, {"n": number})
        os.utime(cache.directory / f"{key}.json", (number, number))
    (cache.directory / "notes.txt").write_text("somebody's own")
    cache.load(keys[0])  # used just now
    assert cache.store(keys[3], {"n": 3})
    assert [cache.load(key) for key in keys[:4]] == [{"n": 0}, None, {"n": 2}, {"n": 3}]

    little = ChainCache(tmp_path / "small", limit_nbytes=2000)
    for number, key in enumerate(keys):
        assert little.store(key, {"text": "x" * 700})
        os.utime(little.directory / f"{key}.json", (number, number))
    assert [little.load(key) is not None for key in keys] == [False] * 4 + [True] * 2
    assert sum(file.stat().st_size for file in little.directory.iterdir()) <= 2000
    assert not little.store(keys[0], {"text": "x" * 3000})
    assert (cache.directory / "notes.txt").exists()


def test_processes_that_write_and_read_at_once_see_whole_files(tmp_path):
    seen, wrong = [], []

    def work(number):
        cache = ChainCache(tmp_path / "chains", limit_files=1)
        for turn in range(40):
            cache.store(KEY, {"text": str(number) * (500 + turn)})
            content = cache.load(KEY)
            seen.append(content)
            if content is not None and len(set(content["text"])) != 1:
                wrong.append(content)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert any(seen)
    assert [file.name for file in (tmp_path / "chains").iterdir()] == [f"{KEY}.json"]


def test_the_first_call_is_watched_and_counted(monkeypatch):
    """The watch for random numbers had a call of its own, one more than the comparison needs."""
    calls = []
    original = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *args: calls.append(1) or original(*args))
    agreement.Subject(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), (example(),))
    assert len(calls) == 6  # x x y z x, and samples together


class Counts(nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, training=True) if x.shape[0] else x


def test_random_numbers_are_refused_as_before(folder):
    with pytest.raises(odin.TraceError, match="draws random numbers"):
        odin.build_chain(Counts(), (example(),))
    assert not folder.exists()
