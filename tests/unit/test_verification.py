"""When a repetition of a front's member counts as one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alast_tune.config import TrialConfig
from alast_tune.other_seeds import reseeded
from alast_tune.promote import pick
from alast_tune.results import RESEEDED, EpochReport, FrontFile, FrontMember, Measurements, SeedRun, TrialResult
from alast_tune.summary import summarise
from alast_tune.verification import chance_between_seeds, compare, images_behind

TRIAL = TrialConfig.model_validate({"train": {"epochs": 2, "device": "cpu"}})


@pytest.fixture
def front() -> FrontFile:
    values = [(0.9, 4e12, 9e8), (0.85, 2e12, 4e8), (0.5, 1e12, 2e8)]
    results = [TrialResult(n, "complete", TRIAL, {}, v, 2) for n, v in enumerate(values)]
    return summarise("mine", results, (0.0, 5e12, 1e9))


@pytest.fixture
def member(front: FrontFile) -> FrontMember:
    return pick(front, "1")


@pytest.mark.parametrize(
    ("between_seeds", "accuracy", "flops", "peak", "failed"),
    [
        (None, 0.85, 2_000_000_000_000, 400_000_000, []),
        (None, 0.85, 2_000_000_000_000, 420_000_000, []),
        (None, 0.85, 2_000_000_000_000, 379_999_999, ["peak memory"]),
        (None, 0.85, 2_000_000_000_001, 400_000_000, ["training FLOPs"]),
        (None, 0.7801, 2_000_000_000_000, 400_000_000, []),  # 1.96 sqrt(0.85 * 0.15 / 100) = 0.06999
        (None, 0.93, 1_999_999_999_999, 430_000_000, ["training FLOPs", "validation accuracy", "peak memory"]),
        (0.04, 0.811, 2_000_000_000_000, 400_000_000, []),
        (0.04, 0.809, 2_000_000_000_000, 400_000_000, ["validation accuracy"]),
    ],
)
def test_a_repetition_must_come_out_the_same(
    member: FrontMember, between_seeds: float | None, accuracy: float, flops: int, peak: int, failed: list[str]
) -> None:
    report = EpochReport(2, 1.0, 1.0, accuracy, Measurements(flops, peak, peak, 1.0, 1.0))
    checks = compare(member, report, 100, between_seeds)
    assert [check.quantity for check in checks if not check.passed] == failed


def test_accuracy_one_leaves_room_for_an_image(member: FrontMember) -> None:
    perfect = member.model_copy(update={"objectives": {"accuracy": 1.0, "train_flops": 1, "peak_bytes": 1}})
    report = EpochReport(2, 1.0, 1.0, 0.99, Measurements(1, 1, 1, 1.0, 1.0))
    assert [check.passed for check in compare(perfect, report, 100)] == [True] * 3


def test_chance_is_that_between_two_runs_by_the_pooled_spread(
    front: FrontFile, member: FrontMember, tmp_path: Path
) -> None:
    assert chance_between_seeds(tmp_path) is None
    again = [SeedRun(seed=1 + n, objectives={"accuracy": a, "train_flops": 1.0, "peak_bytes": 1.0}, test_accuracy=None)
             for n, a in enumerate((0.7, 0.8))]  # fmt: skip
    reseeded(front.front, front.sweep, {member.trial_id: again}).write(tmp_path / RESEEDED)
    spread, t_of_one = 0.005**0.5, 12.7062  # two runs of one member leave one degree of freedom
    assert chance_between_seeds(tmp_path) == pytest.approx(t_of_one * 2**0.5 * spread, rel=1e-5)


def test_a_score_by_classes_is_compared_by_itself_and_by_the_images_of_rare_classes(member: FrontMember) -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert images_behind(labels, "accuracy") == 100
    assert images_behind(labels, "balanced_accuracy") == images_behind(labels, "macro_f1") == pytest.approx(36)
    assert images_behind(torch.arange(100) % 4, "balanced_accuracy") == pytest.approx(100)
    train = member.config.train.model_copy(update={"score": "macro_f1"})
    by_f1 = member.model_copy(update={"config": member.config.model_copy(update={"train": train})})
    cost = Measurements(2_000_000_000_000, 400_000_000, 1, 1.0, 1.0)
    report = EpochReport(2, 1.0, 1.0, 0.1, cost, balanced_accuracy=0.1, macro_f1=0.75, score="macro_f1")
    checks = compare(by_f1, report, 36)  # 1.96 sqrt(0.85 * 0.15 / 36) = 0.117
    assert [check.passed for check in checks] == [True] * 3 and checks[1].quantity == "validation macro F1"
    assert not compare(by_f1, replace(report, macro_f1=0.73), 36)[1].passed
