"""The nodes of a Ray cluster, with their cores, CPU model and GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from odin.cluster.ray_token import use_token
from odin.cluster.reachable import check_head
from odin.monitor.machine.cgroups import cpu_quota_cores
from odin.stages.device import cpu_model

__all__ = ["Machine", "NodeReport", "describe_machine", "node_reports"]


@dataclass(frozen=True)
class Machine:
    """One machine's cores and GPUs.

    Attributes
    ----------
    cores
        Cores that this process may run on.
    cpu_model, gpus
        Their model, and the GPUs' names.
    quota_cores
        CPU seconds per second that its control group allows; None without a quota.
    """

    cores: int
    cpu_model: str
    gpus: tuple[str, ...]
    quota_cores: float | None = None


@dataclass(frozen=True)
class NodeReport:
    """One node of a cluster.

    Attributes
    ----------
    node_id
        Ray's id, 56 hexadecimal digits.
    ip
        Address that the other nodes reach it by.
    alive
        Whether Ray counts it in.
    cpus
        Cores that Ray hands out there, which the user may have set.
    machine
        The node's own answer; None if it is dead or gave none.
    problem
        Why there is no answer; empty otherwise.
    """

    node_id: str
    ip: str
    alive: bool
    cpus: float
    machine: Machine | None
    problem: str


def describe_machine() -> Machine:
    """Describe the machine that this runs on."""
    cores = len(os.sched_getaffinity(0)) or psutil.cpu_count() or 1
    return Machine(cores, cpu_model(), _gpu_names(), cpu_quota_cores())


def node_reports(address: str, *, timeout_s: float = 30.0) -> tuple[NodeReport, ...]:
    """Ask every node of the cluster at ``address`` (``HOST:PORT``) what it has; dead nodes come last.

    Connects this process to the cluster for the time of the call, and needs a node of it on this machine, as every
    Ray program does.

    Raises
    ------
    ConnectionError
        If there is no cluster at the address, none of its nodes is on this machine, or the token is not its own.
    """
    use_token()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with _connected(address):
        describe = ray.remote(num_cpus=0, max_retries=0)(describe_machine)
        nodes: list[dict[str, Any]] = ray.nodes()
        nodes.sort(key=lambda node: (not node["Alive"], node["NodeManagerAddress"], node["NodeID"]))
        answers = {
            node["NodeID"]: describe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
            if node["Alive"]
        }
        # All nodes answer at once, and one that hangs holds up the others no longer than this.
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=timeout_s)
        reports = []
        for node in nodes:
            machine, problem = None, str(node.get("DeathReasonMessage") or "")
            if node["Alive"]:
                try:
                    machine = ray.get(answers[node["NodeID"]], timeout=0)
                except ray.exceptions.GetTimeoutError:
                    problem = f"no answer within {timeout_s:.0f} s"
                except ray.exceptions.RayError as error:
                    # Mostly: odin, or this version of it, is not installed there.
                    problem = str(error).strip().splitlines()[-1]
            cpus = float(node["Resources"].get("CPU", 0.0))
            reports.append(
                NodeReport(node["NodeID"], node["NodeManagerAddress"], node["Alive"], cpus, machine, problem)
            )
        return tuple(reports)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    from odin.cluster.ray_loopback import loopback_kept
    from odin.cluster.ray_signals import kept

    if ray.is_initialized():  # the caller's own connection, left as it is
        yield
        return
    try:
        check_head(address)
        with loopback_kept(), kept(starting=True):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConnectionError(f"cannot connect to the cluster at {address}: {error}") from error
    try:
        yield
    finally:
        with kept():
            ray.shutdown()


def _gpu_names() -> tuple[str, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: no GPU of this kind
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    finally:
        pynvml.nvmlShutdown()
