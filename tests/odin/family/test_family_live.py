"""A family's processes: digits by three small CNNs, chosen by accuracy and latency."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from patience import PROMPT_S
from torch import nn

import odin
from odin.family.facts import Refusal
from odin.monitor.events import ModelEvicted, ModelLoaded, RunEnded, RunStarted, VariantChosen, from_json

pytestmark = pytest.mark.ray

HOUR_S = 3600.0


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits  # a second of imports

    known = load_digits()
    return torch.tensor(known.images, dtype=torch.float32)[:, None] / 16, torch.tensor(known.target)


def net(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    before = 1
    for _ in range(depth):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def trained(model: nn.Module, images: torch.Tensor, classes: torch.Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    images, classes = digits()
    return images[1400:], classes[1400:]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    images, classes = digits()
    images, classes = images[:1400], classes[:1400]
    return {
        "small": trained(net(4, 1), images, classes, 40),
        "large": trained(net(24, 3), images, classes, 150),
        "cut": trained(net(2, 1), images, classes, 20),
    }


def variants(models: dict[str, nn.Module]) -> list[odin.Variant]:
    x = torch.zeros(1, 1, 8, 8)
    return [
        odin.Variant("small", models["small"], example_input=x),
        odin.Variant("large", models["large"], example_input=x),
        odin.Variant("cut", models["cut"], example_input=x, form="cut", accuracy_lost=0.01),
    ]


@pytest.fixture(scope="module")
def family(two_cores, models, data):
    told: list[tuple[str, float]] = []
    with odin.Family(
        variants(models),
        stages=two_cores,
        labelled=data,
        on_progress=lambda name, what, part: told.append((name, part)),
    ) as made:
        assert {name for name, _ in told} == set(models)
        yield made


def test_profiles_are_measured_and_accuracy_is_that_of_the_models(family, models, data):
    images, classes = data
    for facts, profile in zip(family.facts, family.profiles, strict=True):
        right = (models[facts.name](images).argmax(dim=1) == classes).float().mean().item()
        assert facts.accuracy == pytest.approx(right, abs=2e-3)
        assert profile.labelled == len(classes)
        assert facts.load_s > 0
        assert facts.memory_mib > 1
        assert facts.cost_s > 0
        assert facts.capacity_hz == pytest.approx(2 / facts.cost_s)
        assert facts.latency_s(1) > 0
        assert facts.slope_s >= 0
        assert facts.intercept_s >= 0
    assert family.facts[1].accuracy > family.facts[0].accuracy


def test_accuracy_decides_and_the_answer_says_which(family, models, data):
    x = data[0][:2]
    small, large = family.facts[0], family.facts[1]
    assert small.cost_s < large.cost_s
    answer = family(x, accuracy=small.accuracy)
    assert (answer.variant, answer.form, answer.step) == ("small", "full", "first")
    assert torch.allclose(answer.value, models["small"](x), atol=1e-4)
    answer = family(x, accuracy=large.accuracy)
    assert answer.variant == "large"
    assert answer.accuracy == large.accuracy
    assert torch.allclose(answer.value, models["large"](x), atol=1e-4)
    assert answer.predicted_s > 0
    assert answer.actual_s > 0


def test_a_variant_computes_bit_for_bit_what_its_pipeline_does(family, data):
    x = data[0][:1]
    pipeline = family.pipeline("large")
    assert torch.equal(family(x, accuracy=family.facts[1].accuracy).value, pipeline(x))


def test_a_variant_that_is_named_computes_bit_for_bit_what_a_pipeline_of_its_own_does(family, two_cores, models, data):
    inputs = [data[0][number : number + 1] for number in range(20)]
    with odin.Pipeline(
        models["large"], example_input=torch.zeros(1, 1, 8, 8), stages=two_cores, share_devices=True
    ) as plain:
        expected = list(plain.map(inputs))
    futures = [family.submit(x, variant="large") for x in inputs]
    for future, value in zip(futures, expected, strict=True):
        answer = future.result(PROMPT_S)
        assert (answer.variant, answer.step) == ("large", "first")
        assert torch.equal(answer.value, value)


def test_reduced_ones_only_if_allowed(family, data):
    answer = family(data[0][:1], accuracy=0.0)
    assert answer.variant != "cut"
    with pytest.raises(odin.DeadlineExceededError, match="accuracy_budget="):
        family(data[0][:1], latency_s=1e-7)


def test_what_nobody_can_do_is_refused_and_the_best_named(family, data):
    with pytest.raises(odin.DeadlineExceededError, match="no variant has an accuracy of 1") as caught:
        family(data[0][:1], accuracy=1.0)
    assert caught.value.refused
    assert "'large'" in str(caught.value)
    with pytest.raises(odin.DeadlineExceededError, match="the soonest is") as caught:
        family(data[0][:1], accuracy=0.5, latency_s=1e-6)
    assert caught.value.refused
    assert 0 < caught.value.predicted_s < math.inf
    assert family.view().refused >= 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"accuracy": 1.5}, "accuracy=1.5"), ({"latency_s": "soon"}, "latency_s='soon'"), ({"accuracy": True}, "True")],
)
def test_what_is_asked_for_is_checked(family, data, wrong, message):
    with pytest.raises(ValueError, match=message):
        family.submit(data[0][:1], **wrong)


def test_async_code_gets_the_same(family, data):
    timelines: list[object] = []

    async def ask() -> odin.Answer:
        return await family.asubmit(data[0][:1], accuracy=family.facts[1].accuracy, timelines=timelines)

    answer = asyncio.run(asyncio.wait_for(ask(), PROMPT_S))
    assert answer.variant == "large"
    assert timelines


def test_an_input_that_does_not_fit_is_told_and_counts_for_nothing(family):
    with pytest.raises(ValueError, match="shape"):
        family.submit(torch.zeros(1, 3, 8, 8))
    assert all(one.under_way == 0 for one in family.view().variants)


def test_an_unloaded_variant_is_loaded_when_a_request_needs_it(family, data):
    family.unload("large")
    assert family.view().variants[1].state == "unloaded"
    assert family.pipeline("large") is None
    answer = family(data[0][:1], accuracy=family.facts[1].accuracy)
    assert (answer.variant, answer.step) == ("large", "load")
    assert answer.predicted_s > 0.5 * family.facts[1].load_s
    assert family.view().variants[1].state == "loaded"


def test_a_killed_stage_of_a_variant_loses_nothing_under_load(family, models, data):
    images = data[0]
    expected = {name: models[name](images).detach() for name in ("small", "large")}

    async def ask(number: int) -> None:
        name = ("small", "large")[number % 2]
        x = number % len(images)
        answer = await family.asubmit(images[x : x + 1], variant=name)
        assert answer.variant == name
        assert torch.allclose(answer.value, expected[name][x : x + 1], atol=1e-4)

    pids = [pid for _, pid in family.pipeline("large").stage_names()]
    kills = {150: pids[0], 350: pids[1]}  # one after the other, whether the first is replaced by then or not

    async def serve() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(600):
                group.create_task(ask(number))
                if number in kills:
                    os.kill(kills[number], signal.SIGKILL)
                await asyncio.sleep(0.005)

    before = family.view().variants
    asyncio.run(asyncio.wait_for(serve(), PROMPT_S))
    after = family.view().variants
    assert [new.counts.answered - old.counts.answered for new, old in zip(after, before, strict=True)] == [300, 300, 0]
    assert [new.counts.failed - old.counts.failed for new, old in zip(after, before, strict=True)] == [0, 0, 0]


def test_demand_that_comes_and_goes_loads_and_unloads_within_the_memory(family, two_cores, models, data):
    """Requests for the one, the other and the one again, with room for one: all are answered, one is loaded."""
    events: list[object] = []
    x, limit_mib = data[0][:1], 1.5 * max(one.memory_mib for one in family.facts[:2])
    with odin.Family(
        variants(models)[:2], stages=two_cores, labelled=data, memory_mib=limit_mib, on_event=events.append
    ) as narrow:
        for name in ("large", "small", "large"):
            if name == "small":
                narrow.load("small")  # a request for any accuracy is content with the large one
            accuracy = family.facts[1].accuracy if name == "large" else 0.0
            futures = [narrow.submit(x, accuracy=accuracy) for _ in range(20)]
            assert {future.result(PROMPT_S).variant for future in futures} == {name}
            view = narrow.view()
            assert [one.facts.name for one in view.variants if one.state == "loaded"] == [name]
            assert view.loaded_mib <= limit_mib
        assert [one.counts.answered for one in narrow.view().variants] == [20, 40]
        assert [one.counts.failed + one.counts.late for one in narrow.view().variants] == [0, 0]
    assert sum(isinstance(event, ModelLoaded) for event in events) == 1 + 3  # the small one at the start
    assert sum(isinstance(event, ModelEvicted) for event in events) == 3


def test_what_is_missed_is_loaded_by_demand(family, data):
    """With a limit that loading does not keep another one is refused, and the variant loaded beside it."""
    family.unload("large")
    deadline = time.monotonic() + PROMPT_S
    while family.pipeline("large") is None and time.monotonic() < deadline:
        for _ in range(8):
            future = family.submit(
                data[0][:1], accuracy=family.facts[1].accuracy, latency_s=0.1 * family.facts[1].load_s
            )
            future.exception(PROMPT_S)  # refused, until it is there
        time.sleep(0.05)
    assert family.pipeline("large") is not None


def test_nothing_is_under_way_in_the_end(family):
    assert [one.under_way for one in family.view().variants] == [0, 0, 0]


def test_profiles_are_kept_and_events_logged(two_cores, models, data, tmp_path, family):
    log, told, events = tmp_path / "family.jsonl", [], []
    with odin.Family(
        variants(models),
        stages=two_cores,
        labelled=data,
        log=log,
        memory_mib=1.5 * family.facts[0].memory_mib,
        on_event=events.append,
        on_progress=lambda name, what, part: told.append(name),
    ) as second:
        assert not told
        assert second.facts == family.facts
        assert len(second.pipeline("small").devices) == 2
        assert second.pipeline("large") is None
        answer = second(data[0][:1], accuracy=second.facts[1].accuracy)  # makes room
        assert answer.variant == "large"
        assert second.pipeline("small") is None
    kinds = [type(from_json(line)) for line in Path(log).read_text().splitlines()]
    assert kinds[0] is RunStarted
    assert kinds[-1] is RunEnded
    assert {ModelLoaded, ModelEvicted, VariantChosen} <= set(kinds)
    with pytest.raises(odin.PipelineClosedError):
        second(data[0][:1])


def test_asking_changes_nothing(family):
    before = family.view()
    assert family.ask(accuracy=family.facts[1].accuracy, latency_s=HOUR_S).variant == 1
    assert isinstance(family.ask(latency_s=1e-9), Refusal)
    assert family.view().refused == before.refused


def test_names_and_memory_are_checked(models):
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="no variants"):
        odin.Family([])
    with pytest.raises(ValueError, match=r"a variant is of type str; give odin\.Variant"):
        odin.Family(["resnet18"])
    with pytest.raises(ValueError, match=r"labelled is of type int; give a pair \(inputs, classes\)"):
        odin.Family([odin.Variant("a", "resnet18")], labelled=3)
    with pytest.raises(ValueError, match="a variant's name is 3; give it a word"):
        odin.Variant(3, models["small"])
    with pytest.raises(ValueError, match="two variants are called 'a'"):
        odin.Family([odin.Variant("a", models["small"], example_input=x)] * 2)
    with pytest.raises(ValueError, match="memory_mib=0"):
        odin.Family([odin.Variant("a", models["small"], example_input=x)], memory_mib=0)
    with pytest.raises(ValueError, match="'fastest'"):
        odin.Family([odin.Variant("a", models["small"], example_input=x)], policy="fastest")
