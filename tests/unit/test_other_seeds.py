"""Other seeds: means, probabilities, and the answers by them, in closed form."""

from dataclasses import replace

import pytest

from alast_tune.config import Limits, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.other_seeds import counted, flops_of_seeds, in_the_mean, reseeded, with_knee_of_means, without_seeds
from alast_tune.promote import pick
from alast_tune.results import FrontFile, Region, Reseeded, SeedRun, TrialResult
from alast_tune.summary import cheapest_within, member_of, summarise, within

REFERENCE = (0.0, 10.0, 10.0)


def result(number: int, *values: float) -> TrialResult:
    return TrialResult(number, "complete", TrialConfig(), {}, values, 3, test_accuracy=0.5)


def runs(*accuracies: float, flops: float, peak: float = 2.0) -> list[SeedRun]:
    values = [{"accuracy": accuracy, "train_flops": flops, "peak_bytes": peak} for accuracy in accuracies]
    return [
        SeedRun(seed=1 + n, objectives=found, test_accuracy=found["accuracy"] - 0.1) for n, found in enumerate(values)
    ]


FULL = replace(result(0, 0.9, 4.0, 4.0), baseline="full")
"""Is dominated, and so on no front."""
REGION = Region(source="full", floor=0.85, within=0.05)
TRIALS = [FULL, result(1, 0.91, 1.0, 2.0), result(2, 0.92, 2.0, 3.0), result(3, 0.5, 0.5, 1.0)]


@pytest.fixture
def front() -> FrontFile:
    """Trial 1 is within a point of full fine-tuning by luck, trial 2 for good; trial 3 does not count."""
    return summarise("s", TRIALS, REFERENCE, region=REGION)


@pytest.fixture
def again(front: FrontFile) -> Reseeded:
    found = {"0000": runs(0.9, 0.9, flops=4.0), "0001": runs(0.8, 0.8, flops=1.0), "0002": runs(0.9, 0.92, flops=2.0)}
    return reseeded([*front.front[1:], member_of(FULL)], "s", found)


def test_members_have_mean_spread_and_a_probability() -> None:
    front = summarise("s", [result(0, 0.9, 3.0, 4.0), result(1, 0.5, 1.0, 2.0), result(2, 0.4, 0.5, 1.0)], REFERENCE)
    them = {"0000": runs(0.5, 0.7, flops=3.0, peak=4.0), "0001": runs(0.6, 0.6, flops=1.0)}
    found = reseeded(front.front, "s", them)
    cheap, dear = found.members
    assert (cheap.trial_id, dear.trial_id, found.seeds) == ("0001", "0000", (1, 2))
    assert dear.mean == pytest.approx({"accuracy": 0.6, "train_flops": 3.0, "peak_bytes": 4.0})
    assert dear.spread["accuracy"] == pytest.approx(0.02**0.5) and cheap.spread["accuracy"] == 0
    assert dear.found["accuracy"] == 0.9  # luck, as the mean tells
    assert cheap.front_probability == 1.0 and dear.front_probability == pytest.approx(0.5, abs=0.03)


def test_what_counts_and_full_fine_tuning_are_foreseen(front: FrontFile) -> None:
    assert flops_of_seeds(front, 2, 5.0) == 2 * (4.0 + 1.0 + 2.0)  # trial 3 does not count, full is on no front
    assert flops_of_seeds(front, 0, 5.0) == 0.0
    for source, foreseen in (("pending", 5.0), ("unknown", 0.0)):  # it may yet end, or never will
        begun = summarise("s", TRIALS[1:2], REFERENCE, region=Region(source=source))  # type: ignore[arg-type]
        assert flops_of_seeds(begun, 2, 5.0) == 2 * (1.0 + foreseen)


def test_answers_are_by_the_means_of_members_and_of_full_fine_tuning(front: FrontFile, again: Reseeded) -> None:
    assert cheapest_within(front, 0.01).trial_id == "0001"  # type: ignore[union-attr]
    mean, seeds = in_the_mean(front, again)
    assert seeds == (1, 2)
    assert mean.full == again.members[-1].mean and mean.full["accuracy"] == pytest.approx(0.9)
    found = cheapest_within(mean, 0.01)
    assert found is not None and (found.trial_id, mean.knee) == ("0002", "0002")
    assert found.objectives["accuracy"] == pytest.approx(0.91) and found.test_accuracy == pytest.approx(0.81)
    assert [member.trial_id for member in mean.front] == ["0001", "0002"]
    wider = front.model_copy(update={"region": Region(source="full", floor=0.75, within=0.15)})
    mean, _ = in_the_mean(wider, again)
    assert (mean.knee, mean.knee_within) == ("0001", 0.15)


def test_the_knee_of_the_front_is_by_the_means_too_whatever_limits(front: FrontFile, again: Reseeded) -> None:
    assert (front.knee, front.knee_seeds) == ("0001", 0)
    chosen = with_knee_of_means(front, again)
    assert (chosen.knee, chosen.knee_within, chosen.knee_seeds) == ("0002", 0.05, 2)
    assert chosen.front == front.front and chosen.hypervolume == front.hypervolume
    assert within(front, Limits(max_flops=3.0), again=again).knee == "0002"
    small = within(front, Limits(max_flops=1.5), again=again)  # trial 1 alone, and it is far in the mean
    assert (small.knee, small.knee_within, small.knee_seeds) == ("0001", None, 2)
    assert pick(front, "best", again).trial_id == "0002"


def test_where_means_break_a_limit_a_member_is_no_answer(front: FrontFile, again: Reseeded) -> None:
    kept = within(front, Limits(min_accuracy=0.85), again=again)
    assert [member.trial_id for member in kept.front] == ["0001", "0002"] and kept.knee == "0002"
    nobody = within(front, Limits(min_accuracy=0.85, max_flops=1.5), again=again)
    assert (nobody.knee, nobody.knee_seeds) == (None, 2)
    with pytest.raises(ConfigError, match="pick = knee: in the mean of 2 other seeds nobody keeps the limits"):
        pick(nobody, "knee", again)
    assert pick(nobody, "1", again).trial_id == "0001"  # who asks for it by name gets it


def test_without_seeds_of_all_that_is_looked_at_objectives_are_those_found(front: FrontFile, again: Reseeded) -> None:
    assert in_the_mean(front, None) == (front, ())
    assert in_the_mean(front, again, 0.1) == (front, ())  # members beyond the region have no other seeds
    cheap = within(front, Limits(max_flops=0.7), again=again)  # trial 3, which never counted
    assert (cheap.knee, in_the_mean(cheap, again)) == ("0003", (cheap, ()))
    newer = summarise("s", [*TRIALS, result(4, 0.95, 3.0, 3.0)], REFERENCE, region=REGION)  # of a resumed sweep
    assert without_seeds(newer, again) == ["0004"]
    assert in_the_mean(newer, again) == (newer, ())
    assert with_knee_of_means(newer, again) == newer


def test_what_failed_with_another_seed_is_lacking_full_fine_tuning_too(front: FrontFile, again: Reseeded) -> None:
    for missing, named in (("0001", "0001"), ("0000", "full fine-tuning")):
        left = tuple(member for member in again.members if member.trial_id != missing)
        some = again.model_copy(update={"members": left})
        assert without_seeds(front, some) == [named] and in_the_mean(front, some) == (front, ())


def test_members_near_the_mean_of_full_fine_tuning_count_too(front: FrontFile, again: Reseeded) -> None:
    near = summarise("s", [*TRIALS, result(4, 0.83, 0.7, 1.5)], REFERENCE, region=REGION)  # full's first run was lucky
    assert [member.trial_id for member in counted(near, None)] == ["0001", "0002"]
    assert without_seeds(near, again) == []
    *others, full = again.members
    lower = full.model_copy(update={"mean": full.mean | {"accuracy": 0.87}})
    assert without_seeds(near, again.model_copy(update={"members": (*others, lower)})) == ["0004"]
