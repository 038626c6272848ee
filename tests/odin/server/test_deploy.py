"""The files in deploy/: what they ask for is there, and what depends on each other in them fits."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from odin.cli.serve import add_parser
from odin.server.config import parse_model
from odin.server.metrics import Metrics

DEPLOY = Path(__file__).parents[3] / "deploy"
_OTHERS = {"process_resident_memory_bytes"}


def exposed():
    """Labels of each series that the server exposes."""
    found = {}
    for family in Metrics().describe():
        labels = set(getattr(family, "_labelnames", ()))
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for ending in endings:
            found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


def faults(query):
    """What of a PromQL query is not there; enough of the language for the dashboard."""
    there, told = exposed(), []
    text = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)
    metrics = set(re.findall(r"\b(?:odin|process)_\w+", text))
    told += [f"{name} is no metric" for name in metrics if name not in there and name not in _OTHERS]
    labels = set().union(*(there.get(name, set()) for name in metrics))
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", text))
    for group in re.findall(r"\bby \(([^)]*)\)", text):
        used |= set(re.split(r",\s*", group))
    told += [f"{label} is no label of {sorted(metrics)}" for label in sorted(used - labels)]
    return told


def dashboard():
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def queries():
    board = dashboard()
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [note["expr"] for note in board["annotations"]["list"]]
    return found


def test_every_query_of_the_dashboard_names_what_there_is():
    assert len(queries()) > 20
    assert {query: told for query in queries() if (told := faults(query))} == {}


def test_legends_name_labels_that_the_query_keeps():
    there = exposed()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            names = re.findall(r"\bodin_\w+", target["expr"])
            labels = set(re.split(r",\s*", kept[0])) if kept else set().union(*(there[name] for name in names))
            assert used <= labels | {"instance"}, (panel["title"], used - labels)


def test_every_metric_is_on_the_dashboard():
    shown = set(
        re.findall(
            r"\bodin_\w+?(?=_bucket\b|_total\b|\b)", " ".join([*queries(), json.dumps(dashboard()["templating"])])
        )
    )
    assert {family.name for family in Metrics().describe()} - shown == set()


def test_panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("rate(odin_requests_total[5m])", []),
        ("rate(odin_request_total[5m])", ["odin_request_total is no metric"]),
        ("odin_request_seconds", ["odin_request_seconds is no metric"]),
        ('odin_ready{model="a"}', ["model is no label of ['odin_ready']"]),
        ("sum by (stages, le) (rate(odin_stage_queue_seconds_bucket[1m]))",
         ["stages is no label of ['odin_stage_queue_seconds_bucket']"]),
    ],
)  # fmt: skip
def test_a_wrong_query_is_found(query, told):
    assert faults(query) == told


# -- systemd ----------------------------------------------------------------------------------------------------------


def unit():
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "odin-serve.service")
    return parser


def options_of(words):
    """Options and their values of a command line."""
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_the_command_lines_are_valid():
    (container,) = pod()["containers"]
    image = json.loads(re.search(r"^CMD (\[.*\])$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)[1])
    words = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(words[0]).name == "odin"
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    for command in (words[1:], ["serve", *container["args"]], ["serve", *image]):
        parser.parse_args(command)  # which ends the process with a message if one of them is unknown


def test_the_unit_waits_for_the_drain_and_signals_the_server_alone():
    service = unit()["Service"]
    command = options_of(shlex.split(service["ExecStart"]))
    assert float(service["TimeoutStopSec"]) > float(command["--drain-s"]) + 10
    assert service["KillMode"] == "mixed"
    assert "143" in service["SuccessExitStatus"].split()
    assert Path(command["--access-log"]).parent == Path("/var/log") / service["LogsDirectory"]


def test_systemd_takes_the_unit():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    told = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / "odin-serve.service"], capture_output=True, text=True, timeout=60
    ).stderr
    # The program is not there, and none of the machine's own units are this test's business.
    assert [line for line in told.splitlines() if "odin-serve" in line and "is not executable" not in line] == []


# -- containers -------------------------------------------------------------------------------------------------------


def objects():
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def pod():
    return objects()["Deployment"]["spec"]["template"]["spec"]


def test_the_pod_has_cores_for_itself():
    (container,) = pod()["containers"]
    resources = container["resources"]
    assert resources["limits"] == resources["requests"]  # of class Guaranteed, and whole CPUs: the static policy's rule
    assert resources["limits"]["cpu"].isdecimal()


def test_the_pod_may_take_as_long_to_end_as_it_needs():
    (container,) = pod()["containers"]
    drain_s = float(options_of(container["args"])["--drain-s"])
    sleep_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod()["terminationGracePeriodSeconds"] > sleep_s + drain_s + 10


def test_alive_and_ready_are_asked_for_apart():
    (container,) = pod()["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"


def test_ports_volumes_and_labels_fit():
    deployment, service = objects()["Deployment"]["spec"], objects()["Service"]["spec"]
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}
    assert service["selector"] == deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    assert deployment["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])


def test_the_models_are_valid(tmp_path):
    import tomllib

    for name, text in objects()["ConfigMap"]["data"].items():
        parse_model(tomllib.loads(text), name=name.removesuffix(".toml"), folder=tmp_path, where=name)


def test_the_image_and_the_pod_agree():
    text = (DEPLOY / "Containerfile").read_text()
    (container,) = pod()["containers"]
    assert json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])[-2:] == ["odin", "serve"]
    command = json.loads(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])
    assert command[0] == container["args"][0] == "/models"
    assert set(options_of(command)) <= set(options_of(container["args"]))
    assert re.search(r"^USER (\d+)$", text, re.MULTILINE)[1] == str(pod()["securityContext"]["runAsUser"])
    assert set(re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)[1].split()) == {
        str(port["containerPort"]) for port in container["ports"]
    }
    cache = re.search(r"ODIN_CACHE_DIR=(\S+)", text)[1]
    assert {"name": "ODIN_CACHE_DIR", "value": cache} in container["env"]
    for extra in re.search(r"'\.\[(.*)\]'", text)[1].split(","):
        assert re.search(rf"^{extra} = \[", (DEPLOY.parent / "pyproject.toml").read_text(), re.MULTILINE)
