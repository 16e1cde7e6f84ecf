"""Tasks with one vector of outputs per example: what an evaluation measures, and what a prediction shows."""

import numpy as np
import pytest

from mmjax.evaluate.measures import Measures
from mmjax.stream import Stream
from mmjax.tasks import Classify, Facts, MultiLabel, Regress

FACTS = Facts(None, {"answer": ["red", "green", "blue"]})


class Source(list):
    """Of four examples, two of which are German."""

    groups = {"language": (np.array([0, 1, 0, -1]), ["de", "en"])}


SLOTS = np.array([[1, 2, 3], [1, 0, 0]])
NUMBERS = np.array([[3, 0, 1], [2, 99, 99]])  # of the examples in these slots


def slots(features, segments=SLOTS):
    return Stream(np.asarray(features), segments, 0 * segments)


def measured(task, predictions, labels, segments=SLOTS):
    found = Measures({"answer": task}, FACTS, Source())
    found.add(slots(NUMBERS), {}, {"answer": slots(predictions)}, {"answer": slots(labels, segments)})
    return found.metrics()


LOGITS = np.array([[[2, 0, 0], [0, 1, 0], [0, 0, 3]], [[0, 0, 1], [9, 9, 9], [9, 9, 9]]], np.float32)


def test_classes_are_measured_over_the_split_and_each_group():
    found = measured(Classify(outputs=3), LOGITS, [[0, 1, 1], [2, 7, 7]])
    assert found["answer/accuracy"] == 3 / 4  # of examples 3, 0, 1 and 2, example 1 is wrong
    assert found["answer/uar"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert (found["answer/accuracy/language/de"], found["answer/accuracy/language/en"]) == (1, 0)
    assert "answer/auroc/language/de" in found and "answer/auroc/language/en" not in found


def test_an_example_without_a_label_is_not_measured():
    found = measured(Classify(outputs=3), LOGITS, [[0, 1, 1], [2, 7, 7]], np.array([[1, 2, 0], [1, 0, 0]]))
    assert found["answer/accuracy"] == 1 and "answer/accuracy/language/en" not in found


def test_the_class_of_a_mixed_label_is_the_one_with_the_largest_share():
    shares = np.zeros((2, 3, 3), np.float32)
    shares[0] = [[0.7, 0.3, 0], [0.4, 0.6, 0], [0.1, 0.9, 0]]
    shares[1, 0] = [0, 0, 1]
    assert measured(Classify(outputs=3), LOGITS, shares) == measured(
        Classify(outputs=3), LOGITS, [[0, 1, 1], [2, 7, 7]]
    )


def test_several_classes_and_numbers_are_measured_by_example():
    labels = np.zeros((2, 3, 3), int)
    labels[0, :, 0] = 1
    found = measured(MultiLabel(outputs=3), LOGITS - 0.5, labels)
    assert found["answer/accuracy"] == pytest.approx((3 + 1 + 1 + 2) / 12)
    found = measured(Regress(outputs=3), LOGITS, 0 * LOGITS)
    assert found["answer/mae"] == pytest.approx((2 + 1 + 3 + 1) / 12)
    assert found["answer/mae/language/de"] == pytest.approx(2 / 6)


def test_a_class_is_shown_with_the_probabilities_of_all():
    shown = Classify(outputs=3).shown(np.log([0.2, 0.5, 0.3]), FACTS)
    assert shown[""] == "green"
    assert list(shown["probabilities"]) == ["green", "blue", "red"]  # the most probable first
    assert shown["probabilities"] == pytest.approx({"red": 0.2, "green": 0.5, "blue": 0.3})
    lines = Classify(outputs=3).lines("answer", {"answer": shown[""], "answer/probabilities": shown["probabilities"]})
    assert lines == ["answer: green", " 50.00 %  green", " 30.00 %  blue", " 20.00 %  red"]


def test_the_classes_that_apply_and_the_numbers_are_shown_by_name():
    shown = MultiLabel(outputs=3).shown(np.array([1.0, -1.0, 0.1]), FACTS)
    assert shown[""] == ["red", "blue"]
    assert shown["probabilities"] == pytest.approx({"red": 0.7311, "green": 0.2689, "blue": 0.525}, abs=1e-4)
    assert Regress(outputs=3).shown(np.array([1.5, -2.0, 0.0]), FACTS) == {"": {"red": 1.5, "green": -2.0, "blue": 0.0}}


def test_outputs_are_as_many_as_the_data_has_classes():
    assert Classify().resolved(FACTS).outputs == 3 and Classify(outputs=5).resolved(FACTS).outputs == 5
    assert MultiLabel(label="other").resolved(FACTS).outputs is None
