"""Fixtures that several files use: one Ray for the whole run, nothing written outside of temporary folders."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from odin.cluster.ray_runtime import RayRuntime
from odin.stages.device import usable_cores

# Nothing here is timed: a busy machine takes as long as it takes. In CI examples are drawn from a fixed seed, so that a
# failure there is one here as well.
settings.register_profile("odin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("odin"), derandomize=True, database=None, print_blob=True)
settings.register_profile("fast", settings.get_profile("odin"), max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") else "odin")


def pytest_configure() -> None:
    """One compute thread, and signals as usual, even where a shell or nohup runs the tests without them.

    Threads of OpenMP that wait for one another on a busy core spin: small models cost ten times the CPU time with two.
    Programs that tests start inherit what happens to signals here.
    """
    torch.set_num_threads(1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """scripts/test.sh finds the files of tests that start Ray by their text: another spelling would leave them out."""
    for path in {item.path for item in items if item.get_closest_marker("ray")}:
        if "mark.ray" not in path.read_text():
            raise pytest.UsageError(
                f"{path}: its tests have the mark ray: spell it mark.ray there, as scripts/test.sh expects"
            )


def pytest_collection_finish() -> None:
    """No collection of garbage looks again through what torch and the tests' modules have brought, which stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("ODIN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    # Tests must not fail because somebody serves on this machine; stages inherit this from Ray.
    patch.setenv("ODIN_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray that every pipeline of this process uses; started once, since that takes seconds."""
    runtime = RayRuntime(weight_nbytes=256 * 2**20)
    yield
    runtime.close()


@pytest.fixture(scope="session")
def two_cores(ray_session: None) -> list[str]:
    """Two devices for two stages."""
    cores = usable_cores()
    if len(cores) < 2:
        pytest.skip(f"two stages need two cores; this machine lets us use {len(cores)}")
    return [f"cpu:{cores[0]}", f"cpu:{cores[1]}"]
