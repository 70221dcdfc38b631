"""Measures of quality: scikit-learn's numbers, whatever classes have no images, and from the counts of batches."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics
from torch.nn import functional as F

from alast_tune.evaluate import evaluate
from alast_tune.objectives import OBJECTIVES, objective_values, objectives_of
from alast_tune.results import EpochReport, FrontFile, Measurements
from alast_tune.run import read_report
from alast_tune.scores import SCORES, Evaluation
from alast_tune.testing.steps import SIDE, small_model
from tests.unit import fronts

CPU = torch.device("cpu")


def counted(answers: list[tuple[int, int]], classes: int) -> Evaluation:
    confusion_KK = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion_KK, tuple(np.array(answers).T), 1)
    return Evaluation(confusion_KK, 0.0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_measures_are_scikit_learn_s_whatever_classes_there_are(answers: list[tuple[int, int]]) -> None:
    found, (right, taken) = counted(answers, 8), tuple(np.array(answers).T)  # of class 7 there is never anything
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images, which is what is asked about
        expected = {
            "accuracy": metrics.accuracy_score(right, taken),
            "balanced_accuracy": metrics.balanced_accuracy_score(right, taken),
            "macro_f1": metrics.f1_score(right, taken, average="macro"),
        }
        table = metrics.precision_recall_fscore_support(right, taken, labels=range(8), zero_division=0)
    assert {name: found.score(name) for name in SCORES} == pytest.approx(expected, abs=1e-12)
    rows = found.table(("a", "b"))
    assert [row["class"] for row in rows] == ["a", "b", "2", "3", "4", "5", "6", "7"]
    for name, column in zip(("precision", "recall", "f1", "images"), table, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column.tolist())


def batches(images: torch.Tensor, labels: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(images.split(size), labels.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 5, 23])
def test_evaluation_counts_all_batches_and_looks_at_five_answers(size: int) -> None:
    model = small_model().eval()
    generator = torch.Generator().manual_seed(1)
    images = 3 * torch.randn(23, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, 9, (23,), generator=generator)  # none of the last class
    with torch.no_grad():
        logits = model(images)
    found = evaluate(model, batches(images, labels, size), CPU)
    expected: NDArray[np.int64] = metrics.confusion_matrix(labels, logits.argmax(1), labels=range(10))
    assert (found.confusion_KK == expected).all() and found.images == 23
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10)))
    assert found.metrics() == {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "macro_f1": found.macro_f1,
        "loss": found.loss,
        "top5": found.top5,
    }


@pytest.mark.parametrize(("classes", "known"), [(5, False), (6, True)])
def test_five_of_five_answers_are_always_right_and_not_told(classes: int, known: bool) -> None:
    model = small_model()
    model.reset_classifier(classes)
    found = evaluate(model, [(torch.zeros(2, 3, SIDE, SIDE), torch.tensor([0, 1]))], CPU)
    assert (found.top5 is not None) == ("top5" in found.metrics()) == known


COST = Measurements(4, 5, 5, 1.0, 1.0)


@pytest.mark.parametrize(("score", "value"), [("accuracy", 0.9), ("balanced_accuracy", 0.7), ("macro_f1", 0.6)])
def test_the_score_is_what_a_sweep_maximizes(score: str, value: float) -> None:
    report = EpochReport(1, 1.0, 2.0, 0.9, COST, balanced_accuracy=0.7, macro_f1=0.6, top5=0.99, score=score)  # type: ignore[arg-type]
    assert report.quality == value
    told = {f"report/{name}": value for name, value in report.metrics().items()}
    assert told["report/accuracy"] == 0.9 and told["report/top5"] == 0.99  # under their own names
    expected = {"accuracy": value, "train_flops": 4.0, "peak_bytes": 5.0}
    assert objective_values(told, report.score, "report/") == expected
    assert [one.name for one in objectives_of(report.score)] == list(expected)
    units = {objectives_of(name)[0].unit for name in SCORES}
    assert len(units) == 3 and objectives_of("accuracy") == OBJECTIVES


def test_checkpoints_and_fronts_of_before_have_accuracy_alone() -> None:
    values = {"epoch": 1, "train_loss": 1.0, "validation_loss": 2.0, "accuracy": 0.5}
    report = read_report(values | {"cost": vars(COST), "budgets": (), "trained": (), "tokens": ()})
    assert report.quality == 0.5 and report.metrics().keys().isdisjoint({"macro_f1", "balanced_accuracy", "top5"})
    front = fronts.front()
    before = front.model_dump(mode="json", by_alias=True)
    del before["score"]
    for member in before["front"]:
        del member["config"]["train"]["score"], member["config"]["data"]["sampling"]
        del member["config"]["data"]["class_weights"]
    assert FrontFile.model_validate(before) == front and front.score == "accuracy"
