"""The forms that ``odin reduce`` wrote, served by a family: off by default, within a budget, and the answer says so."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
import torch
from digits_model import digit_images, trained_digits
from prometheus_client import generate_latest

import odin
from odin.family.choice import OdinPolicy
from odin.family.facts import Choice, Facts, Predict, Prediction, Refusal, Want
from odin.reduction.manifest import Manifest, read_manifest
from odin.reduction.programs import save_forms
from odin.reduction.reduced import reduce_model
from odin.server.config import Limits, parse_model, read_model
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, Tensor
from odin.server.metrics import Metrics
from odin.server.repository import Repository
from odin.server.served_family import variants_of


class FullOnesAreLate(OdinPolicy):
    """As if no full variant could keep any latency."""

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        def late(variant: int, *, loaded: bool = False) -> Prediction:
            return predict(variant, loaded=loaded) if facts[variant].reduced else Prediction(math.inf, math.inf)

        return super().choose(facts, loaded, want, late, tried)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("models") / "reduced"
    training, held_out = digit_images()
    reduced = reduce_model(trained_digits()[1.0], training, held_out, exits=(1, 3), name="digits")
    save_forms(reduced, folder, name="digits", budget=0.5, example=held_out.inputs[:1], rounds=2)
    # times of so small forms vary: what is tested does not
    manifest = read_manifest(folder)
    seconds = {"full": 3e-3, "exit-3": 2e-3, "exit-1": 1e-3}
    text = (folder / "reduced.json").read_text()
    told = json.loads(text)
    for form in told["forms"]:
        form["seconds"] = seconds[form["name"]]
    (folder / "reduced.json").write_text(json.dumps(told))
    return folder, manifest


def test_a_variant_with_its_forms(forms):
    folder, manifest = forms
    lost = {form.name: form.judgement.lost.value for form in manifest.forms}
    made = odin.Variant("good", "digits_model:full_digits", forms=folder, batch=2, accuracy=0.9).with_forms()
    assert [(one.name, one.form, one.accuracy_lost) for one in made if one.form != "exit-1"] == [
        ("good", "full", None),
        ("good-exit-3", "exit-3", lost["exit-3"]),
    ]
    assert made[0].model == "digits_model:full_digits"
    assert made[1].accuracy == pytest.approx(0.9 - lost["exit-3"])
    assert {one.batch for one in made} == {2}
    alone = odin.Variant("good", forms=folder, image_size=8).with_forms()  # as a family's file says for all
    assert alone[0].image_size is None
    assert alone[0].model == str(folder / "digits-full.pt2")
    assert alone[0].accuracy == manifest.forms[0].judgement.accuracy.value
    assert alone[0].with_forms() == (alone[0],)


def test_forms_beyond_the_budget_of_odin_reduce_are_left_out(forms, tmp_path):
    folder, _ = forms
    told = json.loads((folder / "reduced.json").read_text())
    told["budget"] = 0.01
    for form in told["forms"]:
        form["judgement"]["lost"] = [{"full": 0.0, "exit-3": 0.009, "exit-1": 0.011}[form["name"]], 0.0, 0.1]
    (tmp_path / "reduced.json").write_text(json.dumps(told))
    made = odin.Variant("good", forms=tmp_path).with_forms()
    assert [one.form for one in made] == ["full", "exit-3"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "has no model; give one, or the folder of its forms"),
        ({"model": "resnet18", "form": "exit-3"}, "accuracy_lost=None; give both"),
        ({"model": "resnet18", "accuracy_lost": 0.01}, "form='full', accuracy_lost=0.01; give both"),
        ({"model": "resnet18", "form": "exit-3", "accuracy_lost": 3}, "accuracy_lost=3"),
        ({"form": "exit-3", "accuracy_lost": 0.1, "forms": "reduced"}, "only a full variant"),
    ],
)
def test_variants_that_make_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        odin.Variant("good", **options)


def test_a_file_without_model_or_forms_is_refused(tmp_path):
    fields = {"variants": [{"name": "good", "forms": "reduced"}], "accuracy_budget": 0.003}
    config = parse_model(fields, name="photos", folder=tmp_path, where="here")
    assert (config.variants[0].forms, config.accuracy_budget) == (tmp_path / "reduced", 0.003)
    for wrong, told in (
        ({"variants": [{"name": "good"}]}, "variant 0: 'source' is missing"),
        ({**fields, "accuracy_budget": 1.5}, "accuracy_budget = 1.5"),
    ):
        with pytest.raises(ValueError, match=told):
            parse_model(wrong, name="photos", folder=tmp_path, where="here")


def request(**parameters: object) -> InferRequest:
    image = digit_images()[1].inputs[:1].numpy()
    return InferRequest("digits", "", "", parameters, (Tensor("input", DATATYPES["FP32"], image),))


@pytest.mark.ray
def test_served_within_a_budget_and_the_answer_says_which_form(two_cores, forms):
    folder, manifest = forms
    path = folder.parent / "digits.toml"
    path.write_text(
        f"stages = {json.dumps(two_cores[:1])}\naccuracy_budget = 0.0\n\n"
        '[[variants]]\nname = "good"\nsource = "digits_model:full_digits"\nforms = "reduced"\n'
    )
    names = [variant.name for variant in variants_of(read_model(path))]
    assert names[0] == "good"
    lost = max(form.judgement.lost.value for form in manifest.forms)
    budget = min(0.99, max(0.01, lost + 0.01))

    async def serve() -> None:
        repository = Repository(path.parent)
        try:
            repository.find()
            dataplane, metrics = DataPlane(repository, Limits()), Metrics()
            metrics.watch(dataplane)
            await dataplane.load("digits")
            full = await dataplane.infer(request(accuracy_budget=budget))
            assert (full.parameters["variant"], full.parameters["form"]) == ("good", "full")
            assert (full.parameters["step"], full.parameters["accuracy_lost"]) == ("first", 0.0)

            family = repository.served("digits").family
            family.policy = FullOnesAreLate()
            with pytest.raises(RequestError) as refused:  # off by default
                await dataplane.infer(request(latency=10_000_000))
            assert refused.value.kind in (FailureKind.REFUSED, FailureKind.NOT_READY)
            answer = await dataplane.infer(request(latency=60_000_000, accuracy_budget=budget))
            form = answer.parameters["form"]
            assert answer.parameters["variant"] == f"good-{form}"
            assert answer.parameters["step"] == "reduced"
            known = {one.name: one.judgement.lost.value for one in manifest.forms}
            assert answer.parameters["accuracy_lost"] == known[form]
            program = torch.export.load(folder / f"digits-{form}.pt2").module()
            expected = program(digit_images()[1].inputs[:1])
            assert torch.allclose(torch.from_numpy(answer.outputs[0].array), expected, atol=1e-3)

            family.accuracy_budget = budget  # the family's own, for requests that name none
            assert (await dataplane.infer(request(latency=60_000_000))).parameters["form"] == form
            with pytest.raises(RequestError, match=r"accuracy budget of 1\.0") as wrong:
                await dataplane.infer(request(accuracy_budget=1.0))
            assert wrong.value.kind is FailureKind.INVALID
            text = generate_latest(metrics.registry).decode()
            counted = (
                f'odin_variant_requests_total{{model="digits",outcome="answered",reduced="true",variant="good-{form}"}}'
            )
            assert f"{counted} 2.0" in text
        finally:
            await repository.close()

    asyncio.run(serve())
