import pytest
import torch

from odin.models.labels import Prediction, imagenet_labels, top_classes


def test_labels_are_the_thousand_classes_in_order():
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert len(set(labels)) == 1000
    assert all(label == label.strip() != "" for label in labels)
    # as the Keras and torchvision class indices have them
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 285: "Egyptian cat", 388: "giant panda"}
    known |= {497: "church", 608: "jean", 817: "sports car", 985: "daisy", 999: "toilet tissue"}
    assert {index: labels[index] for index in known} == known


def test_top_classes_are_sorted_with_softmax_probabilities():
    scores = torch.log(torch.tensor([0.1, 0.6, 0.05, 0.25]))
    best = top_classes(scores, ("a", "b", "c", "d"), count=3)
    assert [(one.index, one.label) for one in best] == [(1, "b"), (3, "d"), (0, "a")]
    assert [one.probability for one in best] == pytest.approx([0.6, 0.25, 0.1])


def test_fewer_classes_than_asked_for_and_no_labels():
    assert top_classes(torch.zeros(2), count=5)[0].label is None
    assert len(top_classes(torch.zeros(2), count=5)) == 2


def test_half_precision_scores():
    [best] = top_classes(torch.tensor([0.0, 100.0], dtype=torch.float16), ("cat", "dog"), count=1)
    assert best == Prediction(1, "dog", 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(1, 3), None, r"shape \(1, 3\)"),
        (torch.zeros(3), ("a", "b"), "2 labels for 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        top_classes(scores, labels)
