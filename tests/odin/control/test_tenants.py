"""Pipelines of one process name each other's stages."""

from __future__ import annotations

from odin.control.tenants import Tenants
from odin.monitor.attribution.culprits import CulpritReport, Suspect
from odin.monitor.attribution.neighbours import Neighbours
from odin.monitor.events import Culprit


class Named:
    def __init__(self, names):
        self.names = names

    def stage_names(self):
        return self.names


def found(*pids: int) -> Neighbours:
    culprits = tuple(Culprit(pid, "ray::StageActor", 0.5) for pid in pids)
    return Neighbours(CulpritReport(culprits, "a note", (Suspect(culprits[-1], 1, sibling=True),)))


def test_stages_of_other_pipelines_are_named_by_their_models():
    tenants = Tenants()
    cats, dogs = Named({("n", 7): "cats, stage 1"}), Named({("n", 8): "dogs, stage 0", ("other", 9): "dogs, stage 1"})
    tenants.add(cats)
    tenants.add(dogs)
    named = tenants.name(found(7, 8, 9), "n")
    assert [culprit.name for culprit in named.report.culprits] == ["cats, stage 1", "dogs, stage 0", "ray::StageActor"]
    assert (named.report.note, named.report.suspects[0].culprit.name) == ("a note", "ray::StageActor")
    assert tenants.name(found(9), "other").report.suspects[0].culprit.name == "dogs, stage 1"


def test_a_closed_pipeline_and_one_that_nobody_has_any_more_are_forgotten():
    tenants = Tenants()
    closed, dropped = Named({("n", 7): "closed"}), Named({("n", 8): "dropped"})
    tenants.add(closed)
    tenants.add(dropped)
    tenants.remove(closed)
    del dropped
    assert {culprit.name for culprit in tenants.name(found(7, 8), "n").report.culprits} == {"ray::StageActor"}
