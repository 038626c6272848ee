"""What a newcomer types first, and types wrong: nothing slow is imported or started for it, and no traceback comes.

What happened: ``odin --help`` imported torch; a wrong device, plan, policy, log or output was told after the model had
been traced and Ray been started, most of a minute later for a core that another pipeline held.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import odin
from odin.cli.main import COMMANDS, main, make_parser
from odin.cli.standard_streams import StandardStreams
from odin.models.builtin import BUILTIN_MODELS
from odin.models.model_names import BUILTIN_NAMES
from odin.options import check_options
from odin.partitioner.files import check_different, check_folder, check_writable, write_whole
from odin.partitioner.plan import Plan
from odin.partitioner.policies import StaticPolicy
from odin.stages.compute.cuda import PRECISIONS
from odin.stages.compute.precision import GPU_PRECISIONS
from odin.stages.device import Device
from odin.stages.lease import Lease
from odin.version import find_version
from odin_lab.commands.demo import what_next

ROOT = Path(__file__).parents[3]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
CORE = f"cpu:{min(os.sched_getaffinity(0))}"

IMPORTED = """
import contextlib, shlex, sys
from odin.cli.main import main
for command in sys.argv[1:]:
    status = "left"
    with contextlib.suppress(SystemExit):
        status = main(shlex.split(command))
    heavy = sorted({"torch", "ray", "matplotlib"} & set(sys.modules))
    print("==", command, status, *heavy, file=sys.stderr)
"""


def run_light(*commands, cwd):
    """Messages of commands, one after the other in one process, after a look that nothing slow was imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *commands], capture_output=True, text=True, timeout=240, check=True, cwd=cwd
    )
    ends = [line for line in done.stderr.splitlines() if line.startswith("== ")]
    assert [line for line in ends if line.split()[-1] in ("torch", "ray", "matplotlib")] == []
    assert len(ends) == len(commands)
    assert "Traceback" not in done.stderr
    return done.stderr


# -- help and version -----------------------------------------------------------------------------------------------
def test_help_imports_nothing_slow(tmp_path):
    run_light("--help", "--version", "nonsense", "", *(f"{command} --help" for command in COMMANDS), cwd=tmp_path)


def test_the_version_is_the_distributions(capsys):
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert odin.__version__ == version == importlib.metadata.version("odin-pipeline")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"odin {version}\n")


def test_a_copy_that_is_not_installed_has_a_version_too(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import odin; print(odin.__version__)"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == odin.__version__
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\nversion = "9"\n')
    assert find_version(tmp_path) == odin.__version__  # the installed one's
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "odin-pipeline"\nversion = "7.5"\n')
    assert find_version(tmp_path) == "7.5"
    (tmp_path / "pyproject.toml").write_text("no TOML")
    assert find_version(tmp_path) == odin.__version__


def test_python_m_odin():
    done = subprocess.run([sys.executable, "-m", "odin", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"odin {odin.__version__}\n"


def test_what_is_known_without_torch_is_what_torch_has():
    assert set(BUILTIN_NAMES) == set(BUILTIN_MODELS)
    assert tuple(PRECISIONS) == GPU_PRECISIONS


def test_every_package_tells_that_it_is_typed():
    for package in ("odin", "odin_lab"):
        assert (ROOT / package / "py.typed").is_file()


# -- wrong options --------------------------------------------------------------------------------------------------
WRONG = [
    ("run resnet5 --input .", "unknown model 'resnet5' (did you mean resnet50"),
    ("run nobody:factory --input .", "no module 'nobody'"),
    ("run gone.pt2 --input .", "gone.pt2: no such file"),
    ("run resnet18 --input . --weights gone.pth", "weights gone.pth: no such file"),
    ("run resnet18 --input gone", "input gone does not exist"),
    ("run resnet18 --input .", "no images in ."),
    ("run resnet18 --input . --stages rain", "'rain' is not a device"),
    ("run resnet18 --input . --stages cpu:9999", "no usable core 9999"),
    ("run resnet18 --input . --stages edge7/cpu:0", "edge7/cpu:0 names a node, but the pipeline is in no cluster"),
    (f"run resnet18 --input . --stages {CORE},{CORE}", f"two stages are on {CORE}"),
    (f"run resnet18 --input . --stages {CORE} --plan 3|4", "plan 3|4 has 2 stages, the pipeline has 1"),
    ("run resnet18 --input . --plan 3-4", "'3-4' is not a plan"),
    ("run resnet18 --input . --plan 0|0", "plan 0|0 has no layers"),
    ("run resnet18 --input . --policy sleep", "there is no policy 'sleep'"),
    ("run resnet18 --input . --policy odin:alpha=much", "write a whole number"),
    ("run resnet18 --input . --policy delayed-oracle", "only a simulation knows"),
    ("run resnet18 --input . --detector doubt", "there is no detector 'doubt'"),
    ("run resnet18 --input . --precision float17", "precision 'float17' is unknown"),
    ("run resnet18 --input . --output no/folder/x", "--output no/folder/x: there is no folder no/folder"),
    ("run resnet18 --input . --output .", "--output . is a folder"),
    ("run resnet18 --input . --log no/folder/x", "event log no/folder/x: there is no folder no/folder"),
    ("run resnet18 --input . --log taken", "event log taken has 5 bytes in it"),
    ("run resnet18 --input . --log new --output new", "both name new"),
    ("run resnet18 --input . --address nobody", "'nobody' is no address of a Ray cluster: write HOST:PORT"),
    ("run resnet18 --input . --batch two", "'two' is no whole number"),
    ("demo resnet5 --input .", "unknown model 'resnet5'"),
    ("demo --input gone", "input gone does not exist"),
    ("demo --input . --stages cpu:9999", "no usable core 9999"),
    ("demo --input . --policy sleep", "there is no policy 'sleep'"),
    ("demo --input . --load cpu@cpu:9999", "no usable core 9999"),
    ("demo --input . --log no/folder/x", "there is no folder no/folder"),
    ("demo --input . --scale nan", "--scale nan"),
    ("partition resnet5", "unknown model 'resnet5'"),
    ("partition resnet18 --stages cpu:9999", "no usable core 9999"),
    ("partition resnet18 --stages edge7/cpu:0", "profiles this machine only"),
    (f"partition resnet18 --stages {CORE} --plan 3|4", "plan 3|4 has 2 stages, the pipeline has 1"),
    ("partition resnet18 --precision float17", "float17"),
    ("partition resnet18 --batch 0", "0 is not at least 1"),
    ("record resnet5", "unknown model 'resnet5'"),
    ("record resnet18 --output taken", "taken is a file; name a folder"),
    ("simulate --output no/folder/x", "there is no folder no/folder"),
    ("simulate --like gone", "--like gone: there is no such file"),
    ("simulate --policy sleep", "there is no policy 'sleep'"),
    ("simulate --detector doubt", "there is no detector 'doubt'"),
    ("bench live resnet5", "unknown model 'resnet5'"),
    ("bench live --plan 1|2|3|4|5|6|7|8|9", "plan 1|2|3|4|5|6|7|8|9 has 9 stages"),
    ("bench live --output no/folder/x", "there is no folder no/folder"),
    ("bench live --logs taken/x", "is a file; name a folder"),
    ("report gone --output taken/x", "is a file; name a folder"),
    ("report gone --output x --markdown x", "--output and --markdown both name x"),
    ("report gone --figures taken", "is a file; name a folder"),
    ("report .", ". is a folder; name the files"),
    ("inject --calibrate --model resnet5", "unknown model 'resnet5'"),
    ("top --address nobody", "'nobody' is no address of a Ray cluster"),
    ("cluster status --address nobody", "'nobody' is no address of a Ray cluster"),
    ("cluster up --port 8265", "port 8265 is kept by Ray for its dashboard"),
]


@pytest.mark.parametrize(("command", "problem"), WRONG, ids=[command for command, _ in WRONG])
def test_wrong_usage_is_status_two(command, problem, tmp_path, monkeypatch, capsys):
    """In this process, where torch is imported already: what is not imported is looked at below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "taken").write_text("taken")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever tests ran before
    try:
        status = main(command.split(" "))
    except SystemExit as ended:
        status = ended.code
    told = " ".join(capsys.readouterr().err.split())
    assert (status, problem in told) == (2, True), told
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "odin") == ["taken"]


def test_wrong_usage_is_told_before_anything_slow_is_imported(tmp_path):
    commands = [
        "run resnet5 --input .",
        "run resnet18 --input gone --stages cpu:9999",
        "run resnet18 --input . --address 127.0.0.1:1",
        "demo --input . --policy sleep",
        "partition resnet18 --stages cpu:9999",
        "record resnet5",
        "bench live --plan 7",
        "simulate --policy sleep",
        "report . --output x",
        "top --address 127.0.0.1:1",
        "cluster status --address 127.0.0.1:1",
    ]
    told = run_light(*commands, cwd=tmp_path)
    assert [line for line in told.splitlines() if line.startswith("== ") and line.split()[-1] not in "12"] == []


def test_a_core_that_a_pipeline_holds_is_told_at_once(tmp_path):
    """It was told by the stage's actor: after torch, tracing, Ray and the weights."""
    with Lease(Device.parse(CORE), label="pipeline of a test"):
        told = run_light(f"run resnet18 --input . --stages {CORE}", cwd=tmp_path)
    assert f"{CORE} is in use by pid {os.getpid()}, pipeline of a test" in told


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"plan": (7, 11)}, r"plan=\(7, 11\) is no plan; give its text, such as '7\|11'"),
        ({"plan": "@0-9|@18"}, r"plan='@0-9\|@18' looks like windows; begin with a plan, .* then migrate"),
        ({"plan": Plan((1, 2)), "stages": [CORE]}, r"plan 1\|2 has 2 stages"),
        ({"policy": StaticPolicy}, "policy=StaticPolicy is a class; give an object"),
        ({"policy": 3}, "policy=3 has no name, no start, no decide"),
        ({"policy": "sleep"}, "there is no policy 'sleep'"),
        ({"detector": None}, "detector=None has no update"),
        ({"batch": "2"}, "batch='2' is no whole number"),
        ({"max_in_flight": 1.5}, "max_in_flight=1.5 is no whole number"),
        ({"max_in_flight": 0}, "max_in_flight=0; it must be at least 1"),
        ({"max_waiting": 0}, "max_waiting=0; it must be at least 1"),
        ({"admission": "fifo"}, "admission='fifo'; choose 'predict'"),
        ({"on_event": "print"}, "on_event='print' cannot be called"),
        ({"log": 3}, "log=3 is no file"),
        ({"stages": 2}, "stages=2 is no list of devices"),
        ({"stages": [0, 1]}, "0 is not a device"),
        ({"address": 6379}, "6379 is no address"),
        ({"address": "ray://127.0.0.1:10001"}, "is no address of a Ray cluster"),
    ],
)
def test_a_pipeline_refuses_before_its_model_is_looked_at(options, problem, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ValueError, match=problem):
        odin.Pipeline("no model of that name", **options)


def test_where_there_is_no_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("odin.options._GPU_FILES", ("/dev/no-such-driver",))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ValueError, match="there is no gpu:0 on this machine"):
        check_options(stages="gpu:0")


# -- files and streams ----------------------------------------------------------------------------------------------
def test_files_that_can_be_written(tmp_path, monkeypatch):
    check_writable(tmp_path / "new", "--output")
    check_writable("/dev/full", "--output")  # told when it is
    check_folder(tmp_path / "to" / "be" / "made", "--logs")
    check_different(output=None, log=None, other="x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="name a file that can be written"):
        check_writable(tmp_path / ("x" * 300), "--output")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder; name a file in one"):
        check_writable(tmp_path / "file" / "x", "--output")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match="cannot be written to"):
        check_writable(tmp_path / "file", "--output")
    with pytest.raises(ValueError, match="cannot be written to"):
        check_folder(tmp_path, "--logs")


def test_what_is_no_plain_file_was_replaced_by_one(tmp_path):
    """``--output /dev/full`` as root put a plain file in the device's place; a link was replaced as well."""
    before = os.lstat("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), b"results")
    assert os.lstat("/dev/full").st_rdev == before.st_rdev
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"new"


def shell(line, **options):
    return subprocess.run(
        ["bash", "-c", f'odin() {{ {sys.executable} -m odin "$@"; }}\n{line}'],
        capture_output=True,
        text=True,
        timeout=120,
        env=BUFFERED,
        **options,
    )


SIMULATE = "odin simulate --requests 30 --policy lls"


@pytest.mark.parametrize("command", ["odin --help", "odin inject --list", f"{SIMULATE} --json"])
def test_nobody_reads_the_output_to_its_end(command):
    """Python complained of the broken pipe when it ended, with status 120."""
    done = shell(f"{command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("command", ["odin --help", "odin inject --list", SIMULATE])
def test_output_that_cannot_be_written_is_told(command):
    full = shell(f"{command} > /dev/full")
    assert (full.returncode, len(full.stderr.splitlines())) == (1, 1), full.stderr
    assert "No space left on device" in full.stderr


@pytest.mark.parametrize("command", ["odin --help", "odin inject --list"])
def test_output_that_is_closed_is_no_failure(command):
    closed = shell(f"{command} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    assert shell(f"{command} 2>&-").returncode == 0


def test_results_that_cannot_be_kept_are_a_failure(capsys):
    """The run had been for nothing, and the status was 0."""
    assert main([*SIMULATE.split()[1:], "--output", "/dev/full"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "cannot keep the results in /dev/full: No space left on device" in told


def test_results_of_images_that_cannot_be_written_name_the_file():
    """They could not be written again when the file was closed: a traceback."""
    from odin.cli.run import open_output

    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), open_output("/dev/full") as output:
        output.begin(None).write("a line\n")


def test_the_streams_of_a_test_stay_as_they_are(capsys):
    streams = StandardStreams()
    print("text", end="")
    assert streams.flush() == ""
    assert not streams.dropped
    assert capsys.readouterr().out == "text"


def test_what_the_system_refuses_is_told_in_one_line(monkeypatch, capsys):
    def refuse(arguments):
        raise PermissionError(13, "Permission denied", "/root/x")

    monkeypatch.setattr("odin.cli.top.run", refuse)
    assert main(["top"]) == 1
    assert capsys.readouterr().err == "odin top: /root/x: Permission denied\n"


def test_what_does_not_fit_into_memory_is_told_in_one_line(monkeypatch, capsys):
    def ask_for_too_much(arguments):
        raise errors.pop(0)

    monkeypatch.setattr("odin.cli.top.run", ask_for_too_much)
    errors = [MemoryError("an input takes 9 GiB: give a smaller one"), MemoryError()]
    for told in ("an input takes 9 GiB: give a smaller one", "out of memory"):
        assert main(["top"]) == 1
        assert capsys.readouterr().err == f"odin top: {told}\n"


# -- Ctrl-C while the program begins --------------------------------------------------------------------------------
def test_ctrl_c_before_anything_is_imported_showed_where():
    """Python printed where in its imports it was: the first handler was installed once the command was imported."""
    code = """
import os, signal, sys
import odin.__main__ as program

class Interrupt:
    '''Imports of the command itself are when Ctrl-C comes.'''
    def find_spec(self, name, *_):
        if name == "odin.cli.main":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.exit(program.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_while_a_command_is_imported():
    code = """
import signal, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["odin", "partition", "resnet18"]
import odin.__main__ as program
sys.exit(program.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


# -- a Ray that is none ---------------------------------------------------------------------------------------------
def test_a_server_that_speaks_http_2_and_answers_no_call(monkeypatch):
    """It was taken for a head, and Ray waited 95 s for it."""
    from odin.cluster import reachable

    def serve(listener, answer):
        peer, _ = listener.accept()
        with peer:
            peer.sendall(reachable._frame(reachable._SETTINGS))
            peer.recv(4096)
            peer.sendall(answer)
            while peer.recv(4096):
                pass

    refused = reachable._frame(reachable._HEADERS, b"\x88\x00\x0bgrpc-status\x0212", stream=1)
    strange = reachable._frame(reachable._HEADERS, b"\x88\x00\x0bgrpc-status\x0216", stream=1)
    for answer, problem in ((b"", "nobody answers at .* within"), (refused, "is no Ray head"), (strange, "token")):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=serve, args=(listener, answer), daemon=True)
            thread.start()
            with pytest.raises(ConnectionError, match=problem):
                reachable.check_head(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3 if not answer else 30.0)
            thread.join(30.0)


def test_a_head_whose_port_is_among_the_workers():
    """``odin cluster up --port 16399`` ended in a traceback of Ray's, which gives workers that port as well."""
    from odin.cluster.started_nodes import _WORKER_PORTS, _worker_ports

    first, last = _WORKER_PORTS
    assert _worker_ports(6379) == _worker_ports(0) == []
    assert _worker_ports(16399) == [f"--min-worker-port={first}", "--max-worker-port=16398"]
    assert _worker_ports(first) == [f"--min-worker-port={first + 1}", f"--max-worker-port={last}"]
    assert _worker_ports(last) == [f"--min-worker-port={first}", f"--max-worker-port={last - 1}"]


def test_of_a_traceback_of_rays_its_last_line_is_told(tmp_path):
    from odin.cluster.started_nodes import _tail

    log = tmp_path / "log"
    log.write_text('Traceback (most recent call last):\n  File "x"\nValueError: Ray component is wrong.\nMore of it.\n')
    assert _tail(log) == "ValueError: Ray component is wrong.\nMore of it."
    log.write_text("no traceback\n")
    assert _tail(log) == "no traceback"


# -- completion, and what to try next -------------------------------------------------------------------------------
def test_the_tab_key_completes():
    lines = ['eval "$(odin completion bash)"']
    for typed in ("par", "run --prec", "cluster st"):
        words = ["odin", *typed.split()]
        lines.append(
            f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_odin; echo ${{COMPREPLY[@]}}"
        )
    offered = shell("\n".join(lines)).stdout.splitlines()
    assert [set(line.split()) & {"partition", "--precision", "status"} for line in offered] == [
        {"partition"},
        {"--precision"},
        {"status"},
    ]


@pytest.mark.parametrize("name", ["zsh", "tcsh"])
def test_other_shells(name, capsys):
    assert main(["completion", name]) == 0
    assert "partition" in capsys.readouterr().out


def test_the_quickstart_ends_with_what_to_try_next(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = make_parser(["demo"]).parse_args(["demo", "vgg16", "--input", "my photographs"])
    told = what_next(arguments, ["cpu:0", "cpu:2"], ".venv/bin/odin")
    rest = "run vgg16 --input 'my photographs' --stages cpu:0,cpu:2 --repeat 50 --output results.jsonl --live"
    assert told == f".venv/bin/odin {rest}"
    assert what_next(arguments, ["cpu:0", "cpu:2"], "/x/pytest/__main__.py") == f"odin {rest}"


# -- documents ------------------------------------------------------------------------------------------------------
def test_every_environment_variable_that_is_read_is_documented():
    code = [
        path
        for folder in ("odin", "odin_lab", "stages", "partitioner", "monitor", "scripts")
        for path in (ROOT / folder).rglob("*")
    ]
    text = "\n".join(path.read_text() for path in code if path.suffix in (".py", ".sh"))
    page = (ROOT / "docs" / "environment.md").read_text()
    own = set(re.findall(r"\bODIN_[A-Z_]+\b", text))
    assert own == set(re.findall(r"^\| `(ODIN_[A-Z_]+)`", page, re.MULTILINE))
    reads = r"""(?:environ|environment|getenv)\w*(?:\.get|\.setdefault)?[(\[]\s*["']([A-Za-z_]+)["']"""
    assert {name for name in re.findall(reads, text) if f"`{name}`" not in page} == set()


class Loading(BaseHTTPRequestHandler):
    """A server that loads its model until it was asked three times."""

    def do_GET(self):
        self.server.asked += 1
        body = b'{"ready":false}'
        self.send_response(503 if self.server.asked < 3 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_readmes_curl_waits_until_the_model_is_loaded():
    """It ended at the first 503: curl cannot cut /dev/null back to write there again, and fails, unless -f drops it."""
    (line,) = re.findall(r"^curl .*--retry.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    with ThreadingHTTPServer(("127.0.0.1", 0), Loading) as server:
        server.asked = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = line.replace("localhost:8000", f"127.0.0.1:{server.server_port}")
        try:
            assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
        finally:
            server.shutdown()
        assert server.asked == 3


def test_readmes_commands_are_commands():
    """Each ``odin ...`` of README's blocks has options that there are."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition("  #")[0].split() for block in blocks for line in block.splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["odin"]]
    assert len(commands) > 7
    for words in commands:
        make_parser().parse_args(words)
