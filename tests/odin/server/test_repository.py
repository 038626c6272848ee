"""Models that are loaded, replaced and unloaded while requests come; each with real stages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from example_models import Residual, seeded
from loads import command, left_after
from PIL import Image

from odin.server.config import Limits, parse_model
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, RequestedOutput, Tensor
from odin.server.repository import Repository

pytestmark = pytest.mark.ray


def small() -> torch.nn.Module:
    return seeded(Residual)


def config(stages: list[str], name: str = "small", **fields):
    return parse_model(
        {"source": f"{__name__}:small", "image_size": 32, "stages": stages, **fields},
        name=name,
        folder=Path(),
        where="test",
    )


def request(values: np.ndarray, **fields) -> InferRequest:
    tensor = Tensor("input", DATATYPES["FP32"], values)
    given = {"model": "small", "version": "", "id": "", "parameters": {}, "inputs": (tensor,)}
    return InferRequest(**{**given, **fields})


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), np.float32)


_MADE: list[Repository] = []


def made(*arguments, **options) -> Repository:
    """A repository that :func:`run` closes, whatever happens: its stages would be in the way of other tests."""
    _MADE.append(Repository(*arguments, **options))
    return _MADE[-1]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await main()
        finally:
            while _MADE:
                await _MADE.pop().close()

    asyncio.run(whole())


async def refused(doing) -> RequestError:
    with pytest.raises(RequestError) as error:
        await doing
    return error.value


def test_a_model_from_loading_to_unloading(two_cores):
    async def main() -> None:
        repository = made(configs=[config(two_cores, version="7")], drain_s=60)
        dataplane = DataPlane(repository, Limits())
        assert [tuple(state[:3]) for state in dataplane.index()] == [("small", "7", "UNAVAILABLE")]
        assert not dataplane.is_model_ready("small")
        assert (await refused(dataplane.infer(request(images(1))))).kind is FailureKind.NOT_READY
        loading = asyncio.create_task(dataplane.load("small"))
        await asyncio.sleep(0)
        assert dataplane.index()[0].state == "LOADING"
        assert not dataplane.is_ready()
        await loading
        assert dataplane.is_ready()
        assert dataplane.is_model_ready("small", "7")

        x = images(3)
        expected = small()(torch.from_numpy(x)).detach().numpy()
        answer = await dataplane.infer(request(x, id="mine", version="7"))
        assert (answer.model, answer.version, answer.id) == ("small", "7", "mine")
        assert [tensor.name for tensor in answer.outputs] == ["output"]
        np.testing.assert_allclose(answer.outputs[0].array, expected, atol=1e-5)

        # the same by name, and its best classes
        wanted = (RequestedOutput("output", classification=2),)
        (best,) = (await dataplane.infer(request(x, outputs=wanted))).outputs
        assert (best.datatype.name, best.array.shape) == ("BYTES", (3, 2))
        assert [int(text.split(b":")[1]) for text in best.array[:, 0]] == expected.argmax(1).tolist()

        ((_, totals),) = dataplane.statistics("small")
        assert (totals.succeeded, totals.samples, totals.failed) == (2, 6, 0)
        assert totals.request_s == pytest.approx(totals.input_s + totals.compute_s + totals.output_s)

        for wrong, kind, told in [
            (request(x, model="other"), FailureKind.NOT_FOUND, "there is no model 'other'; there are 'small'"),
            (request(x, version="1"), FailureKind.NOT_FOUND, "no version '1'; version '7' is served"),
            (request(x, outputs=(RequestedOutput("y"),)), FailureKind.INVALID, "no output 'y'; there are 'output'"),
            (request(x, parameters={"timeout": -1}), FailureKind.INVALID, "parameter 'timeout' is -1"),
            (request(x, parameters={"timeout": 1}), FailureKind.REFUSED, "deadline"),
            (request(x[:, :, :4]), FailureKind.INVALID, "has shape [3, 3, 4, 32]"),
        ]:
            error = await refused(dataplane.infer(wrong))
            assert error.kind is kind
            assert told in str(error)

        pids = [stage.pid for stage in dataplane.views()["small"].stages]
        await dataplane.unload("small")
        assert dataplane.index()[0].state == "UNAVAILABLE"
        assert (await refused(dataplane.infer(request(x)))).kind is FailureKind.NOT_READY
        assert left_after(pids) == []
        await repository.close()

    run(main)


def test_another_version_takes_over_and_no_request_is_lost(two_cores, tmp_path):
    path = tmp_path / "small.toml"

    def write(version: str) -> None:
        path.write_text(
            f'source = "{__name__}:small"\nimage_size = 32\nversion = "{version}"\nstages = {two_cores[:1]}\n', "utf-8"
        )

    async def main() -> None:
        write("1")
        repository = made(tmp_path, drain_s=60)
        assert repository.find() == ["small"]
        dataplane = DataPlane(repository, Limits())
        await dataplane.load("small")
        x, over = images(1), asyncio.Event()
        versions: list[list[str]] = [[] for _ in range(4)]

        async def ask(seen: list[str]) -> None:
            while not over.is_set():
                seen.append((await dataplane.infer(request(x))).version)

        asking = [asyncio.create_task(ask(seen)) for seen in versions]
        write("2")
        await dataplane.load("small")
        while not all("2" in seen for seen in versions):
            await asyncio.sleep(0.01)
        # one that cannot be served changes nothing
        path.write_text('source = "no_such_model"', "utf-8")
        assert "cannot be served" in str(await refused(dataplane.load("small")))
        assert dataplane.index()[0][:3] == ("small", "2", "READY")
        path.write_text("source =", "utf-8")
        assert "no TOML" in str(await refused(dataplane.load("small")))
        over.set()
        await asyncio.gather(*asking)
        for seen in versions:  # what one asks after an answer of the new version is not answered by the old one
            assert seen == sorted(seen)
            assert set(seen) == {"1", "2"}
        await repository.close()

    run(main)


def test_images_as_they_come(two_cores, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    data = (tmp_path / "photograph.png").read_bytes()

    async def main() -> None:
        repository = made(configs=[config(two_cores[:1])], drain_s=60)
        dataplane = DataPlane(repository, Limits())
        await dataplane.load("small")
        (best,) = (await dataplane.infer_image("small", "", data, count=3)).outputs
        assert best.array.shape == (1, 3)
        as_bytes = np.empty((2,), object)
        as_bytes[:] = [data, data]
        tensor = Tensor("input", DATATYPES["BYTES"], as_bytes)
        (values,) = (await dataplane.infer(request(images(1))._replace(inputs=(tensor,)))).outputs
        assert values.array.shape[0] == 2
        assert int(best.array[0, 0].split(b":")[1]) == values.array[0].argmax()
        error = await refused(dataplane.infer_image("small", "", b"no image", count=3))
        assert error.kind is FailureKind.INVALID
        await repository.close()

    run(main)


def test_too_many_requests_are_refused_and_an_end_takes_none(two_cores):
    async def main() -> None:
        repository = made(configs=[config(two_cores[:1])], drain_s=60)
        dataplane = DataPlane(repository, Limits(requests=2))
        await dataplane.load("small")
        asked = [asyncio.create_task(dataplane.infer(request(images(1)))) for _ in range(5)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [getattr(outcome, "kind", None) for outcome in outcomes] == [None, None, *3 * [FailureKind.BUSY]]
        dataplane.draining = True
        error = await refused(dataplane.infer(request(images(1))))
        assert (error.kind, error.retry_after_s) == (FailureKind.NOT_READY, 1.0)
        await repository.close()

    run(main)


def test_a_load_that_is_broken_off_leaves_nothing(two_cores):
    async def main() -> None:
        repository = made(configs=[config(two_cores[:1])], drain_s=60)
        loading = asyncio.create_task(repository.load("small"))
        await asyncio.sleep(0.2)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert repository.index()[0].reason == "loading was broken off"
        await repository.close()  # waits for what was being made, and for its end

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    run(main)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not any("StageActor" in command for command in map(command, left))


def exits() -> torch.nn.Module:
    raise SystemExit("no licence")


def has_a_fault() -> torch.nn.Module:
    return {}["weights"]


def stops() -> torch.nn.Module:
    return next(iter(()))


class MuteError(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def mute() -> torch.nn.Module:
    raise MuteError


def test_whatever_a_models_own_code_raises_is_told_and_the_next_load_is_made():
    async def main() -> None:
        names = ("exits", "has_a_fault", "stops", "mute")
        configs = [config(["cpu:0"], name).model_copy(update={"source": f"{__name__}:{name}"}) for name in names]
        repository = made(configs=configs)
        told = [str(await refused(repository.load(name))) for name in names]
        assert told == [
            "model 'exits' cannot be served: SystemExit: no licence",
            "model 'has_a_fault' cannot be served: KeyError: 'weights'",
            "model 'stops' cannot be served: StopIteration: ",
            "model 'mute' cannot be served: MuteError, which cannot say what it is about",
        ]
        assert [state[2:] for state in repository.index() if state.name in names[:2]] == [
            ("UNAVAILABLE", "SystemExit: no licence"),
            ("UNAVAILABLE", "KeyError: 'weights'"),
        ]
        await repository.close()

    run(main)


def test_a_wrong_file_hides_no_other_and_a_folder_that_has_gone_is_told_of(tmp_path):
    async def main() -> None:
        folder = tmp_path / "models"
        folder.mkdir()
        repository = made(folder)
        assert repository.find() == []
        (folder / "a.toml").write_text("source =", "utf-8")
        (folder / "b.toml").write_text('source = "resnet18"', "utf-8")
        assert [state.name for state in repository.index()] == ["b"]
        folder.rename(tmp_path / "elsewhere")
        assert [state.name for state in repository.index()] == ["b"]
        error = await refused(repository.load("b"))
        assert (error.kind, "No such file" in str(error)) == (FailureKind.INVALID, True)
        await repository.close()

    run(main)
